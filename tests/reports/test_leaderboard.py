import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from mmgpt.config import UserError
from mmgpt.datasets.media import Audio, Image
from mmgpt.reports.leaderboard import SCRIPT, write_leaderboard


def medium(number: int) -> dict:
    if number % 2:
        return Audio((0.2 * np.sin(np.arange(800) / (3 + number))).astype(np.float32), rate=8000).to_part()
    return Image(PIL.Image.new("RGB", (8, 8), (9 * number, 40, 90))).to_part()


def score(value: float) -> dict:
    return {"value": value, "stderr": 0.05, "ci95": [value - 0.1, value + 0.1]}


def write(folder: Path, model: str, values: dict[str, float], *, sha: str = "a", version: int = 1, n: int = 6) -> Path:
    """An evaluation with `n` answers a task, the first two wrong."""
    folder.mkdir()
    results = []
    for name, value in values.items():
        task, shots, metric = name.split("/")
        blind = {metric: score(0.25), "text_only": {metric: score(0.4)}}
        result = {"task": task, "version": version, "shots": int(shots), "n": n, "metrics": {metric: score(value)}}
        results.append({**result, "blind": blind, "seconds": 1.0, "prompt_sha256": sha * 64})
        rows = []
        for number in range(n):
            said = f"{model} says red" if number > 1 else "wrong & <b>bold</b>"
            asked = [{"role": "user", "content": [medium(number), {"type": "text", "text": f"{task} {number}?"}]}]
            scores = {metric: float(number > 1)}
            rows.append(
                {"key": f"k{number}", "messages": asked, "prediction": said, "reference": "red", "scores": scores}
            )
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"samples-{task}-{shots}.jsonl").write_text(lines)
    content = {"model": model, "environment": {}, "results": results}
    (folder / "results.json").write_text(json.dumps(content))
    return folder


class Page(HTMLParser):
    """The table of a page, and the answers by panel."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.source = file.read_text(encoding="utf-8")
        self.open: list[tuple[str, dict]] = []
        self.rows: list[list[dict]] = []
        self.panels: dict[str, str] = {}
        self.links: list[str] = []
        self.media: list[str] = []
        self.feed(self.source)
        assert self.open == [], "tags left open"

    def handle_starttag(self, name, attributes):
        given = dict(attributes)
        if name == "tr":
            self.rows.append([])
        if name in ("td", "th"):
            self.rows[-1].append({"text": "", **given})
        if name == "a":
            self.links.append(given["href"])
        if name in ("img", "audio"):
            self.media.append(given["src"])
        if name not in ("img", "meta"):
            self.open.append((name, given))

    def handle_endtag(self, name):
        assert self.open.pop()[0] == name

    def handle_data(self, data):
        for name, given in self.open:
            if name in ("td", "th"):
                self.rows[-1][-1]["text"] += data
            if name == "section" and given.get("class") == "panel":
                self.panels[given["id"]] = self.panels.get(given["id"], "") + data

    def row(self, label: str) -> list[dict]:
        return next(row for row in self.rows if row[0]["text"].startswith(label))


@pytest.fixture
def page(tmp_path):
    folders = [
        write(tmp_path / "a", "small", {"colours/0/exact_match": 0.5, "colours/4/exact_match": 0.7}),
        write(tmp_path / "b", "large", {"colours/0/exact_match": 0.8, "sounds/0/exact_match": 0.9}),
        write(tmp_path / "c", "near", {"colours/0/exact_match": 0.75}),
        write(tmp_path / "d", "other", {"colours/0/exact_match": 0.99}, sha="b"),
    ]
    return Page(write_leaderboard(folders, tmp_path / "pages" / "board.html", samples=4))


def test_rows_are_models_and_columns_are_scores_with_their_intervals(page):
    tasks, metrics, *rows = page.rows
    assert [cell["text"] for cell in tasks] == ["", "colours0 shots", "colours4 shots", "sounds0 shots"]
    assert [cell["text"] for cell in metrics] == ["model", *["exact match"] * 3]
    assert [row[0]["data-value"] for row in rows[:-1]] == ["large", "near", "small", "other"]
    assert [cell["text"] for cell in page.row("small")[1:]] == [
        "50.040.0 \u2013 60.0",
        "70.060.0 \u2013 80.0",
        "\u2013",
    ]
    assert page.row("large")[1]["data-value"] == "0.8"
    assert [cell["text"] for cell in page.row("no media")[1:]] == ["40.0"] * 3


def test_the_best_and_what_its_interval_does_not_part_from_it_are_marked(page):
    kinds = {label: page.row(label)[1]["class"].split()[1:] for label in ("large", "near", "small", "other")}
    assert kinds == {"large": ["best"], "near": ["near"], "small": [], "other": ["odd"]}
    assert page.row("other")[1]["text"].startswith("99.0†")
    assert "† asked other prompts or other samples than most in this column" in page.source


def test_every_score_leads_to_its_answers_with_their_media_wrong_ones_first(page):
    scores = [link for link in page.links if link != "#scores"]
    assert len(scores) == 6
    assert {link.removeprefix("#") for link in scores} == page.panels.keys()
    sounds = next(text for text in page.panels.values() if "sounds, 0 shots" in text)
    assert sounds.startswith("large")
    assert "exact match 90.0, 25.0 with the media removed · 6 samples" in sounds
    first, second, third, fourth = re.findall(r"sounds (\d)\?", sounds)
    assert (first, second) == ("0", "1")
    assert {third, fourth} < set("2345")
    assert "2 of 6 wrong" in sounds
    assert "wrong & <b>bold</b>" in " ".join(sounds.split())
    assert sum(url.startswith("data:image/png") for url in page.media) >= 6
    assert sum(url.startswith("data:audio/wav") for url in page.media) >= 6


def test_the_page_needs_and_may_load_nothing_else_and_runs_its_own_script_alone(page):
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page.source)[1].replace("&#x27;", "'")
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'")
    assert policy.endswith(f"script-src 'sha256-{digest}'")
    assert page.source.count("<script>") == 1
    assert f"<script>{SCRIPT}</script>" in page.source
    assert all(url.startswith("data:") for url in page.media)
    assert not re.search(r"""(src|href)=["']?(https?:|//)""", page.source)


def test_versions_stand_apart_and_equal_names_are_told_by_their_folders(tmp_path):
    a = write(tmp_path / "a", "model", {"colours/0/exact_match": 0.5})
    b = write(tmp_path / "b", "model", {"colours/0/exact_match": 0.8}, version=2)
    page = Page(write_leaderboard([a, b, a], tmp_path / "board.html"))
    assert [cell["text"] for cell in page.rows[0]] == ["", "colours0 shots", "colours v20 shots"]
    assert {row[0]["data-value"] for row in page.rows[2:-1]} == {f"model ({a})", f"model ({b})"}


def test_of_a_figure_where_less_is_better_the_least_is_best(tmp_path, monkeypatch):
    from mmgpt.evaluation import metrics
    from mmgpt.evaluation.metrics import Metric

    errors = Metric(lambda some: np.zeros((len(some), 2)), lambda sums, n: sums[0] / sums[1], higher_is_better=False)
    monkeypatch.setitem(metrics.METRICS, "error_rate", errors)
    folders = [write(tmp_path / name, name, {"words/0/error_rate": value}) for name, value in (("a", 1.25), ("b", 0.5))]
    page = Page(write_leaderboard(folders, tmp_path / "board.html", samples=0))
    assert [row[0]["data-value"] for row in page.rows[2:-1]] == ["b", "a"]
    assert page.row("b")[1]["class"] == "n best"
    assert page.row("a")[1]["text"].startswith("1.25")
    assert page.rows[1][1]["data-first"] == "ascending"
    assert page.media == []


def test_the_command_writes_the_page_and_refuses_what_holds_no_results(tmp_path, mmgpt_says):
    folder = write(tmp_path / "a", "model", {"colours/0/exact_match": 0.5})
    code, told, _ = mmgpt_says("leaderboard", folder, "--out", tmp_path / "board.html")
    assert code == 0
    assert f"leaderboard: {tmp_path / 'board.html'}" in told
    with pytest.raises(UserError, match=r"no results\.json"):
        write_leaderboard([folder, tmp_path], tmp_path / "other.html")
    (folder / "results.json").write_text(json.dumps({"model": "m", "results": []}))
    with pytest.raises(UserError, match="hold no scores"):
        write_leaderboard([folder], tmp_path / "other.html")
    assert not (tmp_path / "other.html").exists()
