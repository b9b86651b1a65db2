"""Linear layers with weights of 8 or 4 bits, for inference.

On a CPU a row's result does not depend on the rows beside it. Products of int8 are exact, on any processor: by torch's
integer kernels where it has units for int8, elsewhere in float32, which holds integers up to 2^24.

- `int8`: a scale a row of the weight. Inputs are written as two int8 digits (16 bits a number, a scale a token), whose
  products with the weights are exact integers.
- `int8-dynamic`: the same with one digit, so that inputs are rounded to 8 bits too: the fastest for long prompts.
- `int4`: scale and zero for 32 inputs of a row (as tinygemm has it), inputs and outputs in bfloat16.

torchao 0.18 makes int8 weights within two steps of these (`tests/model/test_quantize.py`), but on a CPU it casts whole
weights for every product, and its tinygemm int4 does not run there.

Shape letters: N tokens, I inputs, O outputs, G groups of inputs.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmgpt.config import Config, UserError, did_you_mean
from mmgpt.files import first_of
from mmgpt.processor import has_int8_units
from mmgpt.weight_names import names_part

Scheme = Literal["int8", "int4", "int8-dynamic"]
BLOCKS = ("decoder.blocks.*",)
GROUP = 32  # inputs that share a scale in int4
OUTPUTS = 16  # int4: the kernel takes so many rows of a weight at a time
STEPS = 127  # int8 on either side of zero
EXACT = 2**24 // STEPS**2  # products of two such numbers whose sum float32 holds exactly, in any order
SMALLEST_SCALE = torch.finfo(torch.float32).tiny  # stands for the scale of a row of zeros


class Quantization(Config):
    """Which layers hold their weights in few bits, and how."""

    scheme: Scheme
    layers: list[str] = Field(default=list(BLOCKS), min_length=1)  # globs over linear layers


class QuantizedLinear(nn.Module):
    """A linear layer whose weight is integers and scales; it gives no gradients."""

    values: Tensor  # int8 (O, I); for int4 two a byte, uint8 (O, I / 2), the first in the lower half
    scales: Tensor  # float32 (O,); for int4 bfloat16 (G, O)
    zeros: Tensor  # for int4 alone: what a value of 8 stands for, bfloat16 (G, O)
    bias: Tensor | None

    def __init__(self, linear: nn.Linear, scheme: Scheme) -> None:
        """A layer of the size of another, with nothing in it yet."""
        super().__init__()
        self.in_features, self.out_features, self.scheme = linear.in_features, linear.out_features, scheme
        self.dtype = linear.weight.dtype  # of `weight`
        size, groups = (self.out_features, self.in_features), self.in_features // GROUP
        device = linear.weight.device
        if scheme == "int4":
            self.register_buffer("values", torch.empty(size[0], size[1] // 2, dtype=torch.uint8, device=device))
            for name in ("scales", "zeros"):
                self.register_buffer(name, torch.empty(groups, size[0], dtype=torch.bfloat16, device=device))
        else:
            self.register_buffer("values", torch.empty(size, dtype=torch.int8, device=device))
            self.register_buffer("scales", torch.empty(size[0], dtype=torch.float32, device=device))
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())
        self._packed: tuple[Tensor, Tensor, Tensor] | None = None  # values they came of, and what int4's kernel reads

    @torch.no_grad()
    def fill(self, weight_OI: Tensor) -> None:
        """Take the numbers nearest to a weight."""
        if self.scheme != "int4":
            scales_O = (weight_OI.float().abs().amax(dim=1) / STEPS).clamp_min(SMALLEST_SCALE)
            self.values, self.scales = (weight_OI.float() / scales_O[:, None]).round().to(torch.int8), scales_O
            return
        weight_OGi = weight_OI.float().unflatten(1, (-1, GROUP))
        low_OG, high_OG = weight_OGi.aminmax(dim=2)
        scales_OG = ((high_OG - low_OG) / 15).clamp_min(SMALLEST_SCALE).bfloat16()
        zeros_OG = (low_OG + 8 * scales_OG.float()).bfloat16()  # rounded first: the values make up for it
        steps_OGi = (weight_OGi - zeros_OG[..., None].float()) / scales_OG[..., None].float()
        values_OI = (steps_OGi.round() + 8).clamp(0, 15).to(torch.uint8).flatten(1)
        self.values = values_OI[:, ::2] | (values_OI[:, 1::2] << 4)
        self.scales, self.zeros = scales_OG.T.contiguous(), zeros_OG.T.contiguous()

    @property
    def weight(self) -> Tensor:
        """The weight (O, I) that the numbers stand for, made anew each time."""
        if self.scheme != "int4":
            return (self.values.float() * self.scales[:, None]).to(self.dtype)
        steps_OGi = (self._nibbles().float() - 8).unflatten(1, (-1, GROUP))
        weight_OGi = steps_OGi * self.scales.T[..., None].float() + self.zeros.T[..., None].float()
        return weight_OGi.flatten(1).to(self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply (..., I) to (..., O), in the type of what came in.

        Raises:
            UserError: if gradients are asked for.
        """
        if torch.is_grad_enabled() and x.requires_grad:
            raise UserError(f"{self.scheme} layers give no gradients; take the model before it was quantised")
        if x.device.type != "cpu":
            weight_OI = self.weight.to(x.dtype)
            return F.linear(x, weight_OI, None if self.bias is None else self.bias.to(x.dtype))
        x_NI = x.reshape(-1, self.in_features)
        out_NO = self._int4(x_NI) if self.scheme == "int4" else self._int8(x_NI)
        out_NO = out_NO if self.bias is None else out_NO + self.bias
        return out_NO.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def _int8(self, x_NI: Tensor) -> Tensor:
        scales_N1 = x_NI.float().abs().amax(dim=1, keepdim=True).div_(STEPS).clamp_min_(SMALLEST_SCALE)
        steps_NI = x_NI.float() / scales_N1
        digit_NI = steps_NI.round()
        if self.scheme == "int8-dynamic":
            sums_NO = _product(digit_NI, self.values)
        else:
            lower_NI = (steps_NI - digit_NI).mul_(2 * STEPS).round_()  # from -127 to 127
            sums_NO, lower_NO = _product(torch.cat((digit_NI, lower_NI)), self.values).chunk(2)
            sums_NO = sums_NO.add(lower_NO, alpha=1 / (2 * STEPS))
        return sums_NO.mul_(scales_N1).mul_(self.scales)

    def _int4(self, x_NI: Tensor) -> Tensor:
        if self._packed is None or self._packed[0] is not self.values:  # the kernel's order depends on the processor
            packed = torch._convert_weight_to_int4pack_for_cpu(self._nibbles().int(), 1)
            self._packed = self.values, packed, torch.stack((self.scales, self.zeros), dim=2)
        _, packed, scales_GO2 = self._packed
        return torch._weight_int4pack_mm_for_cpu(x_NI.bfloat16().contiguous(), packed, GROUP, scales_GO2).float()

    def _nibbles(self) -> Tensor:
        return torch.stack((self.values & 15, self.values >> 4), dim=2).flatten(1)


def _product(digits_NI: Tensor, values_OI: Tensor) -> Tensor:
    """The exact sums (N, O), as float32, of integers from -127 to 127 times int8 weights."""
    if has_int8_units(digits_NI.device):
        return torch._int_mm(digits_NI.to(torch.int8), values_OI.T).float()
    pieces = zip(digits_NI.split(EXACT, dim=1), values_OI.split(EXACT, dim=1), strict=True)
    first_NO, *others = (F.linear(digits, values.float()) for digits, values in pieces)
    if not others:
        return first_NO
    return sum((piece_NO.int() for piece_NO in others), first_NO.int()).float()


def pick_scheme(name: str) -> Scheme:
    """The scheme of a name.

    Raises:
        UserError: if it is none of those here.
    """
    for scheme in get_args(Scheme):
        if name == scheme:
            return scheme
    raise UserError(f"quantize {name}: is not known; {did_you_mean(name, get_args(Scheme))}")


def quantize_model(model: nn.Module, quantization: Quantization) -> None:
    """Put layers of few bits in the place of linear ones, one after the other, each with what it holds.

    On the meta device the new layers are empty, to be given numbers that were stored.

    Raises:
        UserError: if a glob names no linear layer, a layer's size does not suit the scheme, or its device does not.
    """
    for name in _targets(model, quantization):
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        layer = QuantizedLinear(linear, quantization.scheme)
        if linear.weight.device.type != "meta":
            check_device(quantization.scheme, linear.weight.device)
            layer.fill(linear.weight)
        model.set_submodule(name, layer)
    model.requires_grad_(False)


def check_device(scheme: Scheme, device: torch.device) -> None:
    """Refuse a device that has no products of a scheme.

    Raises:
        UserError: names it, and what it can run.
    """
    if scheme == "int8-dynamic" and device.type not in ("cpu", "meta"):
        raise UserError(f"quantize int8-dynamic: runs on a cpu, not on {device.type}; take int8, int4 or device cpu")


def check_types(model: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Refuse stored weights that are not of the types that layers of few bits have.

    Raises:
        UserError: names them.
    """
    wrong = [
        f"{name} {weights[name].dtype} instead of {own.dtype}".replace("torch.", "")
        for name, own in numbers_of(model).items()
        if name in weights and weights[name].dtype != own.dtype
    ]
    if wrong:
        raise UserError(
            f"{where}: the weights do not fit the quantization of its config.json ({first_of(wrong)}); "
            "take the config.json they were saved with"
        )


def numbers_of(model: nn.Module) -> dict[str, Tensor]:
    """The integers, scales and zeros of a model's layers of few bits, by name; their types are never changed."""
    return {
        f"{name}.{own}": value
        for name, layer in quantized_layers(model).items()
        for own, value in layer.named_buffers()
        if own != "bias"
    }


def quantized_layers(model: nn.Module) -> dict[str, QuantizedLinear]:
    """A model's layers of few bits, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}


def _targets(model: nn.Module, quantization: Quantization) -> list[str]:
    """The linear layers that the globs name; of a layer's subclasses none, for they read their weights otherwise."""
    linear: dict[str, Any] = {name: one for name, one in model.named_modules() if type(one) is nn.Linear}
    for pattern in quantization.layers:
        if not any(names_part(name, pattern) for name in linear):
            raise UserError(f"quantize: {pattern!r} matches no linear layer; {did_you_mean(pattern, _known(linear))}")
    found = [name for name in linear if any(names_part(name, pattern) for pattern in quantization.layers)]
    misfits = [
        f"{name} ({one.in_features} to {one.out_features})"
        for name, one in linear.items()
        if name in found and (one.in_features % GROUP or one.out_features % OUTPUTS)
    ]
    if quantization.scheme == "int4" and misfits:
        raise UserError(
            f"quantize int4: takes inputs in groups of {GROUP} and outputs of {OUTPUTS}, which do not divide "
            f"{first_of(misfits)}; take int8, or name other layers"
        )
    return found


def _known(names: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """Layers and what they are in, with `*` for numbers."""
    starred = [".".join("*" if part.isdecimal() else part for part in name.split(".")) for name in names]
    return sorted({name.rsplit(".", depth)[0] for name in starred for depth in range(3)})
