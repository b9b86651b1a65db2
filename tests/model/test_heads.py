import itertools
import math
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from mmgpt.config import UserError, build
from mmgpt.datasets.media import Audio, Image
from mmgpt.datasets.sample import Message, Sample
from mmgpt.inputs.batch import collate
from mmgpt.inputs.trimming import TooLong
from mmgpt.model.config import ModelConfig
from mmgpt.model.heads import BLANK, SYMBOLS, ClassifyConfig, CTCConfig, CTCHead

SAME = {"atol": 1e-5, "rtol": 1e-5}
CTC = {"kind": "ctc", "modality": "audio"}
LABELS = ["red", "lime", "blue", "white"]
CLASSIFY = {"kind": "classify", "modality": "image", "labels": LABELS}
CONTRASTIVE = {"kind": "contrastive", "modality": "image", "width": 8}
SPOKEN = {"kind": "contrastive", "modality": "audio", "width": 8}


def noise(seconds: float, seed: int) -> Audio:
    return Audio(np.random.default_rng(seed).normal(size=round(8000 * seconds)).astype(np.float32), rate=8000)


def told(medium, reply: str, key: str = "k") -> Sample:
    return Sample((Message.of("user", medium, "What is it?"), Message.of("assistant", reply)), key=key)


def picture(colour: str) -> Image:
    return Image(PIL.Image.new("RGB", (16, 16), colour))


@pytest.fixture
def listener(make_bundle):
    return make_bundle(audio={"kind": "linear"}, heads=[CTC, SPOKEN])


@pytest.fixture
def viewer(make_bundle):
    return make_bundle(heads=[CLASSIFY, CONTRASTIVE])


@pytest.fixture
def clips(listener):
    words = ["seven", "a long red cross", "seven", "oo", "zero"]
    samples = [told(noise(0.4 + 0.35 * n, n), word) for n, word in enumerate(words)]
    return [listener.renderer.render(sample, "ctc") for sample in samples]


@pytest.fixture
def views(viewer):
    """Pictures, the last two with one and the same reply."""
    return [viewer.renderer.render(told(picture(name), name), "classify") for name in ("white", "red", "lime", "red")]


def features_of(bundle, rendered):
    """The real features (N, D) of the only medium of a sample, encoded without any other."""
    (modality,), media = {m.modality for m in rendered.media}, collate([rendered]).media
    features_MND, grids = bundle.model.encode(modality, media[modality])
    return features_MND[0, : math.prod(grids[0])]


def test_ctc_is_torchs_loss_of_every_clip_alone_summed(listener, clips):
    head = listener.model.heads["audio_ctc"]
    expected = 0.0
    for one in clips:
        logprobs_NS = F.log_softmax(head.output(features_of(listener, one)), dim=-1)
        symbols = torch.tensor([byte + 1 for byte in one.media[0].text.text.encode()])
        sizes = torch.tensor([len(logprobs_NS)]), torch.tensor([len(symbols)])
        expected += F.ctc_loss(logprobs_NS[:, None], symbols[None], *sizes, blank=0, reduction="sum")
    loss = listener.model(collate(clips), ["audio_ctc"])
    torch.testing.assert_close(loss.heads["audio_ctc"], expected, **SAME)
    assert len(loss.nll_N) == 0


@given(text=st.text(alphabet="ab é", min_size=1, max_size=3), frames=st.integers(1, 6))
def test_ctc_refuses_exactly_the_transcripts_that_no_path_through_the_frames_spells(text, frames):
    symbols = list(text.encode())
    paths = itertools.product([None, *set(symbols)], repeat=frames)
    spelt = any([s for s, _ in itertools.groupby(path) if s is not None] == symbols for path in paths)
    assert (CTCConfig(kind="ctc").pair_error(text, frames) is None) == spelt


def test_the_greedy_transcript_joins_repeats_and_drops_blanks_and_padding():
    head = CTCHead(CTCConfig(kind="ctc"), width=SYMBOLS, text_width=1)
    torch.nn.init.eye_(head.output.weight)
    torch.nn.init.zeros_(head.output.bias)
    t, h, r, e = (byte + 1 for byte in b"thre")
    frames = [[t, t, h, BLANK, r, e, e, BLANK, e], [BLANK, 0xC3 + 1, 0xA9 + 1, BLANK, 0xC3 + 1, t, t, t, t]]
    features_PND = F.one_hot(torch.tensor(frames), SYMBOLS).float()
    assert head.transcribe(features_PND, torch.tensor([9, 5])) == ["three", "é\ufffd"]


def test_sigmoid_loss_is_the_pseudo_code_of_the_paper(viewer, views):
    model, head = viewer.model, viewer.model.heads["image_contrastive"]
    distinct = views[:3]  # the paper takes every text as the match of one picture only
    # algorithm 1 of arXiv:2303.15343, with the sum not yet divided by n
    img_emb = torch.stack([head.from_media(features_of(viewer, one).mean(dim=0)) for one in distinct])
    texts = [
        [*viewer.tokenizer.encode(one.media[0].text.text), viewer.tokenizer.special("<|end|>")] for one in distinct
    ]
    states = []
    for ids in texts:
        positions = torch.arange(len(ids))[None]
        states.append(model.decoder(model.decoder.embed(torch.tensor([ids])), positions)[0, -1])
    txt_emb = head.from_text(torch.stack(states))
    t, n = torch.exp(head.log_scale), len(distinct)
    zimg, ztxt = img_emb / img_emb.norm(dim=1, keepdim=True), txt_emb / txt_emb.norm(dim=1, keepdim=True)
    logits = zimg @ ztxt.T * t + head.bias
    labels = 2 * torch.eye(n) - torch.ones(n, n)
    expected = -torch.sum(F.logsigmoid(labels * logits))
    loss = model(collate(distinct), ["image_contrastive"]).heads["image_contrastive"]
    torch.testing.assert_close(loss, expected, **SAME)
    assert (t.item(), head.bias.item()) == (pytest.approx(10), -10)


def test_sigmoid_loss_is_that_of_hugging_faces_siglip(viewer, views):
    siglip = pytest.importorskip("transformers.models.siglip.modeling_siglip")
    config = pytest.importorskip("transformers").SiglipConfig(
        text_config={"vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1},
        vision_config={"image_size": 8, "patch_size": 8, "hidden_size": 8, "num_attention_heads": 1},
    )
    theirs, head = siglip.SiglipModel(config), viewer.model.heads["image_contrastive"]
    theirs.logit_scale.data.fill_(head.log_scale.item())
    theirs.logit_bias.data.fill_(head.bias.item())
    media = collate(views[:3]).media["image"]
    with torch.no_grad():
        image_embeds = viewer.model.embed_media("image", media)
        text_embeds = viewer.model.embed_texts("image", [text.ids for text in media.texts])
    theirs.vision_model.forward = lambda **_: siglip.BaseModelOutputWithPooling(pooler_output=image_embeds)
    theirs.text_model.forward = lambda **_: siglip.BaseModelOutputWithPooling(pooler_output=text_embeds)
    expected = theirs(input_ids=torch.zeros(3, 1).long(), pixel_values=torch.zeros(1), return_loss=True).loss
    loss = viewer.model(collate(views[:3]), ["image_contrastive"]).heads["image_contrastive"] / 3
    torch.testing.assert_close(loss, expected, **SAME)


def test_media_with_equal_texts_match_one_and_the_same_text(viewer, views):
    head, media = viewer.model.heads["image_contrastive"], collate(views).media["image"]
    distinct = ["lime", "red", "white"]
    ids = {text.text: text.ids for text in media.texts}
    texts_KW = viewer.model.embed_texts("image", [ids[text] for text in distinct])
    logits_MK = viewer.model.embed_media("image", media) @ texts_KW.T * head.log_scale.exp() + head.bias
    expected = sum(
        -F.logsigmoid(logits_MK[m, k] if one.text == text else -logits_MK[m, k])
        for m, one in enumerate(media.texts)
        for k, text in enumerate(distinct)
    )
    loss = viewer.model(collate(views), ["image_contrastive"]).heads["image_contrastive"]
    torch.testing.assert_close(loss, expected, **SAME)


def test_classify_is_torchs_cross_entropy_over_the_mean_of_the_features(viewer, views):
    output = viewer.model.heads["image_classify"].output
    logits = torch.stack([output(features_of(viewer, one).mean(dim=0)) for one in views])
    expected = F.cross_entropy(logits, torch.tensor([LABELS.index(one.media[0].text.text) for one in views]))
    loss = viewer.model(collate(views), ["image_classify"]).heads["image_classify"]
    torch.testing.assert_close(loss / len(views), expected, **SAME)


def test_embeddings_have_length_one_and_do_not_depend_on_what_shares_their_batch(listener, clips):
    model, media = listener.model, collate(clips).media["audio"]
    together = model.embed_media("audio", media), model.embed_texts("audio", [text.ids for text in media.texts])
    for embedded in together:
        torch.testing.assert_close(embedded.norm(dim=-1), torch.ones(len(clips)))
    alone = [collate([one]).media["audio"] for one in clips]
    apart = (
        torch.cat([model.embed_media("audio", one) for one in alone]),
        torch.cat([model.embed_texts("audio", [one.texts[0].ids]) for one in alone]),
    )
    torch.testing.assert_close(together, apart, **SAME)
    assert model.transcribe(media) == [model.transcribe(one)[0] for one in alone]


@pytest.mark.parametrize("name", ["audio_ctc", "audio_contrastive"])
def test_gradients_of_a_heads_loss_reach_the_encoder_and_leave_other_parts_alone(name, listener, clips):
    model = listener.model
    model(collate(clips), [name]).heads[name].backward()
    touched = {".".join(key.split(".")[:2]) for key, p in model.named_parameters() if p.grad is not None}
    decoder = {part for part in touched if part.startswith("decoder.")}
    assert touched - decoder == {"encoders.audio", f"heads.{name}"}
    assert bool(decoder) == (name == "audio_contrastive")
    assert all(p.grad is None or p.grad.abs().sum() > 0 for p in model.encoders["audio"].blocks.parameters())


def test_the_encoder_runs_once_a_batch_for_the_decoder_and_all_heads(viewer):
    rendered = [viewer.renderer.render(told(picture(name), name)) for name in LABELS]
    calls = []
    viewer.model.encoders["image"].register_forward_hook(lambda *args: calls.append(1))
    loss = viewer.model(collate(rendered), ["image_classify", "image_contrastive"])
    assert len(calls) == 1
    assert loss.heads.keys() == {"image_classify", "image_contrastive"}
    torch.testing.assert_close(loss.total, viewer.model(collate(rendered)).total)


def test_an_auxiliary_passes_over_what_gives_it_no_pair(make_bundle):
    bundle = make_bundle(audio={"kind": "linear"}, heads=[CTC, CLASSIFY])
    two = Sample((Message.of("user", picture("red"), picture("blue"), "?"), Message.of("assistant", "red")), key="two")
    short, other = told(noise(0.05, 1), "much longer than the clip"), told(picture("red"), "a red square")
    good = [told(noise(0.5, 0), "one"), told(picture("lime"), "lime")]
    batch = collate([bundle.renderer.render(sample) for sample in (two, short, other, *good)])
    assert [bundle.model.head_count(name, batch) for name in ("audio_ctc", "image_classify")] == [3, 1]
    alone = collate([bundle.renderer.render(sample) for sample in good])
    names = ["audio_ctc", "image_classify"]
    torch.testing.assert_close(bundle.model(batch, names).heads, bundle.model(alone, names).heads, **SAME)
    assert bundle.model(collate([bundle.renderer.render(two)]), names).heads == {}


def test_a_pair_is_the_only_medium_of_a_modality_and_the_only_reply_in_words(make_bundle, scenes):
    bundle = make_bundle(audio={"kind": "linear"}, heads=[CTC, CLASSIFY, CONTRASTIVE])
    both = Sample((Message.of("user", noise(0.5, 0), picture("red")), Message.of("assistant", "red")), key="both")
    texts = [medium.text for medium in bundle.renderer.render(both).media]
    assert [text.text for text in texts] == ["red", "red"]
    assert texts[0].ids == (*bundle.tokenizer.encode("red"), bundle.tokenizer.special("<|end|>"))
    nine = bundle.renderer.render(scenes[0])
    one = bundle.renderer.render(replace(scenes[0], branches=scenes[0].branches[:1]))
    assert (nine.media[0].text, one.media[0].text.text) == (None, scenes[0].branches[0][-1].text)
    twice = Sample((*both.messages, Message.of("user", "Sure?"), Message.of("assistant", "yes")), key="twice")
    assert [medium.text for medium in bundle.renderer.render(twice).media] == [None, None]
    in_reply = Sample((Message.of("user", "Draw."), Message.of("assistant", picture("red"), "red")), key="reply")
    assert bundle.renderer.render(in_reply).media[0].text is None


def test_under_an_encoders_objective_a_sample_without_a_pair_is_an_error_that_names_it_and_the_rule(viewer, listener):
    def refused(bundle, sample, objective, message, kind=UserError):
        with pytest.raises(kind, match=message):
            bundle.renderer.render(sample, objective)

    two = Sample((Message.of("user", picture("red"), picture("red")), Message.of("assistant", "red")), key="set/2")
    rule = (
        r"set/2: gives classify no pair, which is exactly one medium \(image\) and exactly one assistant turn, in words"
    )
    refused(viewer, two, "classify", rule + "; it holds 2 image; leave it out")
    refused(listener, told("Hi.", "Ho.", "set/3"), "contrastive", r"set/3: gives contrastive no pair.*holds no media")
    refused(
        viewer, told(picture("red"), "lme", "set/4"), "classify",
        "set/4: the reply 'lme' is not a label of image_classify; did you mean lime",
    )  # fmt: skip
    short = told(noise(0.05, 0), "three", "set/5")
    refused(
        listener,
        short,
        "ctc",
        r"set/5: ctc needs 6 encoded frames for its transcript 'three', the clip gives 2",
        TooLong,
    )


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ([{"kind": "classify", "modality": "audio", "labels": LABELS}], "classify is for audio, .* no encoder"),
        ([{"kind": "contrastive", "modality": "imag"}], "is for imag, which has no encoder; did you mean image?"),
        ([CONTRASTIVE, {**CONTRASTIVE, "width": 9}], "heads hold contrastive for image twice; leave heads.1 out"),
        ([{"kind": "ctc", "modality": "image"}], r"heads.0.modality='image': Input should be 'audio'"),
        ([{**CLASSIFY, "labels": ["a", "b", "a"]}], r"labels hold 'a' twice; each must differ"),
        ([{**CLASSIFY, "labels": ["a"]}], r"heads.0.labels=\['a'\]: List should have at least 2 items"),
        ([{"kind": "contrastiv", "modality": "image"}], "heads.0.kind=contrastiv is not known; did you mean"),
    ],
)  # fmt: skip
def test_heads_that_do_not_fit_the_model_are_refused_with_the_remedy(heads, message, make_bundle):
    tree = make_bundle().model.config.model_dump(mode="json")
    with pytest.raises(UserError, match=message):
        build(ModelConfig, {**tree, "heads": heads}, "m")


def test_embedding_and_transcribing_without_the_head_name_what_to_add(make_bundle, views):
    model, media = make_bundle().model, collate(views).media["image"]
    for call, kind in (
        (lambda: model.embed_media("image", media), "contrastive"),
        (lambda: model.embed_texts("image", [(1, 2)]), "contrastive"),
        (lambda: model.transcribe(media), "ctc"),
    ):
        with pytest.raises(UserError, match=rf"no {kind} head for .*; train one, with {{kind: {kind}, modality: "):
            call()


def test_a_byte_and_a_pair_are_what_the_losses_are_divided_by(listener, clips):
    batch = collate(clips)
    bytes_in_all = sum(len(one.media[0].text.text.encode()) for one in clips)
    assert listener.model.head_count("audio_ctc", batch) == bytes_in_all
    assert listener.model.head_count("audio_contrastive", batch) == len(clips)
    assert ClassifyConfig.model_validate(CLASSIFY).loss_weight("é") == 1
    assert CTCConfig(kind="ctc").loss_weight("é") == 2


def test_alike_is_the_nats_to_find_the_own_class_among_all_others(make_bundle):
    """Against Khosla et al. 2020, equation 2 (arXiv:2004.11362), summed term by term."""
    bundle = make_bundle(heads=[{"kind": "alike", "modality": "image", "width": 8, "temperature": 0.2}])
    colours = ["red", "lime", "red", "blue", "lime", "red"]
    media = [Image(PIL.Image.new("RGB", (16, 16), c), group=c) for c in [*colours, "white"]]
    media.append(Image(PIL.Image.new("RGB", (16, 16), "red")))  # of no known class: not in the loss
    samples = [
        Sample((Message.of("user", *shown), Message.of("assistant", "a word")), key="k")
        for shown in (media[:5], media[5:])
    ]
    batch = collate([bundle.renderer.render(sample) for sample in samples])
    head = bundle.model.heads["image_alike"]
    grouped = [colours.index(c) for c in colours if c != "blue"]
    features_MND = bundle.model.encode("image", batch.media["image"])[0]
    places = [at for at, c in enumerate(colours) if c != "blue"]
    z = [F.normalize(head.output(features_MND[at].mean(dim=0)), dim=-1) for at in places]
    expected = 0.0
    for i in range(5):
        others = [j for j in range(5) if j != i]
        total = sum(torch.exp(z[i] @ z[j] / 0.2) for j in others)
        own = [j for j in others if grouped[j] == grouped[i]]
        expected -= sum(torch.log(torch.exp(z[i] @ z[j] / 0.2) / total) for j in own) / len(own)
    loss = bundle.model(batch, ["image_alike"])
    torch.testing.assert_close(loss.heads["image_alike"], expected, **SAME)
    assert bundle.model.head_count("image_alike", batch) == 5


def test_alike_needs_two_media_of_a_class(make_bundle):
    bundle = make_bundle(heads=[{"kind": "alike", "modality": "image"}])
    shown = Image(PIL.Image.new("RGB", (16, 16), "red"), group="red")
    batch = collate([bundle.renderer.render(told(shown, "red"))])
    assert bundle.model.head_count("image_alike", batch) == 0
    assert bundle.model(batch, ["image_alike"]).heads == {}
