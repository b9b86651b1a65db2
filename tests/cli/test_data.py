import json

import PIL.Image
import pytest
import yaml
from rich.console import Console

from mmgpt.cli.data import stats_tables
from mmgpt.training.recipe import load_recipe


@pytest.fixture
def recipe(make_recipe, tmp_path):
    """A recipe of four good samples and a damaged one at the end."""
    PIL.Image.effect_noise((30, 30), 90).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    rows = []
    for number in range(5):
        asked = [{"type": "image", "path": "bad.png" if number == 4 else "good.png"}, f"number [{number}]?"]
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": str(number)}]
        rows.append(json.dumps({"messages": messages}) + "\n")
    (tmp_path / "rows.jsonl").write_text("".join(rows))
    tree = make_recipe({"data": [{"reader": "messages", "path": "rows.jsonl", "label": "rows[a]"}]})
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tree.model_dump(mode="json", exclude_none=True)))
    return [tmp_path / "tiny.yaml", "--data-root", tmp_path]


def test_check_exits_with_1_if_there_is_a_fault_and_writes_all_findings(mmgpt_says, recipe, tmp_path):
    code, said, told = mmgpt_says("data", "check", *recipe, "--workers", 0, "--out", tmp_path / "faults.jsonl")
    assert (code, told) == (1, "")
    assert "a picture or sound cannot be used" in said
    assert "rows[a]" in said
    assert "5 samples of 1 sources with 5 media" in said
    assert "faults: 1, warnings: 3" in said
    findings = [json.loads(line) for line in (tmp_path / "faults.jsonl").read_text().splitlines()]
    assert [one["key"] for one in findings if one["is_fault"]] == ["rows[a]/4"]
    (fault,) = [one["message"] for one in findings if one["is_fault"]]
    assert "bad.png: a text ('no picture'), not a picture that can be read" in fault


def test_check_exits_with_0_where_warnings_are_all(mmgpt_says, recipe):
    code, said, _ = mmgpt_says("data", "check", *recipe, "--workers", 0, "--limit", 2)
    assert code == 0
    assert "3 left out by --limit; faults: 0, warnings: 1" in said


def test_check_runs_in_workers(mmgpt_says, recipe):
    code, said, told = mmgpt_says("data", "check", *recipe, "--workers", 1)
    assert (code, told) == (1, "")
    assert "faults: 1, warnings: 3" in said


def test_stats_prints_tables_or_json_and_writes_a_folder(mmgpt_says, recipe, tmp_path):
    code, said, told = mmgpt_says("data", "stats", *recipe, "--out", tmp_path / "stats")
    assert (code, told) == (0, "")
    for word in ("rows[a]", "of targets", "batches/step", "900 px", "0 + 1", "first bad media: ", "bad.png"):
        assert word in said
    assert {file.name for file in (tmp_path / "stats").iterdir()} == {"stats.json", "lengths.png"}
    assert "rows[a]/4" in said
    code, said, _ = mmgpt_says("data", "stats", *recipe, "--json", "--limit", 2)
    assert code == 0
    assert json.loads(said)[0]["sources"][0]["looked_at"] == 2


def test_stats_tells_what_would_stop_the_training(mmgpt_says, recipe, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "who?"}]}) + "\n")
    code, said, _ = mmgpt_says("data", "stats", *recipe)
    assert code == 0
    assert "stage0: the training would stop: rows[a]/0: no token is a target" in said


@pytest.mark.parametrize("stats", ["quickstart", "real/joint"])
def test_tables_fit_a_narrow_terminal(stats):
    sources = [
        source.label or getattr(source, "name", "") for stage in load_recipe(stats).stages for source in stage.data
    ]
    tokens = {"mean": 1234.0, "p50": 1234.0, "p95": 1234.0, "max": 1234.0}
    one = {"samples": 100_000, "share": 0.333, "epochs": 0.0192, "share_of_targets": 0.5, "trimmed": 12}
    one |= {"too_long": 3, "bad_media": 0, "wrong": 0, "tokens": tokens, "supervised": 0.333, "pixels": tokens}
    one |= {"media": {"image": {"per_sample": 1.0, "tokens": tokens}}}
    speeds = ("samples_per_second", "tokens_per_second", "tokens_per_step", "micro_batches_per_step")
    stream = {**dict.fromkeys(speeds, 12_345.0), "fill": 0.5}
    records = [{**one, "source": name} for name in sources]
    for table in stats_tables([{"stage": "pretrain", "objective": "respond", "sources": records, "stream": stream}]):
        assert Console(width=200).measure(table).maximum <= 80


def test_show_writes_a_page(mmgpt_says, recipe, tmp_path):
    code, said, told = mmgpt_says("data", "show", *recipe, "--limit", 2, "--out", tmp_path / "page.html")
    assert (code, told) == (0, "")
    assert said.strip() == f"page:  {tmp_path / 'page.html'}"
    assert (tmp_path / "page.html").read_text().count("<article") == 2


def test_a_run_gives_its_tokenizer(mmgpt_says, recipe, tokenizer, tmp_path):
    (tmp_path / "run").mkdir()
    tokenizer.save(tmp_path / "run")
    code, *_ = mmgpt_says("data", "show", *recipe, "--run", tmp_path / "run", "--out", tmp_path / "page.html")
    assert code == 0
    assert f"vocabulary {len(tokenizer)}<" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("command", ["stats", "show", "check"])
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["model.decoder.widht=3"], "did you mean width"),
        (["--stage", "stage1"], "stage 'stage1' is none of tiny's; did you mean stage0?"),
        (["--run", "nowhere"], "no such file"),
        (["stages.0.data=[{reader: text, path: gone.txt}]"], "gone.txt: no such file"),
    ],
)
def test_wrong_input_is_refused_with_2(command, arguments, told, mmgpt_says, recipe):
    code, _, said = mmgpt_says("data", command, *recipe, *arguments)
    assert code == 2
    assert told in said
    assert said.startswith("error: ")


@pytest.fixture
def lines(tmp_path):
    """A source of twelve texts, three of them copies."""
    texts = [f"this is line number {number} of a book of many lines" for number in range(9)]
    (tmp_path / "book.txt").write_text("\n".join([*texts, *texts[:3]]))
    (tmp_path / "book.yaml").write_text("{reader: text, path: book.txt, unit: line}")
    return [tmp_path / "book.yaml", tmp_path / "shards", "--data-root", tmp_path, "--workers", 1]


def test_shard_writes_and_says_what_and_how_to_read_it(mmgpt_says, lines, tmp_path):
    code, said, told = mmgpt_says("data", "shard", *lines)
    assert (code, told) == (0, "")
    assert "12 samples in 1 shards" in said
    assert f"{{reader: shards, path: {tmp_path / 'shards'}}}" in said
    code, said, _ = mmgpt_says("data", "shard", *lines, "limit=3")
    assert code == 2


def test_shard_by_parts_drops_copies_and_counts_tokens(mmgpt_says, lines, tmp_path, tokenizer):
    tokenizer.core.save(str(tmp_path / "tokenizer.json"))
    options = ("--max-size", "4kB", "--near-copies", 0.9, "--tokenizer", tmp_path)
    code, said, _ = mmgpt_says("data", "shard", *lines, *options, "--part", "2/2")
    assert code == 0
    assert "dropped: 3 near copies" in said
    assert "part 2/2 is written; when all are:  mmgpt data shard" in said
    code, _, told = mmgpt_says("data", "shard", *lines, "--merge")
    assert code == 2
    assert "are missing; run the parts that stopped again" in told
    assert mmgpt_says("data", "shard", *lines, *options, "--part", "1/2")[0] == 0
    code, said, _ = mmgpt_says("data", "shard", *lines, "--merge")
    assert code == 0
    tokens = sum(tokenizer.count(f"this is line number {number} of a book of many lines") for number in range(9))
    assert "9 samples in" in said
    assert f"{tokens:,} tokens" in said


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--part", "3"), "--part 3: write K/N"),
        (("--part", "3/2"), "part 3/2: the parts of 2 are 1 to 2"),
        (("--max-size", "many"), "--max-size many: write a number and a unit"),
        (("--near-copies", "2"), "similarity=2.0: a similarity lies between 0 and 1"),
        (("window=-1",), "book.yaml: window=-1: Input should be greater than 0"),
    ],
)
def test_shard_refuses_what_cannot_be(options, told, mmgpt_says, lines):
    code, _, errors = mmgpt_says("data", "shard", *lines, *options)
    assert code == 2
    assert told in errors
