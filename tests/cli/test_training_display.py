"""Where there is no terminal, progress is plain lines."""

import io

import pytest
from rich.console import Console

from mmgpt.cli.eval import PlainBars
from mmgpt.cli.training_display import TrainingDisplay, in_clock
from mmgpt.training.loop import train


def record(step, seconds, loss=3.21449):
    return {"stage": "look", "step": step, "loss": loss, "tokens_per_second": 12345.6, "seconds": seconds}


def shown_by(*records, width=80):
    file = io.StringIO()
    with TrainingDisplay(Console(file=file, width=width)) as display:
        for one in records:
            display.on_record(one)
    return file.getvalue()


def test_each_line_of_the_log_is_one_plain_line_with_the_time_that_is_left():
    ticks = [{"event": "tick", "stage": "look", "step": step, "of": 4000} for step in (1, 2, 3)]
    shown = shown_by(*ticks[:2], record(2, 10.0), ticks[2], record(3, 20.0), width=20)
    assert shown.splitlines() == [
        "look  step 2/4,000  loss 3.214  12,346 tokens/s  5:33:10 left",
        "look  step 3/4,000  loss 3.214  12,346 tokens/s  11:06:10 left",
    ]


def test_a_run_that_goes_on_counts_its_own_steps_alone():
    shown = shown_by({"event": "tick", "stage": "look", "step": 101, "of": 111}, record(101, 2.0))
    assert shown == "look  step 101/111  loss 3.214  12,346 tokens/s  0:20 left\n"


@pytest.mark.parametrize(("seconds", "clock"), [(0, "0:00"), (59.6, "1:00"), (754, "12:34"), (18000, "5:00:00")])
def test_seconds_are_told_as_a_clock_has_them(seconds, clock):
    assert in_clock(seconds) == clock


def test_an_evaluation_tells_each_tenth_once():
    file = io.StringIO()
    bars = PlainBars(Console(file=file, width=20))
    for done in range(0, 1001, 8):
        bars.score("easy", "exact_match", 0.5)
        bars("easy", done, 1000)
        bars("easy", done, 1000)
    lines = file.getvalue().splitlines()
    assert len(lines) == len(set(lines)) == 10
    assert lines[0].startswith("easy  104/1,000  exact_match 50.0  0:0")
    assert lines[-1] == "easy  1,000/1,000  exact_match 50.0"


@pytest.mark.train
def test_a_training_into_a_file_has_no_control_codes_and_no_line_twice(make_recipe, tmp_path):
    file = io.StringIO()
    with TrainingDisplay(Console(file=file, width=120)) as display:
        train(make_recipe({"steps": 5, "log_every": 2}), out=tmp_path, device="cpu", on_record=display.on_record)
    lines = [line for line in file.getvalue().splitlines() if line.startswith("stage0  step")]
    assert [line.split()[2] for line in lines] == ["2/5", "4/5", "5/5"]
    assert not {"\x1b", "\r"} & set(file.getvalue())
    assert max(map(len, file.getvalue().splitlines())) <= 120
