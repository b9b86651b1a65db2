import errno
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import soundfile

from mmgpt.config import UserError
from mmgpt.datasets.media import Image
from mmgpt.files import write_file
from mmgpt.reports.charts import Axis, Series, line_chart, thin, value_axis
from mmgpt.reports.html import tag
from mmgpt.reports.run_report import write_report

VOID = {"meta", "img"}
CONFIG = """name: tiny
stages:
- {name: align, objective: respond, steps: 40}
- {name: instruct, objective: respond, steps: 60}
tasks: [colours]
"""


class Page(HTMLParser):
    """Reads a page and checks that its tags are balanced."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.source = file.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == [], "tags left open"

    def handle_starttag(self, name, attributes):
        self.tags.append((name, dict(attributes)))
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open, f"</{name}> closes nothing"
        assert self.open.pop() == name

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def attributes(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


def log_lines(stage: str, steps: int) -> list[dict]:
    part = {"part": "decoder", "parameters": 1000, "trained": 500, "learning_rate": 3e-3, "bytes": 16000}
    lines = [{"stage": stage, "event": "stage", "step": 0, "objective": "respond", "parts": [part]}]
    for step in range(10, steps + 1, 10):
        rest = {"grad_norm": 1.0, "learning_rate": 1e-3, "tokens_per_second": 900.0, "seconds": 2.0, "mfu": None}
        sources = {"loss/shapes": 3.0 / step, "loss/stories": 5.0 / step}
        lines.append({"stage": stage, "step": step, "loss": 4.0 / step, **rest, **sources})
    return lines


def make_run(folder: Path, lines: list[dict] | None = None) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text(CONFIG)
    lines = [*log_lines("align", 40), *log_lines("instruct", 60)] if lines is None else lines
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def picture(colour: str = "red") -> dict:
    return Image(PIL.Image.new("RGB", (8, 8), colour)).to_part()


def sample(question: str = "Which colour?", said: str = "red", truth: str = "red", media: dict | None = None) -> dict:
    content = [media or picture(), {"type": "text", "text": question}]
    scores = {"exact_match": float(said == truth)}
    messages = [{"role": "user", "content": content}]
    return {"key": "k", "messages": messages, "exemplars": [], "prediction": said, "reference": truth, "scores": scores}


def add_evaluation(run: Path, samples: list[dict], blind: float | None = 0.25) -> Path:
    def score(value: float) -> dict:
        return {"exact_match": {"value": value, "stderr": 0.01, "ci95": [value - 0.02, value + 0.02]}}

    folder = run / "eval"
    folder.mkdir()
    result = {"task": "colours", "version": 1, "shots": 0, "n": len(samples), "metrics": score(0.875), "seconds": 3.0}
    result["blind"] = None if blind is None else {**score(blind), "text_only": score(0.312)}
    content = {"model": "tiny", "environment": {"python": "3.11.2", "threads": 2}, "results": [result]}
    (folder / "results.json").write_text(json.dumps(content))
    (folder / "samples-colours-0.jsonl").write_text("".join(json.dumps(s) + "\n" for s in samples))
    return folder


def page_of(run: Path) -> Page:
    return Page(write_report(run))


def test_a_finished_run_shows_scores_beside_what_needs_no_media(tmp_path):
    run = make_run(tmp_path / "run")
    add_evaluation(run, [sample()])
    (run / "final").mkdir()
    (run / "final" / "config.json").write_text("{}")
    text = page_of(run).text
    for wanted in (
        "finished",
        "100 steps",
        "1k parameters",
        "20 s of training",
        "87.5",
        "25.0 %",
        "31.2 %",
        "85.5 \N{EN DASH} 89.5",
    ):
        assert wanted in text
    assert "+56.3 points from the media" in text
    assert "50 %" in text, "the trained share"
    assert "3.11.2" in text
    assert "steps: 60" in text, "the recipe"


def test_a_score_that_guessing_may_reach_is_called_so(tmp_path):
    run = make_run(tmp_path / "run")
    add_evaluation(run, [sample()], blind=0.86)
    assert "not clearly above guessing" in page_of(run).text


def test_the_page_asks_for_nothing_outside_itself(tmp_path):
    run = make_run(tmp_path / "run")
    add_evaluation(run, [sample(question="See https://example.com/a.png")])
    page = page_of(run)
    for name, attributes in page.tags:
        assert name not in {"script", "link", "iframe", "object", "base", "form"}
        assert "href" not in attributes
        assert not any(key.startswith("on") for key in attributes)
        assert (attributes.get("src") or "data:").startswith("data:")
        assert "url(" not in (attributes.get("style") or "")
    style = re.search(r"<style>(.*?)</style>", page.source, re.DOTALL)[1]
    assert "url(" not in style
    assert "@import" not in style


def test_text_of_samples_is_text_on_the_page(tmp_path):
    evil = "<script>alert('1')</script>\x00\ud800&amp;"
    run = make_run(tmp_path / "run <b>")
    one = sample(question=evil, said=evil)
    add_evaluation(run, [one | {"key": '"><script>'}])
    page = page_of(run)
    assert page.attributes("script") == []
    assert "alert('1')" in page.text
    assert "\x00" not in page.source
    assert "&amp;amp;" in page.source


def test_pictures_are_embedded_whether_given_as_path_or_as_data(tmp_path):
    run = make_run(tmp_path / "run")
    PIL.Image.new("RGB", (8, 8), "blue").save(tmp_path / "blue.png")
    by_path = {"type": "image", "path": str(tmp_path / "blue.png")}
    evaluation = add_evaluation(
        run, [sample(), sample(media=by_path), sample(media={"type": "image", "path": "green.png"})]
    )
    PIL.Image.new("RGB", (8, 8), "green").save(evaluation / "green.png")
    sources = [attributes["src"] for attributes in page_of(run).attributes("img")]
    colours = {Image(source).load().getpixel((0, 0)) for source in sources}
    assert colours == {(255, 0, 0), (0, 0, 255), (0, 128, 0)}


def test_a_large_picture_is_shrunk(tmp_path):
    run = make_run(tmp_path / "run")
    noise = np.random.default_rng(0).integers(0, 256, (900, 1200, 3), dtype=np.uint8)
    add_evaluation(run, [sample(media=Image(noise).to_part())])
    (shown,) = page_of(run).attributes("img")
    assert Image(shown["src"]).load().size == (640, 480)


def test_sounds_can_be_played_and_are_shown_by_time_and_pitch(tmp_path):
    run = make_run(tmp_path / "run")
    beep = np.sin(np.arange(8000) * 2 * np.pi * 440 / 8000) * (np.arange(8000) < 4000)
    soundfile.write(tmp_path / "beep.flac", beep.astype(np.float32), 8000)
    add_evaluation(run, [sample(media={"type": "audio", "path": str(tmp_path / "beep.flac")})])
    (player,) = page_of(run).attributes("audio")
    assert "controls" in player
    assert player["src"].startswith("data:audio/flac;base64,")
    (shown,) = page_of(run).attributes("img")
    dark_HW = -np.asarray(Image(shown["src"]).load()).astype(float).sum(axis=2)
    assert dark_HW.shape == (48, 101)
    assert dark_HW[:, 5:45].mean() > dark_HW[:, 55:95].mean() + 50
    assert dark_HW[:, 20].argmax() > 24  # 440 Hz is low


@pytest.mark.parametrize("kind", ["image", "audio", "video"])
def test_a_missing_medium_leaves_a_placeholder_with_its_path(kind, tmp_path):
    run = make_run(tmp_path / "run")
    add_evaluation(run, [sample(media={"type": kind, "path": "/nowhere/medium.bin"})])
    text = page_of(run).text
    assert f"{kind} not shown" in text
    assert "/nowhere/medium.bin: no such file" in text


def test_a_file_that_is_no_medium_is_not_embedded(tmp_path):
    run = make_run(tmp_path / "run")
    (tmp_path / "secret.txt").write_text("secret")
    path = str(tmp_path / "secret.txt")
    add_evaluation(run, [sample(media={"type": kind, "path": path}) for kind in ("image", "audio")])
    page = page_of(run)
    assert not [attributes for _, attributes in page.tags if "src" in attributes]
    assert "no format that a browser plays" in page.text


def test_up_to_six_wrong_samples_come_first_then_right_ones(tmp_path):
    run = make_run(tmp_path / "run")
    right = [sample(f"right {number}?") for number in range(50)]
    wrong = [sample(f"wrong {number}?", said="blue") for number in range(20)]
    add_evaluation(run, right + wrong)
    page = page_of(run)
    shown = re.findall(r"(right|wrong) \d+\?", page.text)
    assert shown == ["wrong"] * 6 + ["right"] * 6
    assert "20 of 70 wrong" in page.text


def test_earlier_turns_of_a_few_shot_prompt_are_folded_away(tmp_path):
    run = make_run(tmp_path / "run")
    one = sample("And this?")
    shown = [
        {"role": "user", "content": [picture("blue"), {"type": "text", "text": "Which colour?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "blue"}]},
    ]
    add_evaluation(run, [one | {"messages": shown + one["messages"]}])
    page = page_of(run)
    assert "2 turns before it user: [image] Which colour? assistant: blue" in page.text
    assert len(page.attributes("img")) == 1


def test_a_run_that_was_not_evaluated_names_the_command(tmp_path):
    run = make_run(tmp_path / "run")
    text = page_of(run).text
    assert "Not evaluated yet." in text
    assert f"mmgpt eval {run} --tasks colours" in text


def test_an_evaluation_without_blind_scores_says_so(tmp_path):
    run = make_run(tmp_path / "run")
    add_evaluation(run, [sample()], blind=None)
    assert "no score without media to compare with" in page_of(run).text


def test_an_interrupted_run_shows_how_far_it_came(tmp_path):
    run = make_run(tmp_path / "run", log_lines("align", 20))
    text = page_of(run).text
    assert "not finished: align, step 20 of 40" in text
    assert "No step logged." in text, "of the second stage"


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_log_of_very_few_lines_gives_a_page(count, tmp_path):
    run = make_run(tmp_path / "run", log_lines("align", 40)[:count])
    with (run / "log.jsonl").open("a") as log:
        log.write('{"stage": "al')
    assert "not finished" in page_of(run).text


def test_losses_that_are_not_numbers_do_not_stop_the_page(tmp_path):
    lines = log_lines("align", 40)
    lines[2]["loss"] = float("nan")
    lines[3]["grad_norm"] = float("inf")
    assert len(page_of(make_run(tmp_path / "run", lines)).attributes("svg")) == 4


def test_a_folder_that_holds_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"neither config\.yaml nor log\.jsonl"):
        write_report(tmp_path)


def test_a_named_evaluation_without_results_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no results\.json"):
        write_report(make_run(tmp_path / "run"), tmp_path / "elsewhere")


def test_a_tag_escapes_whatever_is_not_markup():
    assert (
        tag("p", "<b>", tag("i", "&"), None, cls="a", title='"')
        == '<p class="a" title="&quot;">&lt;b&gt;<i>&amp;</i></p>'
    )


def test_thinning_keeps_the_spikes_and_the_order():
    points = [(float(step), 100.0 if step == 777 else step % 7) for step in range(5000)]
    thinned = thin(points, 400)
    assert len(thinned) <= 400
    assert (777.0, 100.0) in thinned
    assert thinned == sorted(thinned)


def test_a_scale_is_logarithmic_where_values_span_much():
    assert value_axis([0.1, 5.0], "auto").is_log
    assert not value_axis([1.0, 2.0], "auto").is_log
    assert value_axis([1.0, 2.0], "zero").low == 0.0


@pytest.mark.parametrize(
    "axis", [Axis(0, 1), Axis(0.53, 6.2, True), Axis(3, 3000), Axis(0.001, 900, True), Axis(-2, 2e9)]
)
@pytest.mark.parametrize("most", [4, 6])
def test_ticks_are_two_or_more_and_lie_on_the_axis(axis, most):
    ticks = axis.ticks(most)
    assert 2 <= len(ticks) <= most + 1
    assert all(-1e-9 <= axis.share(value) <= 1 + 1e-9 for value in ticks)


def test_a_chart_of_a_long_run_stays_small():
    points = [(float(step), 1.0 + step % 3) for step in range(100_000)]
    assert len(line_chart("loss", [Series("all", points)])) < 60_000


def test_a_full_disk_is_told_with_the_file_and_leaves_the_old_page_and_file_whole(tmp_path, monkeypatch):
    run, write_text = make_run(tmp_path / "run"), Path.write_text
    page = write_report(run).read_bytes()
    write_file(tmp_path / "results.json", "old")

    def refuse(file, text, **options):
        write_text(file, text[: len(text) // 2], **options)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", refuse)
    file = run / "report.html"
    with pytest.raises(OSError, match=f"No space left on device: '{file}'"):
        write_report(run)
    assert file.read_bytes() == page
    assert not list(run.glob(".*"))
    for name in ("results.json", "samples-easy_vqa-0.jsonl"):
        with pytest.raises(OSError, match=f"No space left on device: .*{name}"):
            write_file(tmp_path / name, "newer")
    assert (tmp_path / "results.json").read_text() == "old"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["results.json", "run"]


def test_a_link_stays_a_link_and_a_device_a_device(tmp_path):
    (tmp_path / "link").symlink_to("page.html")
    write_file(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "page.html").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_file(tmp_path / "pipe", "new")
    assert os.read(reader, 9) == b"new"
    os.close(reader)
