"""Files that FFmpeg reads, through PyAV: in one thread, so that a file gives the same numbers, and no other file."""

import io
from typing import Any

import numpy as np

from mmgpt.datasets.media.medium import Limits, MediaError
from mmgpt.datasets.media.waveform import Waveform, check_length, check_samples, mix

# FFmpeg also knows playlists, which name other files and addresses for it to open.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,mpegts,mpeg,ogg,asf"
SOUNDS = f"{CONTAINERS},aac,amr"
MAX_SECONDS_MISSING = 0.5  # seconds that a file may end before its header says


def open_container(av: Any, payload: bytes, formats: str = CONTAINERS) -> Any:
    """A file's streams; nothing outside it is opened."""
    options = {"format_whitelist": formats, "protocol_whitelist": "none"}
    return av.open(io.BytesIO(payload), options=options, metadata_errors="replace")


def use_one_thread(stream: Any, limits: Limits) -> None:
    """Decode a stream in this thread, its frames within the limits."""
    stream.thread_type = "NONE"
    stream.codec_context.thread_count = 1
    stream.codec_context.options = {"max_pixels": str(limits.pixels)}


def decode_sound(av: Any, name: str, payload: bytes, limits: Limits, start: float | None = None) -> Waveform | None:
    """The first sound of a file; None where it holds none.

    Args:
        av: the module.
        name: what an error calls the file.
        payload: its bytes.
        limits: a longer sound is refused.
        start: seconds, where the sound is to begin, with silence where it begins later; its own beginning if None.
    Raises:
        MediaError: if it is too long, truncated, empty, or of a codec that FFmpeg does not know.
        ValueError: if it states no rate.
    """
    with open_container(av, payload, SOUNDS if start is None else CONTAINERS) as container:
        if not container.streams.audio:
            return None
        stream = container.streams.audio[0]
        if stream.codec_context is None:
            raise MediaError(f"{name}: the codec of its sound is not known to FFmpeg; convert it to MP4 or WebM")
        use_one_thread(stream, limits)
        rate, blocks, held, first = stream.codec_context.sample_rate, [], 0, None
        if not rate:
            raise ValueError("its sound states no rate")
        stated = float(stream.duration * stream.time_base) if stream.duration else (container.duration or 0) / 1e6
        is_guess = container.format.name == "aac"  # a stream without a header, whose length is told from its bitrate
        check_length(name, int(stated * rate), rate, limits)
        planes = av.AudioResampler(format="fltp")
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise MediaError(f"{name}: truncated or damaged after {held / rate:.2f} s; replace or remove it")
            for frame in packet.decode():
                first = frame.time if first is None else first
                blocks += [mix(plane.to_ndarray(), axis=0) for plane in planes.resample(frame)]
                held += frame.samples
                check_length(name, held, rate, limits)
    if first is None:
        return None
    if start is None and not is_guess and stated > held / rate + MAX_SECONDS_MISSING:
        raise MediaError(f"{name}: truncated, {held / rate:.2f} of {stated:.2f} s; replace or remove it")
    late = 0 if start is None else round((first - start) * rate)
    check_length(name, held + max(0, late), rate, limits)
    mono_S = np.concatenate([np.zeros(max(0, late), np.float32), *blocks])[max(0, -late) :]
    check_samples(name, mono_S)
    return Waveform(mono_S, rate)
