"""The parts of a decoder block: norms, rotary positions, attention over a cache, feed-forward.

Shape letters: B rows, T tokens, S cached tokens, H heads, K key heads, E width of a head, D width of the model.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from mmgpt.config import PretrainedConfig


class DecoderConfig(PretrainedConfig):
    """A decoder language model; the switches cover the Llama and GPT-2 families and what learns fast from scratch."""

    width: PositiveInt = 768
    depth: PositiveInt = 12
    heads: PositiveInt = 12
    kv_heads: PositiveInt | None = None  # grouped queries (arXiv:2305.13245); as many as heads if not given
    head_width: PositiveInt | None = None  # width / heads if not given
    inner: PositiveInt | None = None  # width of the feed-forward; by default what gives 8 width^2 parameters
    context: PositiveInt = 1024  # the most tokens a row may take
    norm: Literal["rms", "layer"] = "rms"
    norm_scale: bool = True  # learned scales (and shifts, for layer) in norms
    norm_eps: PositiveFloat = 1e-6
    mlp: Literal["swiglu", "gelu", "relu2"] = "swiglu"  # gelu is the tanh form; relu2: arXiv:2109.08668
    position: Literal["rope", "learned"] = "rope"
    rope_theta: PositiveFloat = 10_000.0
    token_shift: bool = False  # each channel of attention's input mixes in a learned share of the token before
    qk_norm: bool = False  # a norm of every head's queries and keys too (arXiv:2302.05442)
    bias: bool = False
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
            raise ValueError(f"head width {self.num_per_head} is odd; rotary positions turn pairs")
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
        return self.inner or (round(self.width * 8 / 3 / 32) * 32 if self.mlp == "swiglu" else 4 * self.width)


def make_norm(config: DecoderConfig, width: int) -> nn.Module:
    """The norm that a config asks for."""
    if config.norm == "rms":
        return nn.RMSNorm(width, eps=config.norm_eps, elementwise_affine=config.norm_scale)
    return nn.LayerNorm(width, eps=config.norm_eps, elementwise_affine=config.norm_scale, bias=config.bias)


def rope_tables(positions_BT: Tensor, width: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines (B, T, 1, E/2) of rotary positions (Su et al. 2021, arXiv:2104.09864)."""
    frequencies_F = theta ** (-torch.arange(0, width, 2, device=positions_BT.device, dtype=torch.float32) / width)
    angles_BT1F = positions_BT[..., None, None].float() * frequencies_F
    return angles_BT1F.cos(), angles_BT1F.sin()


def rotate(x_BTHE: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair (e, e + E/2), as in Llama, by its position's angle."""
    cos, sin = (table.to(x_BTHE.dtype) for table in tables)
    left, right = x_BTHE.chunk(2, dim=-1)
    turned_left = torch.addcmul(left * cos, right, sin, value=-1)
    turned_right = torch.addcmul(right * cos, left, sin)
    return torch.cat((turned_left, turned_right), dim=-1)


class KVCache:
    """Keys and values of the tokens so far, in room for `size` tokens a row.

    A row's next token goes to slot `lengths_B[row]`, so rows of any length share a batch without left padding.
    """

    def __init__(self, config: DecoderConfig, rows: int, size: int, device: torch.device, dtype: torch.dtype) -> None:
        shape = (config.depth, rows, config.num_kv_heads, size, config.num_per_head)
        self.keys_LBKSE = torch.zeros(shape, device=device, dtype=dtype)
        self.values_LBKSE = torch.zeros(shape, device=device, dtype=dtype)
        self.last_LBD = torch.zeros(config.depth, rows, config.width, device=device, dtype=dtype)
        self.lengths_B = torch.zeros(rows, dtype=torch.long, device=device)
        self.coming_B = torch.zeros(
            rows, dtype=torch.long, device=device
        )  # tokens of the pass under way, without padding
        self.size = size

    def write(self, layer: int, keys_BKTE: Tensor, values_BKTE: Tensor, slots_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values at `slots_BT`; returns the layer's whole (B, K, S, E) store."""
        slots_BKTE = slots_BT[:, None, :, None].expand_as(keys_BKTE)
        keys = self.keys_LBKSE[layer].scatter_(2, slots_BKTE, keys_BKTE.to(self.keys_LBKSE.dtype))
        values = self.values_LBKSE[layer].scatter_(2, slots_BKTE, values_BKTE.to(self.values_LBKSE.dtype))
        return keys, values

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these."""
        self.keys_LBKSE, self.values_LBKSE = self.keys_LBKSE[:, rows], self.values_LBKSE[:, rows]
        self.last_LBD, self.coming_B = self.last_LBD[:, rows], self.coming_B[rows]
        self.lengths_B = self.lengths_B[rows]


@dataclass(frozen=True)
class PassInputs:
    """What every layer of one pass shares.

    Attributes:
        rope: cosines and sines, None with learned positions.
        visible: bool (B, 1, T, S), True where a query may see a key; None for plain causal attention.
        previous_BT: index of the token before each one, -1 for none; None if it is the one to the left.
        cache: keys and values so far.
        slots_BT: where in the cache the new ones go.
        wanted_BW: indexes of the tokens whose outputs are wanted, None for all; the others only give keys and values.
    """

    rope: tuple[Tensor, Tensor] | None
    visible: Tensor | None
    previous_BT: Tensor | None
    cache: KVCache | None
    slots_BT: Tensor
    wanted_BW: Tensor | None = None

    def only(self, wanted_BW: Tensor) -> "PassInputs":
        """The same for a layer of which only some tokens' outputs are wanted."""
        if self.visible is None:
            places_T = torch.arange(self.slots_BT.shape[1], device=wanted_BW.device)
            visible = (places_T <= wanted_BW[..., None])[:, None]
        else:
            visible = take(self.visible[:, 0], wanted_BW)[:, None]
        return replace(self, visible=visible, wanted_BW=wanted_BW)


def take(x_BTD: Tensor, wanted_BW: Tensor | None) -> Tensor:
    """The tokens (B, W, D) at some indexes, or all of them."""
    return x_BTD if wanted_BW is None else x_BTD[torch.arange(len(x_BTD), device=x_BTD.device)[:, None], wanted_BW]


class TokenShift(nn.Module):
    """Every token's channels mixed with those of the token before (Peng et al. 2023, arXiv:2305.13048).

    One layer of it does what otherwise takes an attention head that looks back by one, which forms late in training.
    """

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.share_D = nn.Parameter(torch.linspace(0, 0.5, config.width))

    def forward(self, x_BTD: Tensor, shared: PassInputs) -> Tensor:
        """Mix each token with the one that `previous_BT` points at, or the one to its left or in the cache."""
        cache, previous_BT = shared.cache, shared.previous_BT
        if cache is not None:
            before_BTD = torch.cat((cache.last_LBD[self.layer][:, None], x_BTD[:, :-1]), dim=1)
            cache.last_LBD[self.layer] = x_BTD[torch.arange(len(x_BTD), device=x_BTD.device), cache.coming_B - 1]
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
        inner, narrow = config.heads * config.num_per_head, config.num_kv_heads * config.num_per_head
        self.query = nn.Linear(config.width, inner, bias=config.bias)
        self.key = nn.Linear(config.width, narrow, bias=config.bias)
        self.value = nn.Linear(config.width, narrow, bias=config.bias)
        self.out = nn.Linear(inner, config.width, bias=config.bias)
        self.query_norm = make_norm(config, config.num_per_head) if config.qk_norm else nn.Identity()
        self.key_norm = make_norm(config, config.num_per_head) if config.qk_norm else nn.Identity()

    def forward(self, x_BTD: Tensor, shared: PassInputs) -> Tensor:
        """Attend among the tokens, and to what the cache holds: (B, W, D) for the wanted tokens."""
        rope, visible, cache = shared.rope, shared.visible, shared.cache
        width = self.config.num_per_head
        query = self.query_norm(rearrange(self.query(take(x_BTD, shared.wanted_BW)), "b t (h e) -> b t h e", e=width))
        key = self.key_norm(rearrange(self.key(x_BTD), "b t (k e) -> b t k e", e=width))
        value = rearrange(self.value(x_BTD), "b t (k e) -> b k t e", e=width)
        if rope is not None:
            query = rotate(query, (take(rope[0], shared.wanted_BW), take(rope[1], shared.wanted_BW)))
            key = rotate(key, rope)
        query, key = query.transpose(1, 2), key.transpose(1, 2)
        if cache is not None:
            keys, values = cache.write(self.layer, key, value, shared.slots_BT)
            if visible is not None:
                key, value = (
                    keys[:, :, : visible.shape[-1]].to(query.dtype),
                    values[:, :, : visible.shape[-1]].to(query.dtype),
                )
        grouped = self.config.num_kv_heads < self.config.heads
        dropout = self.config.dropout if self.training else 0.0
        mixed_BHTE = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=visible,
            is_causal=visible is None,
            enable_gqa=grouped,
            dropout_p=dropout,
        )
        out_BTD: Tensor = self.out(rearrange(mixed_BHTE, "b h t e -> b t (h e)"))
        return out_BTD


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
    """Two linear layers, gated for SwiGLU (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.kind = config.mlp
        self.up = nn.Linear(config.width, config.num_inner, bias=config.bias)
        if config.mlp == "swiglu":
            self.gate = nn.Linear(config.width, config.num_inner, bias=config.bias)
        self.down = nn.Linear(config.num_inner, config.width, bias=config.bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Transform each token alone."""
        if self.kind == "swiglu":
            inner = F.silu(self.gate(x_BTD)) * self.up(x_BTD)
        elif self.kind == "gelu":
            inner = F.gelu(self.up(x_BTD), approximate="tanh")
        else:
            inner = _SquaredReLU.apply(self.up(x_BTD))[0]
        out_BTD: Tensor = self.down(inner)
        return out_BTD
