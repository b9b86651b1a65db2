"""Decoder language model: token embeddings in, hidden states and logits out, with or without a cache.

Shape letters: B rows, T tokens, S cached tokens, D width, V vocabulary.
"""

import torch
from torch import Tensor, nn

from mmgpt.model.cache import KVCache
from mmgpt.model.layers import (
    Attention,
    AttentionInputs,
    DecoderConfig,
    FeedForward,
    TokenShift,
    gather_tokens,
    make_norm,
)
from mmgpt.model.rope import rope_tables


class Block(nn.Module):
    """Attention and feed-forward, each after a norm, perhaps with another behind it, and added to what came in."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = make_norm(config, config.width)
        self.token_shift = TokenShift(config, layer) if config.token_shift else None
        self.attention = Attention(config, layer)
        self.attention_post_norm = make_norm(config, config.width) if config.post_norms else nn.Identity()
        self.mlp_norm = make_norm(config, config.width)
        self.mlp = FeedForward(config)
        self.mlp_post_norm = make_norm(config, config.width) if config.post_norms else nn.Identity()
        self.has_post_norms = config.post_norms
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, shared: AttentionInputs) -> Tensor:
        """One layer: (B, W, D), all tokens or the wanted ones."""
        normed_BTD = self.attention_norm(x_BTD)
        if self.token_shift is not None:
            normed_BTD = self.token_shift(normed_BTD, shared)
        mixed_BWD = self._leave(self.attention(normed_BTD, shared), self.attention_post_norm)
        x_BWD = gather_tokens(x_BTD, shared.output_positions_BW) + mixed_BWD
        out_BWD: Tensor = x_BWD + self._leave(self.mlp(self.mlp_norm(x_BWD)), self.mlp_post_norm)
        return out_BWD

    def _leave(self, x_BWD: Tensor, norm: nn.Module) -> Tensor:
        """Norm and dropout of what is added, where there are any: modules that do nothing take time in decoding."""
        if self.has_post_norms:
            x_BWD = norm(x_BWD)
        return self.dropout(x_BWD) if self.training else x_BWD


class Decoder(nn.Module):
    """The language model; `embed`, `forward` and `logits` are apart, so that media can enter between them."""

    def __init__(self, config: DecoderConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(vocab_size, config.width)
        self.positions = nn.Embedding(config.context, config.width) if config.position == "learned" else None
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.depth))
        self.norm = make_norm(config, config.width)
        self.head = nn.Linear(config.width, vocab_size, bias=False)
        self._initialise()
        if config.tied:
            self.head.weight = self.embedding.weight

    def _initialise(self) -> None:
        std = self.config.width**-0.5
        nn.init.normal_(self.embedding.weight, std=std)
        nn.init.normal_(self.head.weight, std=std if self.config.tied else 0.1 * std)
        if self.positions is not None:
            nn.init.normal_(self.positions.weight, std=0.1 * std)
        for block in self.blocks:
            assert isinstance(block, Block)
            for layer in (m for m in block.modules() if isinstance(m, nn.Linear)):
                nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
            if self.config.zero_init:
                nn.init.zeros_(block.attention.out.weight)
                nn.init.zeros_(block.mlp.down.weight)

    def embed(self, ids_BT: Tensor) -> Tensor:
        """Token embeddings (B, T, D), positions not yet added."""
        x_BTD: Tensor = self.embedding(ids_BT)
        if self.config.scaled_embedding:  # by a number of the weights' own precision, as Gemma was trained
            x_BTD = x_BTD * torch.tensor(self.config.width**0.5, dtype=x_BTD.dtype)
        return x_BTD

    def forward(
        self,
        x_BTD: Tensor,
        positions_BT: Tensor,
        attention_mask: Tensor | None = None,
        previous_BT: Tensor | None = None,
        cache: KVCache | None = None,
        output_positions_BW: Tensor | None = None,
    ) -> Tensor:
        """Hidden states (B, T, D) after the last norm, or (B, W, D) of the wanted tokens.

        Args:
            x_BTD: embeddings.
            positions_BT: place of each token in its text.
            attention_mask: bool (B, 1, T, S), True where a query may see a key; None is causal attention within x_BTD.
            previous_BT: index of the token before each one, -1 for none; None if it is the one to the left.
            cache: keys and values so far; the new ones go to the slots `positions_BT`.
            output_positions_BW: indexes of the tokens whose states are wanted; the last layer computes no others.
        """
        rope = None
        if self.positions is not None:
            x_BTD = x_BTD + self.positions(positions_BT)
        else:
            config = self.config
            rope = rope_tables(positions_BT, config.num_per_head, config.rope_theta, config.rope_scaling)
        reads_cache = cache is not None and attention_mask is not None
        window_mask = self._window_mask(positions_BT, attention_mask, reads_cache)
        if reads_cache and self.config.attention_softcap is None:
            attention_mask, window_mask = _as_bias(attention_mask, x_BTD.dtype, window_mask)
        shared = AttentionInputs(rope, attention_mask, window_mask, previous_BT, cache, reads_cache, positions_BT)
        for block in self.blocks[:-1]:
            x_BTD = block(x_BTD, shared)
        x_BTD = self.blocks[-1](x_BTD, shared if output_positions_BW is None else shared.only(output_positions_BW))
        out_BTD: Tensor = self.norm(x_BTD)
        return out_BTD

    def _window_mask(self, positions_BT: Tensor, attention_mask: Tensor | None, reads_cache: bool) -> Tensor | None:
        """What a query may see within the window; distances are those in its text, not in its row."""
        window, length = (
            self.config.window,
            positions_BT.shape[1] if attention_mask is None else attention_mask.shape[-1],
        )
        if window is None or length <= window:
            return attention_mask
        slots_S = torch.arange(length, device=positions_BT.device)
        keys_BS = slots_S.expand(len(positions_BT), -1) if reads_cache else positions_BT
        is_near = ((positions_BT[:, :, None] - keys_BS[:, None]).abs() < window)[:, None]
        return is_near & (slots_S <= slots_S[:, None] if attention_mask is None else attention_mask)

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Logits over the vocabulary in float32: bf16 keeps 8 bits, too few for a softmax over it."""
        logits_BTV: Tensor = self.head(hidden_BTD).float()
        softcap = self.config.logit_softcap
        return logits_BTV if softcap is None else softcap * torch.tanh(logits_BTV / softcap)

    def new_cache(self, rows: int, size: int) -> KVCache:
        """An empty cache for `rows` texts of up to `size` tokens."""
        config, weight = self.config, self.embedding.weight

        def stores(count: int, *shape: int) -> list[Tensor]:
            return [torch.zeros(shape, device=weight.device, dtype=weight.dtype) for _ in range(count)]

        shape = (rows, config.num_kv_heads, size, config.num_per_head)
        token_shift_state = stores(config.depth if config.token_shift else 0, rows, size, config.width)
        lengths_B = torch.zeros(rows, dtype=torch.long, device=weight.device)
        return KVCache(stores(config.depth, *shape), stores(config.depth, *shape), token_shift_state, lengths_B)


def _as_bias(attention_mask: Tensor | None, dtype: torch.dtype, window_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """What is added to the scores for two masks, once for all layers, each of which would else compute it again."""
    assert attention_mask is not None
    assert window_mask is not None
    bias = torch.zeros(attention_mask.shape, dtype=dtype, device=attention_mask.device).masked_fill_(
        ~attention_mask, -torch.inf
    )
    if window_mask is attention_mask:
        return bias, bias
    return bias, torch.zeros_like(bias).masked_fill_(~window_mask, -torch.inf)


def cached_attention_mask(positions_BT: Tensor, size: int) -> Tensor:
    """Bool (B, 1, T, S): each new token sees the slots up to its own position."""
    slots_S = torch.arange(size, device=positions_BT.device)
    return (slots_S <= positions_BT[:, :, None])[:, None]
