import json
from itertools import islice

import numpy as np
import PIL.Image
import pytest

from mmgpt.inputs.dataloader import iterate_steps
from mmgpt.inputs.rendered import IGNORED
from mmgpt.inspection.recipe_data import open_data
from mmgpt.inspection.stats import data_stats, summary, write_stats
from mmgpt.training.data_mix import open_stream
from mmgpt.training.stage import dropout_seed

ASKED = {"role": "user", "content": [{"type": "image", "path": "a.png"}, {"type": "text", "text": "What is it?"}]}


def row(answer: str, *before: dict) -> dict:
    return {"messages": [*before, {"role": "assistant", "content": answer}]}


@pytest.fixture
def data(make_recipe, tmp_path):
    """A stage of pictures, with one absent and one sample too long, and of texts with three times the weight."""
    PIL.Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "a.png")
    absent = {**ASKED, "content": [{"type": "image", "path": "b.png"}]}
    rows = [row("a dog", ASKED), row("a cat and a dog", ASKED), row("?", absent), row("word " * 500, ASKED)]
    (tmp_path / "seen.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    texts = [row(f"a story of {number} dogs") for number in range(10)]
    (tmp_path / "read.jsonl").write_text("".join(json.dumps(one) + "\n" for one in texts))
    recipe = make_recipe(
        {
            "data": [
                {"reader": "messages", "path": "seen.jsonl"},
                {"reader": "messages", "path": "read.jsonl", "weight": 3},
            ],
            "steps": 5,
            "batch_size": 8,
        }
    )
    return open_data(recipe, data_root=tmp_path)


def test_the_figures_of_a_source_are_those_counted_by_hand(data):
    (stage,) = data_stats(data)
    seen, read = stage["sources"]
    rendered = [data.renderer.render(data.sources["stage0"][0][index]) for index in (0, 1)]
    lengths = [len(one.ids) for one in rendered]
    targets = sum(label != IGNORED for one in rendered for label in one.labels)
    assert (seen["source"], seen["samples"], seen["looked_at"], seen["rows"]) == ("seen", 4, 4, 2)
    assert seen["tokens"] == summary(lengths)
    assert seen["tokens"]["mean"] == sum(lengths) / 2
    assert seen["tokens"]["max"] == max(lengths)
    assert seen["lengths"] == sorted(lengths)
    assert seen["supervised"] == targets / sum(lengths)
    assert seen["media"]["image"] == {"per_sample": 0.5, "tokens": summary([4, 4])}  # 4 x 4 patches, folded 2 x 2
    assert seen["pixels"]["max"] == 600
    assert (seen["too_long"], seen["bad_media"], seen["wrong"], seen["trimmed"]) == (1, 1, 0, 0)
    assert "b.png: no such file" in seen["first_faults"]["bad_media"]
    assert (seen["share"], read["share"]) == (0.25, 0.75)
    assert seen["epochs"] == 5 * 8 * 0.25 / 4
    learned = [0.25 * targets / 4, 0.75 * read["targets_per_sample"]]
    assert seen["share_of_targets"] == pytest.approx(learned[0] / sum(learned))
    assert read["media"] == {}


def test_the_stream_is_as_full_as_its_micro_batches(data):
    stage = data.stages[0]
    stream = open_stream(stage, data.sources["stage0"], data.renderer, dropout_seed(data.recipe, stage, 0))
    batches = [
        batch for step in islice(iterate_steps(stream, 0), 1, 3) for batch in step.batches
    ]  # the first is not timed
    tokens = sum(int((batch.positions.max(dim=1).values + 1).sum()) for batch in batches)
    found = data_stats(data, limit=16)[0]["stream"]
    assert found["steps"] == 2
    assert found["tokens_per_step"] == tokens / 2
    assert found["fill"] == tokens / sum(batch.ids.numel() for batch in batches) < 1
    assert found["micro_batches_per_step"] == len(batches) / 2
    assert found["tokens_per_second"] / found["samples_per_second"] == pytest.approx(tokens / 16)


def test_a_sample_that_would_stop_the_training_is_told(make_recipe, tmp_path):
    unanswered = {"messages": [{"role": "user", "content": "who?"}]}
    (tmp_path / "wrong.jsonl").write_text(json.dumps(unanswered) + "\n")
    recipe = make_recipe({"data": [{"reader": "messages", "path": "wrong.jsonl"}]})
    (stage,) = data_stats(open_data(recipe, data_root=tmp_path))
    assert stage["sources"][0]["wrong"] == 1
    assert stage["sources"][0]["share_of_targets"] is None
    assert "no token is a target" in stage["stream"]["fault"]


def test_branches_are_counted_apart_where_a_stage_does_not_learn_to_respond(make_recipe):
    worlds = [{"reader": "world", "name": "scenes", "size": 3}]
    data = open_data(make_recipe({"data": worlds}, {"data": worlds, "objective": "causal"}))
    respond, causal = data_stats(data)
    assert respond["sources"][0]["rows"] == 3
    branches = sum(len(data.sources["stage1"][0][index].branches) for index in range(3))
    assert causal["sources"][0]["rows"] == branches


def test_stats_are_written_as_json_and_drawn(data, tmp_path):
    stats = data_stats(data)
    write_stats(stats, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "stats.json").read_text()) == stats
    picture = PIL.Image.open(tmp_path / "out" / "lengths.png")
    assert len(picture.convert("RGB").getcolors(1 << 24)) > 20
