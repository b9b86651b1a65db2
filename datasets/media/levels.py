"""Pixels of any type as 8-bit levels: which number is white, and an error where that cannot be told.

Shape letters: H W pixels, C channels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mmgpt.datasets.media.medium import MediaError

BYTE, WORD = 255, 65535
# A picture that fills no more than a sixteenth of a scale is all but black on it, and is likelier to be on another one:
# 12 bits in uint16, or floats of a range of their own.
FILLED = 16
# Resampling by cubic or Lanczos windows leaves about 1.13 beside an edge from 0 to 1; nothing else ends so near to 1.
OVERSHOOT = 1.25


class _Extent(NamedTuple):
    """The lowest number, the highest of the colours, and the highest of the alpha channel where there is one."""

    lowest: float
    highest: float
    alpha: float | None


def white_of(name: str, arrays: Sequence[np.ndarray]) -> float:
    """The number that is white in pixels (H, W) or (H, W, C) of one type and scale: the frames of a video, say.

    uint8 has it at 255, uint16 at 65535, bool at True. Wider integers are 8-bit levels, above 255 16-bit ones. Floats
    have it at 1, or at 255 where the highest is 16 or more.

    Raises:
        MediaError: if the type holds no pixels, or the numbers fit no scale or two.
    """
    dtype = arrays[0].dtype
    if dtype.kind not in "buif" or dtype == np.int8:
        raise MediaError(f"{name}: {dtype} is no type of pixels; give uint8 in 0 to 255 or floats in 0 to 1")
    if dtype.kind == "f":
        _check_finite(name, arrays)
    if dtype == np.bool_:
        return 1
    extent = _extent_of(arrays)
    highest = max(extent.highest, extent.alpha or 0)
    scales = _scales_of(dtype)
    white = next((scale for scale in scales if highest <= _most(scale, dtype)), scales[-1])
    ends = " or ".join(f"0 to {scale}" for scale in (scales if dtype.kind == "f" else (white,)))
    seen = f"{dtype} values from {extent.lowest:g} to {highest:g}"
    if extent.lowest < (-white / BYTE / 2 if dtype.kind == "f" else 0):
        undo = "; where they are normalised, undo that: x * std + mean" if dtype.kind == "f" else ""
        raise MediaError(f"{name}: {seen}, which must lie in {ends}; scale them{undo}")
    if highest > _most(white, dtype):
        raise MediaError(f"{name}: {seen}, which must lie in {ends}; scale them")
    _check_filled(name, dtype, extent, white)
    return white


def to_levels(array: np.ndarray, white: float) -> np.ndarray:
    """Pixels as uint8, scaled so that `white` is 255."""
    if array.dtype == np.uint8:
        return array
    return np.clip(np.round(array.astype(np.float32) * (BYTE / white)), 0, BYTE).astype(np.uint8)


def _scales_of(dtype: np.dtype) -> tuple[int, ...]:
    if dtype.kind == "f":
        return 1, BYTE
    return {"uint8": (BYTE,), "int16": (BYTE,), "uint16": (WORD,)}.get(dtype.name, (BYTE, WORD))


def _most(scale: int, dtype: np.dtype) -> float:
    """The highest number that a scale takes; floats that round to its end belong to it."""
    return scale if dtype.kind != "f" else OVERSHOOT if scale == 1 else scale + 0.5


def _check_finite(name: str, arrays: Sequence[np.ndarray]) -> None:
    strange = sum(int((~np.isfinite(array)).sum()) for array in arrays)
    if strange:
        total = sum(array.size for array in arrays)
        raise MediaError(f"{name}: {strange:,} of {total:,} values are not finite; replace them")


def _extent_of(arrays: Sequence[np.ndarray]) -> _Extent:
    has_alpha = arrays[0].ndim == 3 and arrays[0].shape[2] in (2, 4)
    colours = [array[..., :-1] for array in arrays] if has_alpha else arrays
    alphas = [float(array[..., -1].max()) for array in arrays] if has_alpha else []
    lowest = min(float(array.min()) for array in arrays)
    return _Extent(lowest, max(float(array.max()) for array in colours), max(alphas, default=None))


def _check_filled(name: str, dtype: np.dtype, extent: _Extent, white: float) -> None:
    """Refuse colours or an alpha channel that are likelier to be on another scale; all 0 is black on each."""
    top = extent.highest
    is_split = dtype.kind == "f" and white == BYTE and extent.highest <= OVERSHOOT < (extent.alpha or 0)
    if extent.alpha and (extent.alpha <= white / FILLED or is_split):
        raise MediaError(
            f"{name}: its alpha channel reaches {extent.alpha:g}, its colours {top:g}: with {white:g} for white and "
            "opaque it would be blank; give all channels one scale, or leave the last one out"
        )
    if not top or dtype == np.uint8:
        return
    if dtype.kind != "f" and white == BYTE and top == 1:
        raise MediaError(
            f"{name}: {dtype} values of 0 and 1 alone, which as levels would be black; "
            "give a mask as bool, or times 255"
        )
    if white == WORD and top <= WORD / FILLED:
        raise MediaError(
            f"{name}: {dtype} values up to {top:g}, too dark to be sure that 65535 is white (8-bit levels must lie in "
            "0 to 255); give floats, array / 1023 (10 bits), / 4095 (12) or / 65535 (16), or 8-bit levels as uint8"
        )
    if dtype.kind == "f" and white == BYTE and top < FILLED:
        raise MediaError(
            f"{name}: {dtype} values up to {top:g}: over {OVERSHOOT:g}, as no resampling of 0 to 1 leaves it, and "
            f"under {FILLED}, too dark to be sure that 255 is white; divide by what white is, and clip to 0 to 1"
        )
