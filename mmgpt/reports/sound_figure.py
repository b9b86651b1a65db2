"""A sound drawn over its seconds: the waveform, and what is heard at which pitch.

Shape letters: S samples, F bands, T frames, N columns of the waveform.
"""

import io

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch

from mmgpt.datasets.media import Waveform
from mmgpt.encoders.mel import log_mel
from mmgpt.reports.charts import Axis, short
from mmgpt.reports.html import Markup, data_url, tag

COLUMNS = 240  # of a waveform; more cannot be told apart on a card
LEAST_DRAWN_PEAK = 1e-3  # a peak below that is not drawn larger
MEL_SECONDS = 60.0  # a longer sound has no mel picture
MEL_RATE = 16_000  # Hz; pitches are shown up to half of it
MEL_PAPER = -0.3  # deviations from a sound's mean loudness; what is softer, mostly noise, is left blank
SOFT, MIDDLE, LOUD = "#f2f2f2", "#7f9fe0", "#17357f"  # dark pages invert them


def sound_figure(sound: Waveform) -> Markup:
    """Waveform, log-mel picture and seconds, one below the other on one time axis."""
    drawings = (_waveform(sound.samples), _spectrogram(sound) if sound.seconds <= MEL_SECONDS else None)
    said = f"{sound.seconds:.2f} s of sound"
    return tag("div", *drawings, _seconds(sound.seconds), cls="sound", role="img", aria_label=said)


def envelope(samples_S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest sample of each of N equal stretches, in shares of the peak."""
    count = min(COLUMNS, len(samples_S))
    starts_N = np.arange(count) * len(samples_S) // count
    peak = max(float(np.abs(samples_S).max()), LEAST_DRAWN_PEAK)
    return np.minimum.reduceat(samples_S, starts_N) / peak, np.maximum.reduceat(samples_S, starts_N) / peak


def _waveform(samples_S: np.ndarray) -> Markup:
    low_N, high_N = envelope(samples_S)
    there = [f"{column} {99 - 99 * value:.0f}" for column, value in enumerate(high_N)]
    back = [f"{column} {103 - 99 * value:.0f}" for column, value in enumerate(low_N)]  # silence is a thin line
    path = tag("path", d=f"M{'L'.join(there + back[::-1])}Z")
    box = f"0 0 {max(len(there) - 1, 1)} 202"
    return tag("svg", path, viewBox=box, preserveAspectRatio="none", cls="wave", aria_hidden="true")


def _spectrogram(sound: Waveform) -> Markup:
    """The log-mel picture, low bands below."""
    samples_S, rate = torch.from_numpy(sound.samples), min(sound.rate, MEL_RATE)
    mel_FT = log_mel(samples_S, rate=sound.rate, target_rate=rate, bands=48).numpy()[::-1].clip(min=MEL_PAPER)
    span = max(float(np.ptp(mel_FT)), 1e-6)
    grey = PIL.Image.fromarray(((mel_FT - mel_FT.min()) / span * 255).astype(np.uint8))
    picture, buffer = PIL.ImageOps.colorize(grey, SOFT, LOUD, MIDDLE), io.BytesIO()
    picture.save(buffer, format="PNG")
    return tag("img", src=data_url("image/png", buffer.getvalue()), alt="", cls="mel")


def _seconds(seconds: float) -> Markup:
    """A few round times, and how long the sound is at the end."""
    axis = Axis(0.0, seconds)
    marks = [
        tag("span", short(time), style=f"left:{100 * axis.share(time):.1f}%")
        for time in axis.ticks(4)
        if 0.02 < axis.share(time) < 0.76  # where no label is cut off or meets the last one
    ]
    return tag("div", tag("span", "0"), *marks, tag("span", f"{seconds:.3g} s"), cls="seconds", aria_hidden="true")
