"""Sounds: any rate and any number of channels, mixed to mono block by block while they are decoded.

Shape letters: S samples, C channels.
"""

import io
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import soundfile

from mmgpt.datasets.media.ffmpeg import decode_sound
from mmgpt.datasets.media.formats import kind_of, refusal
from mmgpt.datasets.media.medium import LIMITS, Limits, Media, MediaError, to_number
from mmgpt.datasets.media.sound_files import mended, missing_of, with_its_size
from mmgpt.datasets.media.waveform import Waveform, check_length, check_samples, from_array, mix

BLOCK = 2**20  # numbers decoded at a time, of all channels together
# libsndfile's words, and what is so
REASONS = {"Internal error : SF_INFO struct incomplete": "its header states no rate"}
UNKNOWN_FRAMES = 2**62  # a FLAC written to a pipe states none, for which libsndfile gives the largest number


@dataclass(frozen=True, eq=False)
class Audio(Media):
    """A sound: path, bytes, open file, base64, a decoded `Waveform`, or an array or tensor with its `rate` in Hz.

    Floats lie in -1 to 1, and up to 8 either way are a loud sound, kept as loud. int8, uint8, int16 and int32 are at
    their full scale, as in files. What fits no scale or two is refused: floats beyond 8, floats that are all whole
    numbers and go beyond 1, 16-bit numbers in int64, in a list, or in int32.

    One channel is (samples,), several have the longer axis as time; a batch of one is its sound.
    """

    rate: int | None = None
    modality: ClassVar[str] = "audio"

    def __post_init__(self) -> None:
        super().__post_init__()
        rate = self.source.rate if isinstance(self.source, Waveform) and self.rate is None else self.rate
        object.__setattr__(self, "rate", None if rate is None else _whole(self.name(), rate))

    def load(self, limits: Limits = LIMITS) -> Waveform:
        """Decode to mono, the mean of the channels, at the rate it came with; takes the memory of the mono sound.

        Raises:
            MediaError: if there is no such file, or it is no sound, truncated, empty, not finite, on no scale, or over
                the limits.
        """
        payload = self.read(limits)
        sound = self._from_array(limits) if payload is None else self._decode(payload, limits)
        if self.rate not in (None, sound.rate):
            raise MediaError(f"{self.name()}: rate={self.rate}, but it states {sound.rate:,} Hz; leave rate out")
        check_samples(self.name(), sound.samples)
        return sound

    def array(self) -> np.ndarray:
        """The samples of an array or a decoded sound as they came."""
        return (
            Media(self.value.samples, label=self.name()).array()
            if isinstance(self.value, Waveform)
            else super().array()
        )

    def _from_array(self, limits: Limits) -> Waveform:
        array, rate = self.array(), self.rate
        if isinstance(self.value, Waveform):
            rate = _whole(self.name(), self.value.rate)
        if not array.ndim or array.dtype.kind in "OUSV":
            kind = f"shape {array.shape} of {array.dtype}" if array.ndim else type(self.value).__name__
            raise MediaError(f"{self.name()}: {kind} is no sound; give a path, bytes, or an array of samples")
        if rate is None:
            raise MediaError(f"{self.name()}: an array does not tell its rate; write Audio(samples, rate=16000)")
        check_length(self.name(), max(array.shape), rate, limits)
        if isinstance(self.value, Waveform) and array.ndim == 1 and array.dtype == np.float32:
            return Waveform(array, rate)  # decoded, as loud as its file
        return Waveform(from_array(self.name(), array), rate)

    def _decode(self, payload: bytes, limits: Limits) -> Waveform:
        missing = missing_of(payload)
        if missing:
            raise MediaError(f"{self.name()}: truncated, {missing}; replace or remove it")
        payload = with_its_size(payload)
        try:
            return self._read_blocks(payload, limits)
        except MediaError:
            raise
        except (soundfile.SoundFileError, OSError, ValueError) as error:
            told = getattr(error, "error_string", "").rstrip(".")
            reason = REASONS.get(told, told.removeprefix("Error : "))
        repaired = mended(payload)
        if repaired is not None and repaired != payload:
            try:
                return self._read_blocks(repaired, limits)
            except MediaError:
                raise
            except (soundfile.SoundFileError, OSError, ValueError):
                pass  # the reason is that of the file as it came
        kind, remedy = kind_of(payload)
        if "Audio" in remedy and kind not in READ_BY_SOUNDFILE:
            return self._decode_with_ffmpeg(payload, kind, limits)
        raise MediaError(f"{self.name()}: {refusal(payload, 'sound', 'WAV, FLAC, OGG or MP3', reason)}")

    def _read_blocks(self, payload: bytes, limits: Limits) -> Waveform:
        with _Stream(_Payload(payload)) as file:
            stated = file.frames if file.frames < UNKNOWN_FRAMES else None
            check_length(self.name(), stated or 0, file.samplerate, limits)
            mono_S, held, size = np.empty(stated or 0, np.float32), 0, max(1, BLOCK // file.channels)
            while stated is None or held < stated:
                block_SC = file.read(size if stated is None else min(size, stated - held), "float32", always_2d=True)
                if not len(block_SC):
                    break
                if held + len(block_SC) > len(mono_S):  # of a length that is not stated
                    check_length(self.name(), held + len(block_SC), file.samplerate, limits)
                    mono_S = np.concatenate([mono_S[:held], np.empty(max(held, len(block_SC)), np.float32)])
                mono_S[held : held + len(block_SC)] = mix(block_SC, axis=1)
                held += len(block_SC)
            if stated is not None and held < stated:
                raise MediaError(f"{self.name()}: truncated, {held} of {stated} samples; replace or remove it")
            return Waveform(mono_S if held == len(mono_S) else mono_S[:held].copy(), file.samplerate)

    def _decode_with_ffmpeg(self, payload: bytes, kind: str, limits: Limits) -> Waveform:
        try:
            import av
        except ImportError:
            raise MediaError(
                f'{self.name()}: {kind}, which needs PyAV; pip install "mmgpt[video]", or convert it to WAV or FLAC'
            ) from None
        try:
            sound = decode_sound(av, self.name(), payload, limits)
        except MediaError:
            raise
        except (av.error.FFmpegError, OSError, ValueError, IndexError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise MediaError(
                f"{self.name()}: {kind}, damaged or of a rare kind ({reason}); give a WAV, FLAC, OGG or MP3 file"
            ) from None
        if sound is None:
            raise MediaError(f"{self.name()}: {kind} without a sound; remove it")
        return sound

    def encoded(self) -> tuple[str, bytes]:
        """A WAV of the mono sound where it came as an array, 16 bits or loud floats; else the bytes as they are."""
        payload = self.read()
        if payload is None:
            sound, buffer = self.load(), io.BytesIO()
            subtype = "PCM_16" if np.abs(sound.samples).max() <= 1 else "FLOAT"  # which clips nothing
            soundfile.write(buffer, sound.samples, sound.rate, format="WAV", subtype=subtype)
            return "audio/wav", buffer.getvalue()
        try:
            kind = soundfile.info(_Payload(payload)).format.lower()
        except soundfile.SoundFileError:
            return super().encoded()
        return f"audio/{'mpeg' if kind == 'mp3' else kind}", payload


READ_BY_SOUNDFILE = {"a WAV sound", "a FLAC sound", "an OGG file", "an MP3 sound", "an AIFF sound"}


def _whole(name: str, rate: Any) -> int:
    """A rate as an integer.

    Raises:
        MediaError: if it is no whole number above 0.
    """
    number = to_number(rate)
    if number is None or not 1 <= number < 2**31 or number % 1:
        raise MediaError(
            f"{name}: rate={rate!r} is no whole number of samples a second; write Audio(samples, rate=16000)"
        )
    return int(float(number))


class _Stream(soundfile.SoundFile):  # type: ignore[misc]
    """A file read from its start to its end; soundfile would seek after each read: a click in MP3, an error in FLAC."""

    def seekable(self) -> bool:
        return False


class _Payload(io.BytesIO):
    """Bytes in which a damaged header may lead out of the file, for which soundfile would print a traceback."""

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return super().seek(offset, whence)
        except (ValueError, OverflowError):
            return super().seek(0)
