import numpy as np
import pytest
import torch

import mmgpt
from mmgpt.checkpoints import feature_cache
from mmgpt.checkpoints.feature_cache import FeatureCache, cache_features
from mmgpt.checkpoints.save_load import save_bundle
from mmgpt.config import UserError
from mmgpt.datasets.media import Audio, Image
from mmgpt.datasets.sample import Message
from mmgpt.evaluation.models.model import open_model
from mmgpt.generation.assistant import Assistant
from mmgpt.inputs.batch import collate_media
from mmgpt.run_log import read_log
from mmgpt.training.loop import train

FROZEN = {"train": ["decoder", "adapters.*"], "cache_features": True}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMGPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


@pytest.fixture
def hearing(make_bundle):
    return make_bundle(audio={"kind": "mlp", "stride": 2})


def media_of(bundle, modality):
    rng = np.random.default_rng(0)
    pictures = [Image(rng.integers(0, 255, (16, 16, 3))) for _ in range(3)]
    sounds = [Audio(rng.normal(size=n).astype(np.float32), rate=8000) for n in (900, 2400, 1600)]
    parts = pictures if modality == "image" else sounds
    prompts = [bundle.renderer.prompt((Message.of("user", part, "?"),)) for part in parts]
    return collate_media(prompts)[modality]


def losses_of(run):
    return [line["loss"] for line in read_log(run.folder / "log.jsonl") if "loss" in line]


@pytest.mark.parametrize("modality", ["image", "audio"])
@torch.no_grad()
def test_features_read_back_are_to_the_bit_those_computed_in_any_batch(modality, hearing, cache):
    model, media = hearing.model.eval(), media_of(hearing, modality)
    plain, grids = model.encode(modality, media)
    cache_features(model, [modality])
    kept = model.feature_caches[modality]
    computed, same_grids = model.encode(modality, media)
    assert (kept.hits, kept.misses) == (0, 3)
    cache_features(model, [modality])  # as another run does
    again = model.feature_caches[modality]
    read, _ = model.encode(modality, media)
    assert (again.hits, again.misses, again.num_bytes > 0) == (3, 0, True)
    assert torch.equal(read, computed)
    assert (grids, computed.shape) == (same_grids, plain.shape)
    real = [np.prod(grid) for grid in grids]
    for one, other, count in zip(computed, plain, real, strict=True):
        torch.testing.assert_close(one[:count], other[:count], atol=1e-5, rtol=1e-5)
    assert len(list(cache.iterdir())) == 1


@torch.no_grad()
def test_another_encoder_and_another_precision_have_caches_of_their_own(hearing, cache):
    model, media = hearing.model.eval(), media_of(hearing, "image")
    cache_features(model, ["image"])
    first, _ = model.encode("image", media)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough, _ = model.encode("image", media)
    assert rough.dtype == torch.bfloat16 or not torch.equal(rough, first)
    model.encoders["image"].vit.norm.weight.mul_(2)
    cache_features(model, ["image"])
    second, _ = model.encode("image", media)
    assert model.feature_caches["image"].hits == 0
    assert not torch.allclose(first, second)
    assert len(list(cache.iterdir())) == 2


@torch.no_grad()
def test_a_damaged_file_is_computed_anew_and_mended(hearing, cache):
    model, media = hearing.model.eval(), media_of(hearing, "image")
    cache_features(model, ["image"])
    first, _ = model.encode("image", media)
    file = next(cache.rglob("*.safetensors"))
    whole = file.read_bytes()
    file.write_bytes(whole[:-9])
    again, _ = model.encode("image", media)
    assert torch.equal(first, again)
    assert file.read_bytes() == whole


@torch.no_grad()
def test_a_full_cache_and_a_full_disk_are_told_once_and_features_are_right_all_the_same(hearing, monkeypatch, cache):
    model, media = hearing.model.eval(), media_of(hearing, "image")
    plain = FeatureCache(model.encoders["image"], model.config.encoders["image"]).encode(media)
    for file in cache.rglob("*.safetensors"):
        file.unlink()
    small = FeatureCache(model.encoders["image"], model.config.encoders["image"], limit=plain[0].nbytes + 1)
    with pytest.warns(UserWarning, match=r"no more features are kept in .*: it holds 0\.0 GB, the most") as told:
        twice = [small.encode(media) for _ in range(2)]
    assert all(torch.equal(one, plain) for one in twice)
    assert (len(told), small.hits, len(list(cache.rglob("*.safetensors")))) == (1, 1, 1)

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(feature_cache, "save_file", refuse)
    full = FeatureCache(model.encoders["image"], model.config.encoders["image"])
    with pytest.warns(UserWarning, match=r"the disk refuses \(.*No space left") as told:
        found = full.encode(media)
    assert torch.equal(found, plain)
    assert len(told) == 1
    assert not list(cache.rglob("*.draft"))


@pytest.mark.train
def test_a_run_with_features_at_hand_has_the_losses_and_weights_of_the_first_and_runs_no_encoder(
    make_recipe, tmp_path, monkeypatch, one_thread
):
    recipe = make_recipe({**FROZEN, "steps": 6}, {**FROZEN, "steps": 3, "train": ["adapters.*"]})
    first = train(recipe, out=tmp_path / "first", device="cpu")

    def refuse(self, pixels, shapes=None):
        raise AssertionError("an encoder ran")

    with monkeypatch.context() as patch:
        patch.setattr("mmgpt.encoders.vit.ViTEncoder.forward", refuse)
        patch.setattr("mmgpt.training.loop.save_bundle", lambda bundle, folder: None)  # whose golden picture is new
        patch.setattr("mmgpt.training.train_state.save_bundle", lambda bundle, folder, **_: None)
        second = train(recipe, out=tmp_path / "second", device="cpu")
    losses = [
        [line["loss"] for line in read_log(run.folder / "log.jsonl") if "loss" in line] for run in (first, second)
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 9
    uncached = train(make_recipe({"train": FROZEN["train"], "steps": 6}), out=tmp_path / "plain", device="cpu")
    assert losses[0][:6] == pytest.approx(losses_of(uncached), abs=1e-5)


def test_a_stage_that_cannot_keep_features_says_why(make_recipe, tmp_path):
    with pytest.raises(UserError, match=r"stage0: cache_features: true, and no encoder is frozen; leave one out of"):
        train(make_recipe({"cache_features": True}), out=tmp_path / "a", device="cpu")
    tree = make_recipe(FROZEN).model_dump()
    tree["model"]["encoders"]["image"]["warp"] = {"translate": 0.1}
    with pytest.raises(UserError, match="encoder image has warp, which makes other media of a sample at each showing"):
        train(make_recipe(FROZEN, model=tree["model"]), out=tmp_path / "b", device="cpu")


def test_an_evaluation_reads_the_features_of_the_training(hearing, cache):
    assistant = Assistant(hearing)
    prompt = (Message.of("user", Image(np.full((16, 16, 3), 90, np.uint8)), "?"),)
    cache_features(hearing.model, ["image"])
    first = assistant.chat(prompt, max_new_tokens=3)
    other = Assistant(hearing)  # with nothing in memory
    kept = hearing.model.feature_caches["image"]
    assert kept.misses == 1
    assert other.chat(prompt, max_new_tokens=3).tokens == first.tokens
    assert (kept.hits, kept.misses) == (1, 1)


def test_a_loaded_model_keeps_features_from_one_process_to_the_next(hearing, tmp_path):
    (tmp_path / "saved").mkdir()
    save_bundle(hearing, tmp_path / "saved")
    prompt = (Message.of("user", Image(np.full((16, 16, 3), 90, np.uint8)), "?"),)
    counts = []
    for _ in range(2):
        assistant = mmgpt.load(tmp_path / "saved", cache_features=True)
        assistant.chat(prompt, max_new_tokens=2)
        counts.append([(one.hits, one.misses) for one in assistant.model.feature_caches.values()])
    assert counts == [[(0, 1), (0, 0)], [(1, 0), (0, 0)]]
    with pytest.raises(UserError, match=r"hf:some: cache_features is for mmgpt's own models; leave it out"):
        open_model("hf:some", cache_features=True)
