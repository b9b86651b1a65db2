import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgpt.config import UserError, build
from mmgpt.datasets.media import Audio, MediaError
from mmgpt.datasets.sample import Message, Sample
from mmgpt.inputs.batch import collate, collate_packed, pack
from mmgpt.model.config import ModelConfig
from mmgpt.model.multimodal import splice

SAME = {"atol": 1e-5, "rtol": 1e-5}
KINDS = [
    {"kind": "linear"},
    {"kind": "mlp", "stride": 3},
    {"kind": "fold", "stride": 2},
    {"kind": "resampler", "queries": 3, "depth": 1, "heads": 2},
]


@torch.no_grad()
def logits_of(bundle, rendered, objective="respond"):
    """The logits of each sample of one batch, without those of padding."""
    batch = collate(rendered, objective)
    logits_BTV = bundle.model.decoder.logits(bundle.model.hidden(batch))
    return [logits_BTV[row, : len(one.ids)] for row, one in enumerate(rendered)]


@given(slots_BT=st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=4).map(torch.tensor))
def test_splice_changes_the_slots_and_only_the_slots_in_reading_order(slots_BT):
    x_BTD, tokens_ND = torch.randn(*slots_BT.shape, 3), torch.randn(int(slots_BT.sum()), 3)
    before = x_BTD.clone()
    out_BTD = splice(x_BTD, slots_BT, tokens_ND, "image")
    assert torch.equal(out_BTD[slots_BT], tokens_ND)
    assert torch.equal(out_BTD[~slots_BT], before[~slots_BT])
    assert torch.equal(x_BTD, before)


@given(slots=st.integers(0, 9), tokens=st.integers(0, 9))
def test_splice_refuses_another_number_of_tokens_than_slots_and_names_both(slots, tokens):
    slots_BT = torch.arange(10).expand(1, -1) < slots
    if slots == tokens:
        splice(torch.zeros(1, 10, 2), slots_BT, torch.ones(tokens, 2), "image")
        return
    with pytest.raises(ValueError, match=rf"{slots} image placeholders .* {tokens} tokens"):
        splice(torch.zeros(1, 10, 2), slots_BT, torch.ones(tokens, 2), "image")


def test_a_wrong_token_count_names_sample_medium_expected_and_got(make_bundle, scenes):
    bundle = make_bundle()
    batch = collate([bundle.renderer.render(scenes[0])])
    wrong = replace(batch, media={"image": replace(batch.media["image"], num_tokens=(7,))})
    with pytest.raises(ValueError, match=r"scenes/0/train/0: image made by a function: .* 7 image tokens.* 4;"):
        bundle.model(wrong)


@pytest.mark.parametrize("adapter", KINDS, ids=lambda adapter: adapter["kind"])
@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_rendering_writes_as_many_placeholders_as_the_model_makes_tokens(adapter, stem, make_bundle, scenes):
    bundle = make_bundle(image={"stem": stem}, adapter=adapter)
    rendered = bundle.renderer.render(scenes[0])
    batch = collate([rendered])
    tokens_ND = bundle.model.media_tokens("image", batch.media["image"])
    assert len(tokens_ND) == rendered.media[0].num_tokens == rendered.ids.count(bundle.model.placeholder_ids["image"])
    assert tokens_ND.shape[1] == bundle.model.config.decoder.width


def noise(seconds: float, seed: int) -> Audio:
    return Audio(np.random.default_rng(seed).normal(size=round(8000 * seconds)).astype(np.float32), rate=8000)


@pytest.mark.parametrize(
    "adapter",
    [{"kind": "linear"}, {"kind": "mlp", "stride": 3}, {"kind": "resampler", "queries": 3, "depth": 1, "heads": 2}],
    ids=lambda adapter: adapter["kind"],
)
def test_sounds_of_any_length_beside_pictures_give_the_same_loss_and_gradients_alone_and_together(
    adapter, make_bundle, scenes, gradients
):
    bundle = make_bundle(audio=adapter)
    picture = scenes[0].messages[0].parts[0]
    asked = [
        (noise(0.3, 0), "What is heard?"),
        (picture, noise(0.05, 1), "What is seen, and then ", noise(0.7, 2), "?"),
        (noise(0.001, 3), picture, noise(0.4, 4)),
        ("Neither?",),
        (picture, "What is seen?"),
    ]
    samples = [Sample((Message.of("user", *parts), Message.of("assistant", "a beep"))) for parts in asked]
    rendered = [bundle.renderer.render(sample) for sample in samples]
    for one in rendered:
        assert one.ids.count(bundle.model.placeholder_ids["audio"]) == sum(
            m.num_tokens for m in one.media if m.modality == "audio"
        )
    together = gradients(bundle.model, [collate(rendered)])
    alone = gradients(bundle.model, [collate([one]) for one in rendered])
    torch.testing.assert_close(together, alone, **SAME)


def test_a_sound_over_the_limit_names_sample_and_file_and_the_remedy(make_bundle):
    renderer = make_bundle(audio={"kind": "linear"}).renderer
    long = Sample((Message.of("user", noise(31, 0), "What?"), Message.of("assistant", "rain")), key="set/3")
    with pytest.raises(MediaError, match=r"set/3: audio given as ndarray: 31.00 s of sound, .* limit of 30 s; cut it"):
        renderer.render(long)


def test_a_fold_does_not_fit_a_sound():
    tree = {
        "decoder": {"width": 32, "depth": 1, "heads": 2},
        "encoders": {"audio": {"kind": "conformer", "width": 16, "heads": 2}},
        "adapters": {"audio": {"kind": "fold"}},
    }
    with pytest.raises(UserError, match="fold joins squares of a picture's patches; for a sound take mlp"):
        build(ModelConfig, tree, "m")


@pytest.mark.parametrize("position", ["rope", "learned"])
def test_a_sample_gets_the_same_logits_alone_and_in_a_padded_batch(position, make_bundle, scenes, first_branches):
    bundle = make_bundle(position=position)
    samples = [first_branches(sample, count) for sample, count in zip(scenes, (9, 1, 4, 2, 1, 6), strict=True)]
    samples += [one for sample in scenes[:2] for one in sample.unbranched()[:2]]
    rendered = [bundle.renderer.render(sample) for sample in samples]
    together = logits_of(bundle, rendered)
    for one, logits_TV in zip(rendered, together, strict=True):
        torch.testing.assert_close(logits_of(bundle, [one])[0], logits_TV, **SAME)


@pytest.mark.parametrize("position", ["rope", "learned"])
def test_samples_packed_into_rows_give_the_loss_and_gradients_of_rows_of_their_own(
    position, make_bundle, open_world, scenes, gradients
):
    bundle = make_bundle(position=position, audio={"kind": "mlp", "stride": 2})
    both, stories = open_world("scene_sounds"), open_world("stories")
    samples = [*scenes[:3], both[0], both[1], *(stories[number] for number in range(5)), scenes[0].unbranched()[0]]
    rendered = [bundle.renderer.render(sample) for sample in samples]
    rows = pack(rendered, 400)
    assert 1 < len(rows) < len(rendered) / 2
    loss, grads = gradients(bundle.model, [collate_packed(rows)])
    expected_loss, expected = gradients(bundle.model, [collate(rendered)])
    assert loss == pytest.approx(expected_loss, abs=1e-5)
    torch.testing.assert_close(grads, expected, **SAME)


def test_plain_rows_get_the_same_logits_with_and_without_an_explicit_mask(make_bundle, scenes):
    bundle = make_bundle()
    rendered = [bundle.renderer.render(one) for one in scenes[0].unbranched()]
    plain = collate(rendered)
    assert plain.attention_mask() is None
    masked = replace(plain, is_plain=False)
    with torch.no_grad():
        here_BT = plain.documents >= 0
        torch.testing.assert_close(bundle.model.hidden(plain)[here_BT], bundle.model.hidden(masked)[here_BT], **SAME)


@pytest.mark.parametrize("template", ["plain", "chatml", "llama3"])
@pytest.mark.parametrize("position", ["rope", "learned"])
def test_eight_branches_give_the_loss_and_gradients_of_eight_separate_samples(
    template, position, make_bundle, scenes, first_branches, gradients
):
    bundle = make_bundle(template=template, position=position)
    sample = first_branches(scenes[1], 8)
    branched = collate([bundle.renderer.render(sample)])
    separate = collate([bundle.renderer.render(one) for one in sample.unbranched()])
    assert branched.num_targets == separate.num_targets
    assert (len(branched.media["image"].values), len(separate.media["image"].values)) == (1, 8)
    loss, grads = gradients(bundle.model, [branched])
    expected_loss, expected = gradients(bundle.model, [separate])
    assert loss == pytest.approx(expected_loss, abs=1e-5)
    torch.testing.assert_close(grads, expected, **SAME)


def test_branches_that_open_a_turn_of_their_own_equal_separate_samples(make_bundle, scenes, gradients):
    bundle = make_bundle(template="chatml")
    picture = scenes[0].messages[0].parts[0]
    context = (Message.of("system", "FrameSelection closely."), Message.of("user", picture, "A picture."))
    branches = tuple((Message.of("assistant", answer),) for answer in ("red", "a large blue cross"))
    sample = replace(scenes[0], messages=context, branches=branches)
    loss, grads = gradients(bundle.model, [collate([bundle.renderer.render(sample)])])
    alone = [bundle.renderer.render(one) for one in sample.unbranched()]
    expected_loss, expected = gradients(bundle.model, [collate(alone)])
    assert loss == pytest.approx(expected_loss, abs=1e-5)
    torch.testing.assert_close(grads, expected, **SAME)


def test_media_inside_branches_go_to_the_branch_they_stand_in(make_bundle, scenes, gradients):
    bundle = make_bundle()
    one, two, three = (sample.messages[0].parts[0] for sample in scenes[:3])
    context = (Message.of("user", one, "First."),)
    branches = tuple((Message.of("user", extra, "Then?"), Message.of("assistant", "so")) for extra in (two, three))
    sample = replace(scenes[0], messages=context, branches=branches)
    loss, grads = gradients(bundle.model, [collate([bundle.renderer.render(sample)])])
    alone = [bundle.renderer.render(single) for single in sample.unbranched()]
    expected_loss, expected = gradients(bundle.model, [collate(alone)])
    assert loss == pytest.approx(expected_loss, abs=1e-5)
    torch.testing.assert_close(grads, expected, **SAME)


@settings(max_examples=15)
@given(cuts=st.sets(st.integers(1, 5)), order=st.permutations(range(6)))
def test_loss_and_gradients_do_not_depend_on_how_samples_share_batches(cuts, order, make_bundle, scenes, gradients):
    bundle = make_bundle()
    rendered = [bundle.renderer.render(scenes[at]) for at in order]
    edges = [0, *sorted(cuts), 6]
    groups = [rendered[first:last] for first, last in itertools.pairwise(edges)]
    loss, grads = gradients(bundle.model, [collate(group) for group in groups])
    expected_loss, expected = gradients(bundle.model, [collate(rendered)])
    assert loss == pytest.approx(expected_loss, abs=1e-5)
    torch.testing.assert_close(grads, expected, **SAME)


@pytest.mark.parametrize(("objective", "looks_ahead"), [("causal", False), ("respond", False), ("masked", True)])
def test_only_the_masked_objective_lets_a_later_token_change_an_earlier_logit(
    objective, looks_ahead, make_bundle, scenes
):
    bundle = make_bundle()
    rendered = bundle.renderer.render(scenes[0].unbranched()[0], objective)
    changed = replace(rendered, ids=[*rendered.ids[:-2], (rendered.ids[-2] + 1) % 256, rendered.ids[-1]])
    before, after = (logits_of(bundle, [one], objective)[0][:-2] for one in (rendered, changed))
    assert ((before - after).abs().max() > 1e-4) == looks_ahead
    if not looks_ahead:
        torch.testing.assert_close(before, after, **SAME)


def test_a_branch_changes_no_logit_of_another_branch(make_bundle, scenes):
    bundle = make_bundle()
    rendered = bundle.renderer.render(scenes[0])
    second = [at for at, branch in enumerate(rendered.branches) if branch == 2]
    ids = [(i + 1) % 256 if at in second else i for at, i in enumerate(rendered.ids)]
    before, after = logits_of(bundle, [rendered])[0], logits_of(bundle, [replace(rendered, ids=ids)])[0]
    others = [at for at in range(len(ids)) if at not in second]
    assert torch.equal(before[others], after[others])
    assert not torch.allclose(before[second], after[second])


def test_the_loss_of_each_source_is_told_apart(make_bundle, open_world, scenes):
    bundle = make_bundle()
    story = open_world("stories")[0]
    rendered = [bundle.renderer.render(sample) for sample in (scenes[0], story)]
    batch = collate(rendered)
    loss = bundle.model(batch)
    for number, one in enumerate(rendered):
        alone = bundle.model(collate([one])).total
        assert batch.source_names[number] == one.source
        torch.testing.assert_close(loss.nll_N[loss.sources_N == number].sum(), alone.detach(), atol=1e-4, rtol=1e-5)


def test_an_encoder_under_the_wrong_modality_and_an_adapter_without_encoder_are_refused():
    decoder, fold = {"width": 32, "depth": 1, "heads": 2}, {"kind": "fold", "stride": 3}
    vit = {"kind": "vit", "image_size": 16, "patch_size": 4, "width": 32, "depth": 1, "heads": 2}
    with pytest.raises(UserError, match=r"encoder vit reads image, it cannot be encoders.audio"):
        build(
            ModelConfig,
            {"decoder": decoder, "encoders": {"audio": vit}, "adapters": {"audio": {"kind": "linear"}}},
            "x",
        )
    with pytest.raises(UserError, match=r"encoders \[\] and adapters \['image'\] must be the same modalities"):
        build(ModelConfig, {"decoder": decoder, "adapters": {"image": {"kind": "linear"}}}, "x")
    with pytest.raises(UserError, match=r"stride=3 does not divide the 4x4 patch grid; use one of \[1, 2, 4\]"):
        build(ModelConfig, {"decoder": decoder, "encoders": {"image": vit}, "adapters": {"image": fold}}, "x")
