"""What a stage does with the heads of a model; the losses themselves are in tests/model/test_heads.py."""

import itertools
import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from resuming import assert_same_weights, train_in_two

from mmgpt.checkpoints.save_load import load_bundle
from mmgpt.config import UserError
from mmgpt.datasets.media import Audio, Image
from mmgpt.datasets.sample import Message, Sample
from mmgpt.inputs.batch import collate
from mmgpt.run_log import read_log
from mmgpt.training.loop import train
from mmgpt.training.optim import make_optimizers
from mmgpt.training.recipe import StageConfig, load_recipe
from mmgpt.training.step import train_step

CTC = {"kind": "ctc", "modality": "audio"}
CLASSIFY = {"kind": "classify", "modality": "image", "labels": ["yes", "no"]}
CONTRASTIVE = {"kind": "contrastive", "modality": "image", "width": 8}
COLOURS = ("red", "lime", "blue", "white", "black", "yellow")


def stage(**options) -> StageConfig:
    return StageConfig(name="s", data=[{"reader": "world", "name": "scenes"}], steps=10, **options)


def tone(hertz: float, seconds: float = 0.5) -> Audio:
    return Audio(np.sin(2 * np.pi * hertz * np.arange(round(8000 * seconds)) / 8000).astype(np.float32), rate=8000)


def told(medium, reply: str) -> Sample:
    return Sample((Message.of("user", medium, "What?"), Message.of("assistant", reply)), key=reply)


def weights_after(model, batches, heads, kind="sgd"):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizers = make_optimizers(model, stage(optimizer={"kind": kind, "weight_decay": 0.1}, learning_rate=0.1))
    stats = train_step(model, optimizers, batches, max_norm=1e9, heads=heads)
    after = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(before)
    return stats, before, after


@pytest.fixture
def mixed(make_bundle, scenes):
    """A model with three heads, and a rendering of samples of both modalities, of all lengths, for an objective."""
    bundle = make_bundle(audio={"kind": "linear"}, heads=[CTC, CLASSIFY, CONTRASTIVE])
    samples = [told(tone(300 * n, 0.3 + 0.1 * n), "do re mi fa so"[: 3 * n]) for n in (1, 2, 3, 4)]
    answered = [one for scene in scenes for one in scene.unbranched() if one.messages[-1].text in ("yes", "no")]
    samples += answered[:4]
    return bundle, lambda objective="respond": [
        bundle.renderer.render(one, objective) for one in (samples[:4] if objective == "ctc" else samples)
    ]


@pytest.mark.parametrize("heads", [{"audio_ctc": 1.0}, {"audio_ctc": 0.3, "image_classify": 2.0}], ids=len)
@pytest.mark.parametrize("split", [(1, 3), (2, 2), (1, 1, 2)], ids=str)
def test_a_byte_and_a_pair_weigh_the_same_however_the_step_is_split(split, heads, mixed):
    bundle, render = mixed
    rendered = render("ctc" if len(heads) == 1 else "respond")
    edges = [sum(split[:n]) for n in range(len(split))] + [len(rendered)]
    split_batches = [collate(rendered[a:b]) for a, b in itertools.pairwise(edges)]
    stats, _, weights = weights_after(bundle.model, split_batches, heads)
    expected_stats, _, expected = weights_after(bundle.model, [collate(rendered)], heads)
    assert stats.loss == pytest.approx(expected_stats.loss, abs=1e-5)
    assert stats.head_losses == pytest.approx(expected_stats.head_losses, abs=1e-5)
    assert stats.num_targets == expected_stats.num_targets
    torch.testing.assert_close(weights, expected, atol=1e-5, rtol=1e-5)


def test_an_auxiliary_is_added_with_its_weight_to_the_loss_of_the_answers(mixed):
    bundle, render = mixed
    batch = collate(render())
    plain, _, _ = weights_after(bundle.model, [batch], {})
    both, _, _ = weights_after(bundle.model, [batch], {"audio_ctc": 0.5, "image_classify": 3.0})
    assert plain.head_losses == {}
    added = 0.5 * both.head_losses["audio_ctc"] + 3.0 * both.head_losses["image_classify"]
    assert both.loss == pytest.approx(plain.loss + added, rel=1e-5)
    assert both.source_losses == pytest.approx(plain.source_losses)


def test_a_head_is_an_output_layer_which_adamw_trains_without_decay(mixed):
    model = mixed[0].model
    muon, adamw = make_optimizers(model, stage(optimizer={"kind": "muon", "weight_decay": 0.1}))
    of_heads = set(model.heads.parameters())
    assert not of_heads & {p for group in muon.param_groups for p in group["params"]}
    assert {group["weight_decay"] for group in adamw.param_groups if of_heads & {*group["params"]}} == {0.0}


@pytest.mark.parametrize("kind", ["adamw", "muon", "sgd"])
def test_parts_that_take_no_part_in_an_encoders_stage_do_not_change_by_a_bit(kind, mixed):
    bundle, render = mixed
    _, before, after = weights_after(bundle.model, [collate(render("ctc"))], {"audio_ctc": 1.0}, kind)
    changed = {".".join(name.split(".")[:2]) for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"encoders.audio", "heads.audio_ctc"}
    _, before, after = weights_after(bundle.model, [collate(render())], {}, kind)
    assert not [name for name in before if name.startswith("heads.") and not torch.equal(before[name], after[name])]


def test_bfloat16_keeps_the_losses_of_heads_near_and_scale_and_bias_in_float32(mixed):
    bundle, render = mixed
    optimizers = make_optimizers(bundle.model, stage(optimizer={"kind": "sgd"}, learning_rate=1e-9))
    heads = {"audio_ctc": 1.0, "image_classify": 1.0, "image_contrastive": 1.0}
    exact, rough = (
        train_step(bundle.model, optimizers, [collate(render())], max_norm=1.0, precision=precision, heads=heads)
        for precision in ("float32", "bfloat16")
    )
    assert rough.head_losses == pytest.approx(exact.head_losses, rel=0.02)
    assert rough.head_losses != exact.head_losses
    assert bundle.model.heads["image_contrastive"].bias.dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"objective": "ctc"},
            r"stage stage0 learns ctc, .* no such head; add \{kind: ctc, modality: ...\} to model.he",
        ),
        ({"auxiliary": {"classify": 0.5}}, r"stage stage0 learns classify, and the model has no such head"),
        ({"auxiliary": {"contrastive": 0}}, r"auxiliary.contrastive=0: Input should be greater than 0"),
        ({"auxiliary": {"clasify": 1}}, r"Input should be 'ctc', 'contrastive', 'classify' or 'alike'"),
        ({"objective": "contrastive", "auxiliary": {"contrastive": 1}}, "contrastive, which is the objective already"),
        ({"objective": "contrastive", "word_dropout": 0.1}, "for causal and respond; contrastive reads no replies"),
    ],
)
def test_a_stage_that_asks_for_what_the_model_has_not_is_refused_when_it_is_read(changes, message, make_recipe):
    with pytest.raises(UserError, match=message):
        make_recipe(changes)


def test_the_example_of_the_documentation_is_a_recipe(tmp_path):
    page = (Path(__file__).resolve().parents[2] / "docs" / "objectives.md").read_text()
    (tmp_path / "own.yaml").write_text("name: own\n" + page.split("```yaml")[1].split("```")[0])
    recipe = load_recipe(tmp_path / "own.yaml")
    assert [stage.head_weights for stage in recipe.stages] == [{"ctc": 1.0}, {"contrastive": 0.1}]


@pytest.mark.parametrize("name", ["real/speech_ctc", "real/emoji_contrastive"])
def test_the_recipes_that_train_a_head_first_have_it_and_build(name):
    recipe = load_recipe(name)
    assert recipe.stages[0].head_weights == {head.kind: 1.0 for head in recipe.model.heads}


@pytest.mark.train
@pytest.mark.parametrize("objective", ["causal", "contrastive"])
def test_stopped_and_resumed_is_straight_bit_for_bit_with_heads(objective, make_recipe, tmp_path):
    model = make_recipe().model_dump(mode="json")["model"] | {"heads": [CLASSIFY, CONTRASTIVE]}
    auxiliary = {"classify": 0.5} | ({"contrastive": 0.1} if objective == "causal" else {})
    options = {"objective": objective, "auxiliary": auxiliary, "optimizer": {"kind": "muon", "weight_decay": 0.1}}
    recipe = make_recipe({**options, "save_every": 1}, model=model)
    train(recipe, out=tmp_path / "straight", device="cpu")
    train_in_two(2, recipe, out=tmp_path / "broken")
    assert_same_weights(tmp_path / "straight", tmp_path / "broken")
    assert "heads.image_contrastive.bias" in load_bundle(tmp_path / "broken").model.state_dict()
    logs = [[r for r in read_log(tmp_path / run / "log.jsonl") if "loss" in r] for run in ("straight", "broken")]
    for name in ("loss", "loss/image_classify", "loss/image_contrastive"):
        assert [record[name] for record in logs[0]] == [record[name] for record in logs[1]]


@pytest.mark.train
def test_a_transcript_that_does_not_fit_its_clip_is_counted_and_skipped_with_its_reason(make_recipe, tmp_path):
    tree = make_recipe().model_dump(mode="json")["model"]
    conformer = {"kind": "conformer", "rate": 8000, "mels": 16, "width": 16, "depth": 1, "heads": 2}
    tree |= {"encoders": {"audio": conformer}, "adapters": {"audio": {"kind": "linear"}}, "heads": [CTC]}
    samples = [told(tone(300), "do"), told(tone(400, 0.1), "much too long")]
    rows = [json.dumps({"messages": [turn.to_dict() for turn in one.messages]}) for one in samples]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    data = [{"reader": "messages", "path": "rows.jsonl"}]
    recipe = make_recipe({"data": data, "objective": "ctc", "max_skipped": 0.6}, model=tree)
    train(recipe, out=tmp_path / "run", data_root=tmp_path, device="cpu")
    log = read_log(tmp_path / "run" / "log.jsonl")
    assert log[-1]["skipped"] == 4
    assert log[-1]["loss"] == log[-1]["loss/audio_ctc"]
    assert "loss/rows" not in log[-1]
    (reason,) = [record["reason"] for record in log if record.get("event") == "skipped"]
    assert "rows/1: ctc needs 14 encoded frames for its transcript 'much too long', the clip gives 3;" in reason


def losses_of(bundle, batch, heads, steps, rate=0.01):
    optimizers = make_optimizers(bundle.model, stage(learning_rate=rate))
    bundle.model.train()
    losses = [train_step(bundle.model, optimizers, [batch], max_norm=1.0, heads=heads).loss for _ in range(steps)]
    bundle.model.eval()
    return losses


@pytest.mark.train
def test_a_conformer_learns_by_ctc_to_write_down_tones(make_bundle):
    bundle = make_bundle(audio={"kind": "linear"}, heads=[CTC])
    names = {"do": 300, "re": 700, "mi": 1200, "fa": 2000}
    low_high = np.concatenate([tone(300).load()[0], tone(2000).load()[0]])
    samples = [told(tone(hertz), name) for name, hertz in names.items()] + [told(Audio(low_high, rate=8000), "do fa")]
    batch = collate([bundle.renderer.render(one, "ctc") for one in samples])
    losses_of(bundle, batch, {"audio_ctc": 1.0}, 150)
    assert bundle.model.transcribe(batch.media["audio"]) == [*names, "do fa"]


@pytest.mark.train
def test_a_contrastive_head_learns_to_find_the_name_of_each_picture(make_bundle):
    bundle = make_bundle(heads=[CONTRASTIVE])
    samples = [told(Image(PIL.Image.new("RGB", (16, 16), colour)), colour) for colour in COLOURS]
    batch = collate([bundle.renderer.render(one, "contrastive") for one in samples])
    losses_of(bundle, batch, {"image_contrastive": 1.0}, 60)
    with torch.no_grad():
        media_MW = bundle.model.embed_media("image", batch.media["image"])
        texts_KW = bundle.model.embed_texts("image", [text.ids for text in batch.media["image"].texts])
    assert (media_MW @ texts_KW.T).argmax(dim=1).tolist() == list(range(len(COLOURS)))
