import json
from itertools import islice

import PIL.Image
import pytest
import torch

from mmgpt.config import UserError
from mmgpt.datasets.mixture import MixtureSampler
from mmgpt.datasets.readers.registry import MessagesConfig, open_source
from mmgpt.inputs.dataloader import StepDataset, iterate_steps


@pytest.fixture
def make_stream(make_bundle, open_world):
    def make(sources=None, limits=(), **options) -> StepDataset:
        sources = sources or [open_world("scenes", size=20), open_world("stories", size=7)]
        defaults = {"objective": "respond", "batch_size": 3, "micro_batch_tokens": 600}
        weights = [1.0 + number for number in range(len(sources))]
        order = MixtureSampler([len(source) for source in sources], weights, 5, limits)
        return StepDataset(sources, order, make_bundle().renderer, **{**defaults, **options})

    return make


def content(step) -> tuple:
    """All of a step that a training sees."""
    batches = [
        (
            b.ids.tolist(),
            b.labels.tolist(),
            b.branches.tolist(),
            [float(m.values.double().sum()) for m in b.media.values()],
        )
        for b in step.batches
    ]
    return batches, step.counts, step.epochs, step.faults


def test_the_stream_is_the_same_for_any_number_of_workers(make_stream):
    expected = [content(step) for step in islice(iterate_steps(make_stream(word_dropout=0.2), 0), 7)]
    for workers in (1, 2):
        assert [content(step) for step in islice(iterate_steps(make_stream(word_dropout=0.2), workers), 7)] == expected


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("objective", ["respond", "causal", "masked"])
def test_a_stream_begun_later_is_the_tail_of_the_whole_stream(objective, workers, make_stream):
    whole = [content(step) for step in islice(iterate_steps(make_stream(objective=objective), 0), 6)]
    later = iterate_steps(make_stream(objective=objective, start=4), workers)
    assert [content(step) for step in islice(later, 2)] == whole[4:]


def test_a_step_holds_as_many_samples_as_the_batch_size_in_shares_of_the_weights(make_stream):
    steps = list(islice(iterate_steps(make_stream(), 0), 10))
    drawn = {name: sum(step.counts[name]["samples"] for step in steps) for name in ("scenes", "stories")}
    assert drawn == {"scenes": 10, "stories": 20}
    assert steps[-1].epochs == {"scenes": pytest.approx(10 / 20), "stories": pytest.approx(20 / 7)}


def test_micro_batches_keep_to_their_tokens_and_hold_every_target_of_the_step(make_stream):
    whole = next(iterate_steps(make_stream(batch_size=9, micro_batch_tokens=100_000), 0)).batches
    cut = next(iterate_steps(make_stream(batch_size=9, micro_batch_tokens=500), 0)).batches
    assert len(whole) == 1
    assert len(cut) > 1
    assert all(batch.ids.numel() <= 500 or len(batch.ids) == 1 for batch in cut)
    assert sum(batch.num_targets for batch in cut) == whole[0].num_targets


def test_the_shares_of_ranks_are_every_so_many_th_draw_and_together_the_step(make_stream):
    options = {"batch_size": 7, "word_dropout": 0.2, "micro_batch_tokens": 1, "start": 2}  # a sample a micro-batch
    whole = next(iterate_steps(make_stream(**options), 0))
    shares = [next(iterate_steps(make_stream(**options, rank=rank, world_size=3), 0)) for rank in range(3)]
    assert [sum(counts["samples"] for counts in share.counts.values()) for share in shares] == [3, 2, 2]
    rows = [sorted(batch.ids.tolist() for batch in step.batches) for step in (whole, *shares)]
    assert sorted(row for share in rows[1:] for row in share) == rows[0]
    assert {str(share.epochs) for share in shares} == {str(whole.epochs)}


@pytest.fixture
def bad_media(tmp_path):
    """Four conversations, of which two name a picture that cannot be used."""
    PIL.Image.effect_noise((32, 32), 50).save(tmp_path / "good.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "good.png").read_bytes()[:500])
    rows = [
        {
            "messages": [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "red"}],
            "images": [name],
        }
        for name in ("good.png", "torn.png", "good.png", "absent.png")
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return open_source(MessagesConfig(reader="messages", path="rows.jsonl"), tmp_path)


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_media_are_skipped_and_counted_with_file_and_reason(workers, bad_media, make_stream):
    step = next(iterate_steps(make_stream([bad_media], batch_size=4), workers))
    assert step.counts["rows"] == {"samples": 4, "skipped": 2, "trimmed": 0}
    assert sum(len(batch.ids) for batch in step.batches) == 2
    torn, absent = step.faults if step.faults[0].startswith("rows/1: ") else reversed(step.faults)
    assert torn.startswith("rows/1: ")
    assert "torn.png: the picture is damaged" in torn
    assert absent.startswith("rows/3: ")
    assert "absent.png: no such file" in absent


def test_samples_too_long_for_the_context_are_skipped_and_shortened_ones_counted(open_world, make_bundle):
    sources = [open_world("scenes", size=20)]
    options = {"objective": "respond", "batch_size": 5, "micro_batch_tokens": 600}
    order = MixtureSampler([20], [1.0], 0)
    short = StepDataset(sources, order, make_bundle(context=60).renderer, **options)
    assert next(iterate_steps(short, 0)).counts["scenes"] == {"samples": 5, "trimmed": 5}
    tiny = StepDataset(sources, order, make_bundle(context=6).renderer, **options)
    step = next(iterate_steps(tiny, 0))
    assert step.counts["scenes"]["skipped"] == len(step.faults) == 5
    assert step.batches == []
    assert "over the context of 6" in step.faults[0]


def test_a_fault_of_the_data_stops_the_stream_with_the_sample_named_also_in_a_worker(tmp_path, make_stream):
    row = {"messages": [{"role": "user", "content": "only asked"}]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    source = open_source(MessagesConfig(reader="messages", path="rows.jsonl"), tmp_path)
    for workers in (0, 1):
        with pytest.raises(UserError, match="rows/0: no token is a target"):
            next(iterate_steps(make_stream([source]), workers))


def test_branches_become_separate_samples_for_objectives_other_than_respond(make_stream, open_world):
    stream = make_stream([open_world("scenes", size=20)], batch_size=2, objective="causal", micro_batch_tokens=10**6)
    (batch,) = next(iterate_steps(stream, 0)).batches
    assert len(batch.ids) == 18
    assert torch.equal(batch.branches, torch.zeros_like(batch.branches))
