import numpy as np
import pytest

from mmgpt.datasets.media import Waveform
from mmgpt.reports.sound_figure import COLUMNS, envelope, sound_figure


def beep(seconds: float, rate: int = 8000) -> Waveform:
    """A tone in the first half and silence in the second."""
    times = np.arange(round(seconds * rate)) / rate
    return Waveform((0.2 * np.sin(times * 2 * np.pi * 440) * (times < seconds / 2)).astype(np.float32), rate)


def test_a_waveform_reaches_to_its_peak_and_shows_silence_as_silence():
    low_N, high_N = envelope(beep(1.0).samples)
    assert len(low_N) == len(high_N) == COLUMNS
    assert high_N.max() == pytest.approx(1.0, abs=0.01)
    assert low_N.min() == pytest.approx(-1.0, abs=0.01)
    assert (high_N[:110] > 0.8).all()
    assert (high_N[130:] == 0).all()


def test_a_click_between_columns_is_not_lost():
    samples_S = np.zeros(80_000, np.float32)
    samples_S[12_345] = -1.0
    low_N, high_N = envelope(samples_S)
    assert low_N.min() == -1.0
    assert high_N.max() == 0.0


@pytest.mark.parametrize("count", [1, 2, 239, 241])
def test_a_very_short_or_silent_sound_can_be_drawn(count):
    figure = sound_figure(Waveform(np.zeros(count, np.float32), 8000))
    assert "nan" not in figure
    assert f"{count / 8000:.2f} s of sound" in figure


def test_the_time_axis_has_round_times_and_ends_with_the_length():
    figure = sound_figure(beep(2.4))
    assert ">0<" in figure
    assert ">2.4 s<" in figure
    assert 'style="left:41.7%">1<' in figure


def test_a_sound_of_more_than_a_minute_is_drawn_without_its_pitches():
    assert "<img" in sound_figure(beep(3.0))
    assert "<img" not in sound_figure(beep(61.0))
    assert "<svg" in sound_figure(beep(61.0))
