"""The parts of a decoder block: norms, attention, token shift, feed-forward.

Shape letters: B rows, T tokens, S cached tokens, H heads, K key heads, E width of a head, D width of the model.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from mmgpt.config import PretrainedConfig
from mmgpt.model.cache import KVCache
from mmgpt.model.rope import RopeScaling, rotate


class DecoderConfig(PretrainedConfig):
    """A decoder language model; its switches cover the families of `FAMILIES` and what learns fast from scratch."""

    renamed: ClassVar[Mapping[str, str]] = {
        "inner": "ffn_width",
        "score_width": "attention_scale_width",
        "attention_cap": "attention_softcap",
        "logit_cap": "logit_softcap",
    }
    family: str | None = None  # whose names and files the decoder has outside of mmgpt, such as qwen2
    width: PositiveInt = 768
    depth: PositiveInt = 12
    heads: PositiveInt = 12
    kv_heads: PositiveInt | None = None  # grouped queries (arXiv:2305.13245); as many as heads if not given
    head_width: PositiveInt | None = None  # width / heads if not given
    ffn_width: PositiveInt | None = None  # of the feed-forward; by default what gives 8 width^2 parameters
    context: PositiveInt = 1024  # the most tokens a row may take
    norm: Literal["rms", "rms_plus_one", "layer"] = "rms"  # rms_plus_one scales by 1 + weight, as Gemma does
    norm_scale: bool = True  # learned scales (and shifts, for layer) in norms
    norm_eps: PositiveFloat = 1e-6
    post_norms: bool = False  # what attention and feed-forward give is normed too, before it is added
    mlp: Literal["swiglu", "geglu", "gelu", "relu2"] = "swiglu"  # gelu is the tanh form; relu2: arXiv:2109.08668
    position: Literal["rope", "learned"] = "rope"
    rope_theta: PositiveFloat = 10_000.0
    rope_scaling: RopeScaling | None = None  # how rotary positions were stretched to longer texts
    unrotated_layers: list[NonNegativeInt] = []  # layers without rotary positions (arXiv:2305.19466), counted from 0
    window: PositiveInt | None = None  # tokens that a token sees, itself included; all before it if not given
    global_layers: list[NonNegativeInt] = []  # layers without the window, counted from 0
    attention_scale_width: PositiveFloat | None = (
        None  # scores are divided by its square root; a head's width if not given
    )
    attention_softcap: PositiveFloat | None = (
        None  # scores stay within +-cap, by cap tanh(score / cap) (arXiv:2408.00118)
    )
    logit_softcap: PositiveFloat | None = None  # the same for the output
    scaled_embedding: bool = False  # token embeddings are multiplied by sqrt(width)
    token_shift: bool = False  # each channel of attention's input mixes in a learned share of the token before
    qk_norm: bool = False  # a norm of every head's queries and keys too (arXiv:2302.05442)
    bias: bool | Literal["qkv", "attention"] = False  # of all linear layers and norms, or of some layers only
    tied: bool = False  # the output layer shares the embedding
    zero_init: bool = True  # blocks begin as the identity: their output projections start at zero
    dropout: NonNegativeFloat = 0.0

    @model_validator(mode="after")
    def _heads_agree(self) -> Self:
        if self.head_width is None and self.width % self.heads:
            raise ValueError(f"heads={self.heads} does not divide width={self.width}; change one or set head_width")
        if self.heads % self.num_kv_heads:
            raise ValueError(f"kv_heads={self.kv_heads} does not divide heads={self.heads}")
        if self.position == "rope" and self.num_per_head % 2:
            raise ValueError(f"head_width: head width {self.num_per_head} is odd; rotary positions turn pairs")
        return self

    @model_validator(mode="after")
    def _layers_exist(self) -> Self:
        for name in ("unrotated_layers", "global_layers"):
            beyond = [layer for layer in getattr(self, name) if layer >= self.depth]
            if beyond:
                raise ValueError(f"{name} holds {beyond[0]}, but depth={self.depth}; layers are counted from 0")
        return self

    @property
    def num_kv_heads(self) -> int:
        """Key and value heads."""
        return self.kv_heads or self.heads

    @property
    def num_per_head(self) -> int:
        """Channels of one head."""
        return self.head_width or self.width // self.heads

    @property
    def num_inner(self) -> int:
        """Channels inside the feed-forward."""
        return self.ffn_width or (round(self.width * 8 / 3 / 32) * 32 if self.is_gated else 4 * self.width)

    @property
    def is_gated(self) -> bool:
        """The feed-forward has a gate."""
        return self.mlp in ("swiglu", "geglu")

    def is_local(self, layer: int) -> bool:
        """The layer has a window."""
        return self.window is not None and layer not in self.global_layers


class PlusOneRMSNorm(nn.RMSNorm):
    """Scales by 1 + weight, in float32 up to the end, as Gemma does."""

    def reset_parameters(self) -> None:
        """Begin with a scale of 1."""
        nn.init.zeros_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Norm over the last axis."""
        normed = F.rms_norm(x.float(), tuple(self.normalized_shape), 1.0 + self.weight.float(), self.eps)
        return normed.type_as(x)


def make_norm(config: DecoderConfig, width: int) -> nn.Module:
    """The norm that a config asks for."""
    if config.norm == "layer":
        return nn.LayerNorm(width, eps=config.norm_eps, elementwise_affine=config.norm_scale, bias=config.bias is True)
    kind = PlusOneRMSNorm if config.norm == "rms_plus_one" and config.norm_scale else nn.RMSNorm
    return kind(width, eps=config.norm_eps, elementwise_affine=config.norm_scale)


@dataclass(frozen=True)
class AttentionInputs:
    """What every layer of one pass shares.

    Attributes:
        rope: cosines and sines, None with learned positions.
        attention_mask: bool (B, 1, T, S), True where a query may see a key; None for plain causal attention.
        window_mask: the same within the window, for the layers that have one.
        previous_BT: index of the token before each one, -1 for none; None if it is the one to the left.
        cache: keys and values so far.
        reads_cache: the keys are all of the cache's first S; else they are those of the new tokens.
        slots_BT: where in the cache the new ones go.
        output_positions_BW: indexes of the tokens whose outputs are wanted, None for all; others give keys and values.
    """

    rope: tuple[Tensor, Tensor] | None
    attention_mask: Tensor | None
    window_mask: Tensor | None
    previous_BT: Tensor | None
    cache: KVCache | None
    reads_cache: bool
    slots_BT: Tensor
    output_positions_BW: Tensor | None = None

    def only(self, output_positions_BW: Tensor) -> "AttentionInputs":
        """The same for a layer of which only some tokens' outputs are wanted."""

        def rows(mask: Tensor | None) -> Tensor:
            if mask is not None:
                return gather_tokens(mask[:, 0], output_positions_BW)[:, None]
            places_T = torch.arange(self.slots_BT.shape[1], device=output_positions_BW.device)
            return (places_T <= output_positions_BW[..., None])[:, None]

        attention_mask = rows(self.attention_mask)
        window_mask = attention_mask if self.window_mask is self.attention_mask else rows(self.window_mask)
        return replace(
            self, attention_mask=attention_mask, window_mask=window_mask, output_positions_BW=output_positions_BW
        )


def gather_tokens(x_BTD: Tensor, output_positions_BW: Tensor | None) -> Tensor:
    """The tokens (B, W, D) at some indexes, or all of them."""
    return (
        x_BTD
        if output_positions_BW is None
        else x_BTD[torch.arange(len(x_BTD), device=x_BTD.device)[:, None], output_positions_BW]
    )


class TokenShift(nn.Module):
    """Every token's channels mixed with those of the token before (Peng et al. 2023, arXiv:2305.13048).

    One layer of it does what otherwise takes an attention head that looks back by one, which forms late in training.
    """

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.share_D = nn.Parameter(torch.linspace(0, 0.5, config.width))

    def forward(self, x_BTD: Tensor, shared: AttentionInputs) -> Tensor:
        """Mix each token with the one that `previous_BT` points at, or the one to its left or in the cache."""
        cache, previous_BT = shared.cache, shared.previous_BT
        if cache is not None:
            before_BTD = cache.shift(self.layer, x_BTD, shared.slots_BT)
        else:
            padded_BTD = F.pad(x_BTD, (0, 0, 1, 0))
            if previous_BT is None:
                before_BTD = padded_BTD[:, :-1]
            else:
                before_BTD = padded_BTD.gather(1, (previous_BT + 1)[..., None].expand_as(x_BTD))
        return torch.lerp(x_BTD, before_BTD, self.share_D.to(x_BTD.dtype))


class Attention(nn.Module):
    """Grouped-query attention."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        self.is_local, self.is_rotated = config.is_local(layer), layer not in config.unrotated_layers
        enters, leaves = config.bias is not False, config.bias in (True, "attention")
        inner, narrow = config.heads * config.num_per_head, config.num_kv_heads * config.num_per_head
        self.query = nn.Linear(config.width, inner, bias=enters)
        self.key = nn.Linear(config.width, narrow, bias=enters)
        self.value = nn.Linear(config.width, narrow, bias=enters)
        self.out = nn.Linear(inner, config.width, bias=leaves)
        self.query_norm = make_norm(config, config.num_per_head) if config.qk_norm else nn.Identity()
        self.key_norm = make_norm(config, config.num_per_head) if config.qk_norm else nn.Identity()

    def forward(self, x_BTD: Tensor, shared: AttentionInputs) -> Tensor:
        """Attend among the tokens, and to what the cache holds: (B, W, D) for the wanted tokens."""
        rope, cache = shared.rope if self.is_rotated else None, shared.cache
        attention_mask = shared.window_mask if self.is_local else shared.attention_mask
        width = self.config.num_per_head
        # plain views: a pattern of einops takes as long as a product of one token
        query = self.query(gather_tokens(x_BTD, shared.output_positions_BW)).unflatten(-1, (-1, width))
        key = self.key(x_BTD).unflatten(-1, (-1, width))
        value = self.value(x_BTD).unflatten(-1, (-1, width)).transpose(1, 2)
        if self.config.qk_norm:
            query, key = self.query_norm(query), self.key_norm(key)
        if rope is not None:
            query = rotate(
                query,
                (
                    gather_tokens(rope[0], shared.output_positions_BW),
                    gather_tokens(rope[1], shared.output_positions_BW),
                ),
            )
            key = rotate(key, rope)
        query, key = query.transpose(1, 2), key.transpose(1, 2)
        if cache is not None:
            keys, values = cache.write(self.layer, key, value, shared.slots_BT)
            if shared.reads_cache:
                assert attention_mask is not None
                size = attention_mask.shape[-1]
                key, value = keys[:, :, :size].to(query.dtype), values[:, :, :size].to(query.dtype)
        dropout = self.config.dropout if self.training else 0.0
        scale = (self.config.attention_scale_width or width) ** -0.5
        if self.config.attention_softcap is not None:
            mixed_BHTE = capped_attention(
                query, key, value, attention_mask, scale, self.config.attention_softcap, dropout
            )
        else:
            mixed_BHTE = F.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=attention_mask,
                is_causal=attention_mask is None,
                enable_gqa=self.config.num_kv_heads < self.config.heads,
                scale=scale,
                dropout_p=dropout,
            )
        out_BTD: Tensor = self.out(mixed_BHTE.transpose(1, 2).flatten(2))
        return out_BTD


def capped_attention(
    query_BHTE: Tensor,
    key_BKSE: Tensor,
    value_BKSE: Tensor,
    attention_mask: Tensor | None,
    scale: float,
    softcap: float,
    dropout: float,
) -> Tensor:
    """Attention (B, H, T, E) with softly capped scores, which no fused kernel of torch has; softmax in float32."""
    query_BKGTE = rearrange(query_BHTE, "b (k g) t e -> b k g t e", k=key_BKSE.shape[1])
    scores_BKGTS = (query_BKGTE @ key_BKSE[:, :, None].transpose(-1, -2)).float() * scale
    scores_BKGTS = softcap * torch.tanh(scores_BKGTS / softcap)
    if attention_mask is None:
        attention_mask = torch.ones(scores_BKGTS.shape[-2:], dtype=torch.bool, device=scores_BKGTS.device).tril()[
            None, None
        ]
    weights_BKGTS = scores_BKGTS.masked_fill(~attention_mask[:, :, None], -torch.inf).softmax(dim=-1)
    mixed_BKGTE = F.dropout(weights_BKGTS, dropout).to(value_BKSE.dtype) @ value_BKSE[:, :, None]
    return rearrange(mixed_BKGTE, "b k g t e -> b (k g) t e")


class _SquaredReLU(torch.autograd.Function):
    """relu(x)^2 with one saved tensor and two passes over memory backward, where autograd's own takes five."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        positive = F.relu(x)
        return positive * positive, positive

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        return (grads[0] * positive).mul_(2)


class FeedForward(nn.Module):
    """Two linear layers, gated for SwiGLU and GEGLU (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.kind = config.mlp
        bias = config.bias is True
        self.up = nn.Linear(config.width, config.num_inner, bias=bias)
        if config.is_gated:
            self.gate = nn.Linear(config.width, config.num_inner, bias=bias)
        self.down = nn.Linear(config.num_inner, config.width, bias=bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Transform each token alone."""
        if self.kind == "swiglu":
            inner = F.silu(self.gate(x_BTD)) * self.up(x_BTD)
        elif self.kind == "geglu":
            inner = F.gelu(self.gate(x_BTD), approximate="tanh") * self.up(x_BTD)
        elif self.kind == "gelu":
            inner = F.gelu(self.up(x_BTD), approximate="tanh")
        else:
            inner = _SquaredReLU.apply(self.up(x_BTD))[0]
        out_BTD: Tensor = self.down(inner)
        return out_BTD
