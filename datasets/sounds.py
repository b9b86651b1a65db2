"""Sounds: any rate and any number of channels, mixed to mono block by block while they are decoded.

Shape letters: S samples, C channels.
"""

import io
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import soundfile

from mmgpt.datasets.medium import LIMITS, Limits, Media, MediaError

LOUDEST = 1e12  # a sample beyond it is damage, and its square would overflow float32
UNKNOWN_BYTES = 0x7FFF0000  # a WAV written to a pipe states this size of its data or more, not knowing better
BLOCK = 2**20  # numbers decoded at a time, of all channels together
NO_SOUND = "not a sound that can be read; give a WAV, FLAC, OGG or MP3 file"


class Sound(NamedTuple):
    """A decoded sound: mono float32 samples (S,), and how many of them make a second."""

    samples: np.ndarray
    rate: int

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return len(self.samples) / self.rate


@dataclass(frozen=True, eq=False)
class Audio(Media):
    """A sound: path, bytes, open file, base64, or an array or tensor with its `rate` in Hz.

    An array holds floats or integers, one channel (samples,) or several; its longer axis is time.
    """

    rate: int | None = None
    modality: ClassVar[str] = "audio"

    def load(self, limits: Limits = LIMITS) -> Sound:
        """Decode to mono, the mean of the channels, at the rate it came with; takes the memory of the mono sound.

        Raises:
            MediaError: if there is no such file, or it is no sound, truncated, empty, not finite or over the limits.
        """
        payload = self.read(limits)
        sound = self._from_array(limits) if payload is None else self._decode(payload, limits)
        check_samples(self.name(), sound.samples)
        return sound

    def _decode(self, payload: bytes, limits: Limits) -> Sound:
        held = _held(payload)
        if held:
            raise MediaError(f"{self.name()}: truncated, {held}; replace or remove it")
        try:
            with soundfile.SoundFile(_Payload(payload)) as file:
                check_length(self.name(), file.frames, file.samplerate, limits)
                mono_S, at = np.empty(file.frames, np.float32), 0
                # soundfile seeks after each read, which MP3 answers with a click; it has two channels at most
                size = file.frames if file.format == "MP3" else max(1, BLOCK // file.channels)
                while at < len(mono_S):
                    block_SC = file.read(size, dtype="float32", always_2d=True)
                    if not len(block_SC):
                        break
                    mono_S[at : at + len(block_SC)] = mix(block_SC, axis=1)
                    at += len(block_SC)
                rate = file.samplerate
        except MediaError:
            raise
        except (soundfile.SoundFileError, OSError, ValueError):
            raise MediaError(f"{self.name()}: {NO_SOUND}") from None
        if at < len(mono_S):
            raise MediaError(f"{self.name()}: truncated, {at} of {len(mono_S)} samples; replace or remove it")
        return Sound(mono_S, rate)

    def _from_array(self, limits: Limits) -> Sound:
        given = self.array()
        if given.ndim not in (1, 2) or given.dtype.kind not in "fiu":
            raise MediaError(
                f"{self.name()}: shape {given.shape} of {given.dtype} is no sound; give (samples,) of floats"
            )
        if not self.rate or self.rate < 1:
            raise MediaError(f"{self.name()}: an array does not tell its rate; write Audio(samples, rate=16000)")
        check_length(self.name(), max(given.shape), self.rate, limits)
        samples_SC = given.astype(np.float32)
        if given.dtype.kind in "iu":
            ends = np.iinfo(given.dtype)
            middle = (int(ends.max) + int(ends.min) + 1) // 2
            samples_SC = (samples_SC - np.float32(middle)) / np.float32(int(ends.max) + 1 - middle)
        if given.ndim == 1:
            return Sound(samples_SC, self.rate)
        return Sound(mix(samples_SC, axis=1 if given.shape[0] >= given.shape[1] else 0), self.rate)

    def encoded(self) -> tuple[str, bytes]:
        """A 16-bit WAV of the mono sound where it came as an array, else the bytes as they are."""
        payload = self.read()
        if payload is None:
            sound, buffer = self.load(), io.BytesIO()
            soundfile.write(buffer, sound.samples, sound.rate, format="WAV", subtype="PCM_16")
            return "audio/wav", buffer.getvalue()
        try:
            kind = soundfile.info(_Payload(payload)).format.lower()
        except soundfile.SoundFileError:
            return super().encoded()
        return f"audio/{'mpeg' if kind == 'mp3' else kind}", payload


def mix(samples: np.ndarray, axis: int) -> np.ndarray:
    """Mono float32 samples (S,): the mean over the axis of the channels."""
    if samples.shape[axis] == 1:
        return samples.take(0, axis)
    with np.errstate(over="ignore", invalid="ignore"):  # check_samples tells what is wrong with such a sound
        mono_S: np.ndarray = samples.mean(axis=axis, dtype=np.float32)
    return mono_S


class _Payload(io.BytesIO):
    """Bytes in which a damaged header may lead out of the file, for which soundfile would print a traceback."""

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return super().seek(offset, whence)
        except (ValueError, OverflowError):
            return super().seek(0)


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


def _held(payload: bytes) -> str:
    """What a truncated WAV, AIFF or OGG still holds, where libsndfile would take it for a shorter sound; or ''."""
    if payload[:4] == b"OggS":
        return "" if _ends_as_ogg_does(payload) else f"{len(payload):,} bytes without the page that ends an OGG stream"
    kind = (payload[:4], payload[8:12])
    if kind == (b"RIFF", b"WAVE"):
        return _held_of_chunk(payload, b"data", "little")
    return _held_of_chunk(payload, b"SSND", "big") if kind in ((b"FORM", b"AIFF"), (b"FORM", b"AIFC")) else ""


def _ends_as_ogg_does(payload: bytes) -> bool:
    """Whether the last page is there as a whole, and flagged as the last (RFC 3533, section 6)."""
    at = payload.rfind(b"OggS")
    segments = at + 27 + payload[at + 26] if at + 26 < len(payload) else len(payload)
    is_whole = segments < len(payload) and segments + sum(payload[at + 27 : segments]) <= len(payload)
    return is_whole and bool(payload[at + 5] & 4)


def _held_of_chunk(payload: bytes, name: bytes, order: Literal["little", "big"]) -> str:
    at = 12
    while at + 8 <= len(payload):
        stated, held = int.from_bytes(payload[at + 4 : at + 8], order), len(payload) - at - 8
        if payload[at : at + 4] == name:
            return f"{held:,} of {stated:,} bytes of samples" if held < stated < UNKNOWN_BYTES else ""
        at += 8 + stated + stated % 2
    return ""
