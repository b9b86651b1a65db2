"""A decoded sound: mono samples in -1 to 1; what makes them of arrays of any type, and what is refused.

Shape letters: S samples, C channels.
"""

from typing import NamedTuple

import numpy as np

from mmgpt.datasets.media.medium import Limits, MediaError

LOUDEST = 1e12  # a sample beyond it is damage, and its square would overflow float32
FULL_SCALE = {"int8": 2.0**7, "uint8": 2.0**7, "int16": 2.0**15, "int32": 2.0**31}  # as WAV and AIFF files have them
MOST_24_BITS = 2**23  # int32 up to here may as well hold numbers of 24 or 16 bits
OVERSHOOT = 8.0  # of floats: mixes and noise exceed full scale; whole numbers beyond 1 are those of another scale
MOST_CHANNELS = 32  # as many rows and more are a spectrogram


class Waveform(NamedTuple):
    """A decoded sound: mono float32 samples (S,), and how many of them make a second."""

    samples: np.ndarray
    rate: int

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return len(self.samples) / self.rate


def from_array(name: str, array: np.ndarray) -> np.ndarray:
    """Mono float32 samples (S,) of an array (S,), (S, C) or (C, S) of floats in -1 to 1, or of integers at full scale.

    Floats up to 8 in size are a loud sound and stay as they are, but for whole numbers beyond 1, which are on no scale.

    Raises:
        MediaError: if it is no sound, or its scale cannot be told.
    """
    samples = array[0] if array.ndim == 3 and array.shape[0] == 1 else array
    shape = samples.shape
    if samples.ndim not in (1, 2) or samples.dtype.kind not in "fiu":
        kind = f"shape {array.shape} of {array.dtype}"
        raise MediaError(f"{name}: {kind} is no sound; give (samples,) of floats, or (samples, channels)")
    if not samples.size:
        raise MediaError(f"{name}: the sound is empty; remove it")
    if samples.ndim == 2 and shape[0] == shape[1] > 1:
        raise MediaError(f"{name}: shape {shape} does not tell which axis is time; give the mean of the channels")
    if samples.ndim == 2 and min(shape) > MOST_CHANNELS:
        raise MediaError(
            f"{name}: shape {shape} would be a sound of {min(shape)} channels; give samples, not a spectrogram"
        )
    samples = _scaled(name, samples)
    return samples if samples.ndim == 1 else mix(samples, axis=1 if shape[0] >= shape[1] else 0)


def _scaled(name: str, samples: np.ndarray) -> np.ndarray:
    """Samples as float32 in -1 to 1, by what their type holds in a file of sound."""
    lowest, highest = samples.min(), samples.max()
    if samples.dtype.kind == "f":
        peak = max(abs(float(lowest)), abs(float(highest)))
        is_off = peak > OVERSHOOT or (peak > 1 and bool((samples == np.round(samples)).all()))
        if is_off and peak <= LOUDEST:
            raise MediaError(
                f"{name}: {samples.dtype} values from {lowest:g} to {highest:g}, which must lie in -1 to 1; "
                "divide 16-bit numbers by 32768, 32-bit ones by 2147483648, others by their peak"
            )
        with np.errstate(over="ignore"):  # check_samples tells of it
            return samples.astype(np.float32)
    peak = max(abs(int(lowest)), abs(int(highest)))
    full_scale = FULL_SCALE.get(samples.dtype.name)
    if peak and (full_scale is None or (full_scale == FULL_SCALE["int32"] and peak <= MOST_24_BITS)):
        raise MediaError(
            f"{name}: whole numbers from {lowest} to {highest} in {samples.dtype}, which does not tell their scale; "
            "give 16-bit ones as int16, array.astype(np.int16), or floats in -1 to 1, array / 32768"
        )
    middle = np.float32(full_scale if samples.dtype == np.uint8 else 0)
    return (samples.astype(np.float32) - middle) / np.float32(full_scale or 1)


def mix(samples: np.ndarray, axis: int) -> np.ndarray:
    """Mono float32 samples (S,): the mean over the axis of the channels."""
    if samples.shape[axis] == 1:
        return samples.take(0, axis)
    with np.errstate(over="ignore", invalid="ignore"):  # check_samples tells what is wrong with such a sound
        mono_S: np.ndarray = samples.mean(axis=axis, dtype=np.float32)
    return mono_S


def check_length(name: str, samples: int, rate: int, limits: Limits) -> None:
    """Raise MediaError where a sound lasts longer, or its mono samples take more memory, than `limits`."""
    if samples > limits.seconds * rate:
        raise MediaError(f"{name}: {samples / rate:,.0f} s of sound, limit {limits.seconds:,.0f} s; cut it into pieces")
    if 4 * samples > limits.bytes:
        raise MediaError(
            f"{name}: {samples:,} samples at {rate:,} Hz, limit {limits.bytes // 4:,} (limits.bytes / 4); "
            "cut it into pieces or resample it"
        )


def check_samples(name: str, mono_S: np.ndarray) -> None:
    """Raise MediaError where a sound is empty, or some of it cannot be a sound."""
    if not len(mono_S):
        raise MediaError(f"{name}: the sound is empty; remove it")
    if not (mono_S.min() >= -LOUDEST and mono_S.max() <= LOUDEST):  # NaN is neither above nor below anything
        strange = int((~(np.abs(mono_S) <= LOUDEST)).sum())
        raise MediaError(
            f"{name}: {strange} of {len(mono_S)} samples are not finite or over {LOUDEST:g}; replace or remove it"
        )
