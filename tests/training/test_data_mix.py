import json
import math

import pytest

from mmgpt.config import UserError
from mmgpt.datasets.readers.registry import open_source
from mmgpt.datasets.worlds.world import WorldConfig
from mmgpt.run_log import read_log
from mmgpt.training.data_mix import order_of, steps_of
from mmgpt.training.loop import train
from mmgpt.training.recipe import StageConfig


def stage_of(*sizes: int, **options) -> tuple[StageConfig, list]:
    """A stage of worlds of these sizes; a pair is a size and what else its source says."""
    given = [size if isinstance(size, tuple) else (size, {}) for size in sizes]
    data = [{"reader": "world", "name": "stories", "size": size, **more} for size, more in given]
    stage = StageConfig.model_validate({"name": "mixed", "data": data, "batch_size": 4, **options})
    return stage, [open_source(item) for item in stage.data]


def shares(*sizes, renderer=None, **options) -> list[float]:
    stage, sources = stage_of(*sizes, **options)
    weights = order_of(stage, sources, renderer, 0).weights
    return [weight / sum(weights) for weight in weights]


def test_epochs_of_a_stage_go_through_every_source_as_often_and_end_together():
    stage, sources = stage_of(10, 30, epochs=1.5)
    assert steps_of(stage, sources) == math.ceil(1.5 * 40 / 4)
    order = order_of(stage, sources, None, 0)
    drawn = list(order.draw())
    assert [sum(source == which for source, _ in drawn) for which in (0, 1)] == [15, 45]
    first_half = drawn[:30]
    assert sum(source == 0 for source, _ in first_half) in (7, 8)


def test_a_source_with_epochs_of_its_own_ends_and_the_others_go_on():
    stage, sources = stage_of((6, {"epochs": 2}), 50, steps=20)
    drawn = list(zip(order_of(stage, sources, None, 0).draw(), range(80), strict=False))
    assert sum(source == 0 for (source, _), _ in drawn) == 12
    assert {source for (source, _), number in drawn if number >= 24} == {1}


def test_steps_beyond_the_epochs_are_refused_before_training():
    stage, sources = stage_of((6, {"epochs": 2}), (10, {"epochs": 1}), steps=6)
    with pytest.raises(UserError, match=r"mixed: 6 steps of 4 samples, but its sources end after 22 samples"):
        steps_of(stage, sources)
    assert steps_of(*stage_of((6, {"epochs": 2}), (12, {"epochs": 1}), steps=6)) == 6


def test_a_source_with_steps_of_its_own_leaves_at_the_end_of_that_step():
    stage, sources = stage_of((50, {"steps": 3}), (50, {"weight": 2.0}), (9, {"epochs": 1}), steps=20)
    order = order_of(stage, sources, None, 0)
    drawn = [source for (source, _), _ in zip(order.draw(), range(80), strict=False)]
    assert drawn[:12].count(0) == 3
    assert 0 not in drawn[12:]
    assert drawn.count(2) == 9
    assert order.counts(80) == [3, 68, 9]
    for start in (5, 12, 13, 40):
        tail = order.draw(start)
        again = order.draw(position=json.loads(json.dumps(tail.position)))
        assert [next(tail)[0] for _ in range(20)] == [next(again)[0] for _ in range(20)] == drawn[start : start + 20]


def test_steps_of_sources_that_end_before_the_stage_or_stand_beside_epochs_are_refused():
    with pytest.raises(
        UserError, match=r"its sources end after 7 steps, and the stage takes 9; leave the steps of one"
    ):
        steps_of(*stage_of((5, {"steps": 7}), (5, {"steps": 2}), steps=9))
    with pytest.raises(UserError, match=r"the stage counts epochs; give it steps"):
        steps_of(*stage_of((5, {"steps": 7}), 5, epochs=2))
    assert steps_of(*stage_of((5, {"steps": 7}), 5, steps=9)) == 9


def test_a_temperature_lies_between_the_sizes_and_even_shares():
    assert shares(10, 1000, steps=5) == [0.5, 0.5]
    assert shares(10, 1000, steps=5, mixture_temperature=1.0) == pytest.approx([10 / 1010, 1000 / 1010])
    assert shares(10, 1000, steps=5, mixture_temperature=2.0) == pytest.approx([1 / 11, 10 / 11])
    assert shares(10, 1000, steps=5, mixture_temperature=1e9) == pytest.approx([0.5, 0.5])
    assert shares((10, {"weight": 3.0}), 10, steps=5, mixture_temperature=1.0) == pytest.approx([0.75, 0.25])


def test_weights_of_tokens_give_sources_equal_tokens(make_bundle):
    renderer = make_bundle().renderer
    long, short = (WorldConfig(reader="world", name=name, size=300) for name in ("scenes", "stories"))
    stage = StageConfig.model_validate(
        {
            "name": "mixed",
            "data": [long.model_dump(), short.model_dump()],
            "steps": 60,
            "batch_size": 4,
            "weight_unit": "tokens",
        }
    )
    sources = [open_source(item) for item in stage.data]
    tokens = [0, 0]
    for (source, index), _ in zip(order_of(stage, sources, renderer, 0).draw(), range(240), strict=False):
        tokens[source] += len(renderer.render(sources[source][index]).ids)
    assert tokens[0] == pytest.approx(tokens[1], rel=0.1)


@pytest.mark.parametrize("options", [{}, {"steps": 3, "epochs": 1}])
def test_a_stage_ends_by_steps_or_by_epochs_and_not_by_both_or_neither(options):
    with pytest.raises(ValueError, match="give one of the two"):
        stage_of(10, **options)


@pytest.mark.train
def test_a_stage_of_epochs_in_packed_rows_trains_to_its_end_on_all_its_samples(make_recipe, tmp_path):
    data = [{"reader": "world", "name": "scenes", "size": 5}, {"reader": "world", "name": "stories", "size": 8}]
    recipe = make_recipe({"data": data, "steps": None, "epochs": 2, "pack_length": 300, "batch_size": 4})
    run = train(recipe, out=tmp_path / "run")
    lines = [line for line in read_log(run.folder / "log.jsonl") if "loss" in line]
    assert lines[-1]["step"] == math.ceil(2 * 13 / 4)
    state = json.loads((run.folder / "stage0" / "checkpoint-7" / "trainer_state.json").read_text())
    assert state["counts"]["samples"] == 26
