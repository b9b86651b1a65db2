import os
import sys

import numpy as np
import open_clip
import pytest
import torch
from open_clip.push_to_hf_hub import save_for_hf

from mmgpt.config import UserError, build
from mmgpt.datasets.media import Audio, Image
from mmgpt.datasets.sample import Message, Sample
from mmgpt.evaluation.tasks import similar
from mmgpt.evaluation.tasks.exemplar_pool import Pool
from mmgpt.evaluation.tasks.few_shot import Exemplars, ShotConfig, Shots
from mmgpt.evaluation.tasks.item import TaskItem
from mmgpt.evaluation.tasks.similar import Embedder, Similar, open_embedder, question_of
from mmgpt.evaluation.tasks.task import Task, load_task
from mmgpt.generation.assistant import Assistant

CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 2},
    "text_cfg": {"context_length": 8, "vocab_size": 20, "width": 16, "heads": 2, "layers": 1},
}


class NoTokenizer:
    def save_pretrained(self, folder):
        pass


@pytest.fixture
def clip(tmp_path):
    """A tiny model as open_clip saves it, and its folder."""
    torch.manual_seed(0)
    model = open_clip.CLIP(**CLIP).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.visual.image_mean, model.visual.image_std = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
    save_for_hf(model, NoTokenizer(), CLIP, tmp_path / "clip", safe_serialization=True)
    return model, tmp_path / "clip"


@pytest.fixture
def task(easy_vqa) -> Task:
    return Task(load_task("easy_vqa"), easy_vqa)


def by(**options) -> ShotConfig:
    return build(ShotConfig, {"strategy": "similar", **options}, "shots")


def ranked(pool: Pool, items: list[TaskItem], embed, of: str, count: int) -> list[list[str]]:
    """By brute force, for each item: the best of each sample, the most similar first; ties by key."""
    own = [one for sample in range(len(pool.source)) for one in pool.items(sample)]
    vectors = embed([question_of(one, of) for one in [*items, *own]]).numpy()
    return [_best(vector, own, vectors[len(items) :], count) for vector in vectors[: len(items)]]


def _best(query, own, vectors, count):
    best: dict[str, tuple[int, str]] = {}
    for one, vector in zip(own, vectors, strict=True):
        rank = (-round(float(vector @ query) / 1e-5), one.key)
        sample = one.key.partition("#")[0]
        best[sample] = min(best.get(sample, rank), rank)
    return [key for _, key in sorted(best.values())[:count]]


@pytest.mark.parametrize(
    ("how", "of"), [("decoder", "media"), ("decoder", "both"), ("last", "text"), ("encoder", "media")]
)
def test_the_most_similar_of_all_are_shown_and_the_very_most_last(how, of, task, answerer):
    pool = Exemplars(task.pool, "easy_vqa", by(embedder=how, embed_parts=of))
    items = task.items()[:6]
    expected = ranked(Pool(task.pool), items, lambda questions: answerer.embed(questions, how), of, 5)
    assert [[one.key for one in pool.of(item, 5, answerer)] for item in items] == [keys[::-1] for keys in expected]


def test_a_tower_of_open_clip_finds_by_its_image_features(clip, task):
    model, folder = clip
    prepare = open_clip.image_transform(32, False, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28))

    @torch.no_grad()
    def embed(questions):
        return torch.stack([model.encode_image(prepare(one.load())[None], normalize=True)[0] for (one,) in questions])

    embedder = open_embedder(f"open_clip:{folder}", None)
    questions = [question_of(item, "media") for item in task.items()[:7]]
    torch.testing.assert_close(embedder.embed(questions), embed(questions), atol=1e-5, rtol=0)
    pool = Exemplars(task.pool, "easy_vqa", by(embedder=f"open_clip:{folder}"))
    items = task.items()[::4]
    expected = ranked(Pool(task.pool), items, embed, "media", 4)
    assert [[one.key for one in pool.of(item, 4)] for item in items] == [keys[::-1] for keys in expected]


def test_sounds_are_found_by_the_encoder_and_several_pictures_by_their_mean(make_bundle, clip):
    assistant = Assistant(make_bundle(audio={"kind": "mlp", "stride": 2}))
    rng = np.random.default_rng(0)
    sounds = [Audio(rng.normal(size=4_000).astype(np.float32) * 0.03 * n, rate=16_000) for n in range(1, 7)]
    source = [
        Sample((Message.of("user", sound, "which?"), Message.of("assistant", f"{n}")), key=f"s{n}")
        for n, sound in enumerate(sounds)
    ]
    item = TaskItem("q", (Message.of("user", Audio(sounds[2].source * 1.001, rate=16_000), "which?"),), "", ())
    for how in ("encoder", "decoder"):
        pool = Exemplars(source, "sounds", by(embedder=how))
        assert pool.of(item, 3, assistant)[-1].key == "s2"
    with pytest.raises(UserError, match="is no picture, which is all that open_clip embeds"):
        Exemplars(source, "sounds", by(embedder=f"open_clip:{clip[1]}")).of(item, 3)
    embedder = open_embedder(f"open_clip:{clip[1]}", None)
    pictures = [Image(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)) for _ in range(2)]
    one, other, both = embedder.embed([pictures[:1], pictures[1:], pictures])
    torch.testing.assert_close(both, torch.nn.functional.normalize(one + other, dim=0))


def test_an_item_of_the_pool_is_not_its_own_exemplar_and_no_sample_comes_twice(task, answerer):
    pool = Exemplars(task.pool, "easy_vqa", by())
    (item, *_) = Pool(task.pool).items(5)
    keys = [one.key for one in pool.of(item, 11, answerer)]
    assert len({key.partition("#")[0] for key in keys}) == 11
    assert item.key.partition("#")[0] not in {key.partition("#")[0] for key in keys}
    with pytest.raises(UserError, match="12 shots asked for, it has 12 exemplars, 11 beside the item"):
        pool.of(item, 12, answerer)


def test_equal_questions_of_different_samples_come_in_the_order_of_their_keys():
    source = [Sample((Message.of("user", "?"), Message.of("assistant", "a")), key=key) for key in "dbca"]
    constant = Embedder("constant", lambda questions: torch.ones(len(questions), 1))
    found = Similar(Pool(source), constant, "text").nearest(TaskItem("q", (Message.of("user", "?"),), "", ()))
    assert "".join(entry.key for entry in found) == "abcd"


class Counting(Assistant):
    embedded = 0

    def embed(self, prompts, *args, **options):
        self.embedded += len(prompts)
        return super().embed(prompts, *args, **options)


def test_the_pool_is_embedded_once_over_items_seeds_and_runs(task, answerer, tmp_path):
    model = Counting(answerer.bundle)
    first = Exemplars(task.pool, "easy_vqa", by(), cache=tmp_path)
    items = task.items()[:3]
    expected = [first.of(item, 2, model) for item in items]
    assert model.embedded == 12 + 3  # the three questions about a picture share its vector
    first.seeded(1).prompt(items[0], Shots.parse("2"), model)
    assert model.embedded == 12 + 4
    again = Exemplars(task.pool, "easy_vqa", by(), cache=tmp_path)
    keys = [[one.key for one in again.of(item, 2, model)] for item in items]
    assert keys == [[one.key for one in shown] for shown in expected]
    assert model.embedded == 12 + 7
    Exemplars(task.pool, "easy_vqa", by(embedder="last"), cache=tmp_path).of(items[0], 2, model)
    assert model.embedded == 2 * 12 + 8
    assert len(list(tmp_path.iterdir())) == 2


def test_a_picture_that_changed_on_disk_is_embedded_again(tmp_path):
    picture = tmp_path / "a.png"
    Image(np.zeros((4, 4, 3), np.uint8)).load().save(picture)
    source = [Sample((Message.of("user", Image(str(picture))), Message.of("assistant", "a")), key="a")]
    runs = []
    embedder = Embedder("e", lambda questions: runs.append(1) or torch.ones(len(questions), 1))
    for touched in (False, False, True):
        if touched:
            os.utime(picture, ns=(1, 1))
        Similar(Pool(source), embedder, "media", tmp_path / "cache")
    assert len(runs) == 2


def test_without_open_clip_its_embedder_names_the_extra(clip, monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(UserError, match=r'embedder=open_clip:.*clip needs open_clip; pip install "mmgpt\[eval\]"'):
        open_embedder(f"open_clip:{clip[1]}", None)


def test_what_cannot_embed_is_refused_with_the_way_out(task, tmp_path, answerer):
    class Remote:
        name = "openai:x"

    item = task.items()[0]
    for model, told in ((Remote(), "openai:x gives no embeddings"), (None, "no model is given")):
        with pytest.raises(UserError, match=f"embedder=decoder: {told}; say embedder: open_clip:FOLDER"):
            Exemplars(task.pool, "easy_vqa", by()).of(item, 2, model)
    with pytest.raises(UserError, match=r"no model of open_clip, which is an open_clip_config.json and"):
        open_embedder(f"{similar.OPEN_CLIP}{tmp_path}", None)
    words = TaskItem("w", (Message.of("user", "in words?"),), "", ())
    with pytest.raises(UserError, match=r"w: has no media to be found by; say shots.embed_parts: text"):
        Exemplars(task.pool, "easy_vqa", by()).of(words, 2, answerer)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"embedder": "decodr"}, "embedder=decodr is not known; did you mean decoder"),
        ({"embedder": "encoder", "embed_parts": "both"}, "embed_parts=both: embedder=encoder embeds media alone"),
        (
            {"embedder": "open_clip:x", "embed_parts": "text"},
            "embed_parts=text: embedder=open_clip:x embeds media alone",
        ),
        ({"labels": "wrong"}, "labels='wrong'"),
    ],
)
def test_a_config_that_cannot_work_is_refused(options, told):
    with pytest.raises(UserError, match=told):
        by(**options)
