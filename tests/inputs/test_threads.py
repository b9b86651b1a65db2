"""What is rendered is the same for any number of threads and workers; run as a program, this tells what it makes."""

import hashlib
import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from itertools import islice
from typing import Any

import numpy as np
import PIL.Image
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from torch import Tensor

from mmgpt.config import UserError
from mmgpt.datasets.dedup import keep_texts
from mmgpt.datasets.media import Audio, Image, Video
from mmgpt.datasets.mixture import MixtureSampler
from mmgpt.datasets.readers.messages import MessagesConfig
from mmgpt.datasets.readers.registry import open_source
from mmgpt.datasets.sample import Message
from mmgpt.datasets.worlds.world import WORLDS, WorldConfig
from mmgpt.encoders.audio_config import resampled
from mmgpt.encoders.one_thread import in_one_thread
from mmgpt.encoders.registry import ENCODERS, EncoderConfig
from mmgpt.inputs.dataloader import StepDataset, iterate_steps
from mmgpt.inputs.render import Renderer
from mmgpt.inputs.rendered import Rendered
from mmgpt.inputs.tokenizer import Tokenizer
from mmgpt.training.run_tokenizer import texts_of

ENCODER = TypeAdapter(EncoderConfig)
TOWER = {
    **{"image_size": 32, "patch_size": 8, "width": 16, "depth": 1, "prefix_tokens": 1, "crop": "center"},
    **{"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "crop_pct": 0.9},
}
CLIP_TOWER = {**TOWER, "architecture": "vit_base_patch16_clip_224"}
NAFLEX = {**TOWER, "kind": "timm", "architecture": "naflexvit_base_patch16_gap", "max_patches": 20}
LIVELY = {"speed": 0.3, "noise_snr": [5, 30]}
PARAKEET = {"preemphasis": 0.97, "scale": "slaney", "symmetric": True, "normalise": "band", "last_frame": False}
TRANSFORMS: dict[str, dict[str, Any]] = {
    **{name: {} for name in ("TrivialAugmentWide", "AugMix", "RandAugment", "AutoAugment", "GaussianNoise")},
    "RandomResizedCrop": {"scale": [0.3, 0.6]},
    "ColorJitter": {"brightness": 0.5, "hue": 0.2},
    "ElasticTransform": {"sigma": 1.0},
    "RandomPerspective": {"p": 1.0},
    "RandomAffine": {"degrees": 30, "shear": 10},
    "GaussianBlur": {"kernel_size": 5},
    "JPEG": {"quality": [20, 80]},
}
CASES: dict[str, dict[str, Any]] = {
    "vit": {"kind": "vit", "image_size": 32, "patch_size": 8},
    **{
        f"vit {name}": {"kind": "vit", "image_size": 32, "patch_size": 8, "augment": [{"name": name, **arguments}]}
        for name, arguments in TRANSFORMS.items()
    },
    "timm": {**CLIP_TOWER, "kind": "timm"},
    "timm augmented": {**CLIP_TOWER, "kind": "timm", "augment": [{"name": "RandomHorizontalFlip"}]},
    "timm squashed": {**CLIP_TOWER, "kind": "timm", "crop": "squash", "interpolation": "bilinear"},
    "timm tiles": {**CLIP_TOWER, "kind": "timm", "tiles": 4},
    "timm any ratio": NAFLEX,
    "open_clip": {**CLIP_TOWER, "kind": "open_clip", "crop": "center_down"},
    "conformer": {"kind": "conformer", "mels": 20},
    "conformer stack": {"kind": "conformer", "mels": 20, "stem_kind": "stack", **LIVELY},
    "conformer speed": {"kind": "conformer", "mels": 20, "speed": 0.3},
    "conformer noise": {"kind": "conformer", "mels": 20, "noise_snr": [5, 30]},
    "parakeet": {"kind": "conformer", "mels": 20, "feature_extractor": {"kind": "mel", **PARAKEET}, **LIVELY},
    "wav2vec2-bert": {"kind": "conformer", "mels": 20, "feature_extractor": {"kind": "kaldi"}, **LIVELY},
    "whisper": {"kind": "whisper"},
    "whisper augmented": {"kind": "whisper", **LIVELY},
    "whisper of 8 kHz": {"kind": "whisper", "rate": 8000, "max_seconds": 60, **LIVELY},
}
IN_OTHERS = (  # what is made in other processes too
    *("vit TrivialAugmentWide", "vit GaussianNoise", "timm tiles", "timm any ratio", "open_clip"),
    *("conformer stack", "parakeet", "wav2vec2-bert", "whisper augmented"),
)
RNG = np.random.default_rng(0)
PICTURES = [
    PIL.Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))
    for height, width in ((48, 48), (32, 32), (517, 333), (9, 300))
]
SOUNDS = [
    (RNG.standard_normal(int(seconds * rate)).astype(np.float32) / 10, rate)
    for seconds, rate in ((0.02, 16_000), (0.3, 8000), (1.3, 16_000), (1.0, 44_100), (2.1, 8000), (5.0, 11_025))
]


def prepared(case: str) -> Iterator[Tensor]:
    """What a case makes of the pictures or sounds: as they came, and in a showing."""
    config = ENCODER.validate_python(CASES[case])
    for medium in PICTURES if hasattr(config, "patch_size") else SOUNDS:
        for seed in (None, 1):
            yield config.preprocess(medium, None if seed is None else random.Random(seed))


def digest_of(values: Tensor) -> str:
    """Shape and bytes."""
    return hashlib.sha256(f"{tuple(values.shape)}".encode() + values.numpy().tobytes()).hexdigest()


def digests() -> dict[str, Any]:
    """Media, samples of all worlds, an order of draws and a tokenizer, as they are in this process."""
    worlds = {name: open_source(WorldConfig(reader="world", name=name, size=60)) for name in WORLDS}
    samples = {name: [source[index] for index in range(6)] for name, source in worlds.items()}
    texts = [text for some in samples.values() for one in some for text in texts_of(one)]
    media = [
        part for some in samples.values() for one in some for part in one.messages[0].parts if hasattr(part, "load")
    ]
    loaded = [np.asarray(part.load()) if part.modality == "image" else part.load().samples for part in media]
    order = MixtureSampler([100, 7, 31], [1.0, 2.0, 0.5], 5, limits=[None, 20, None])
    return {
        **{case: [digest_of(values) for values in prepared(case)] for case in IN_OTHERS},
        "texts": texts,
        "truths": [repr([one.key, one.truths]) for some in samples.values() for one in some],
        "worlds": [hashlib.sha256(values.tobytes()).hexdigest() for values in loaded],
        "kept": keep_texts(worlds["stories"], similarity=0.6).indexes if find_spec("datasketch") else (),
        "order": list(islice(order.draw(), 100)),
        "tokenizer": json.loads(Tokenizer.train(texts, 400).core.to_str()),
        "threads": torch.get_num_threads(),
    }


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def under(threads: int, make: Callable[[], Any]) -> Any:
    torch.set_num_threads(threads)
    made = make()
    assert torch.get_num_threads() == threads
    return made


def in_thread(make: Callable[[], Any]) -> Any:
    """What a new Python thread makes."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(make).result()


def test_every_kind_of_encoder_is_among_the_cases():
    assert {case["kind"] for case in CASES.values()} == ENCODERS.keys()


@pytest.mark.parametrize("case", CASES)
def test_media_are_prepared_the_same_under_any_number_of_threads(case):
    one = under(1, lambda: list(prepared(case)))
    for other in (under(2, lambda: list(prepared(case))), under(4, lambda: list(prepared(case)))):
        assert all(map(torch.equal, one, other))


class Heard(np.ndarray):
    """Samples that note under how many threads they are looked at."""

    def __len__(self) -> int:
        SEEN.append(torch.get_num_threads())
        return super().__len__()


class Watched(random.Random):
    """A generator that notes under how many threads it is drawn from."""

    def getrandbits(self, k: int) -> int:
        SEEN.append(torch.get_num_threads())
        return super().getrandbits(k)


class Looked(PIL.Image.Image):
    """A picture that notes under how many threads it is made an array."""

    @property
    def __array_interface__(self) -> dict[str, Any]:
        SEEN.append(torch.get_num_threads())
        return super().__array_interface__


SEEN: list[int] = []


@pytest.mark.parametrize("others", [0, 1])
@pytest.mark.parametrize("case", CASES)
def test_media_are_prepared_in_one_thread_on_any_machine(case, others):
    """Whatever the machine's kernels: also where two numbers of threads happen to give the same bits."""
    config, end = ENCODER.validate_python(CASES[case]), threading.Event()
    idle = [threading.Thread(target=end.wait) for _ in range(others)]
    for thread in idle:
        thread.start()
    SEEN.clear()
    try:
        if hasattr(config, "patch_size"):
            picture = PICTURES[0].copy()
            picture.__class__ = Looked
            under(3, lambda: config.preprocess(picture, Watched(1)))
        else:
            under(3, lambda: config.preprocess((SOUNDS[1][0].view(Heard), SOUNDS[1][1]), Watched(1)))
    finally:
        end.set()
        for thread in idle:
            thread.join()
    assert SEEN
    assert set(SEEN) == {1}


@settings(max_examples=15)
@given(
    case=st.sampled_from(["conformer", "conformer stack", "parakeet", "wav2vec2-bert", "whisper augmented"]),
    rate=st.sampled_from([8000, 11_025, 16_000, 22_050, 44_100, 44_101]) | st.integers(1000, 96_000),
    length=st.integers(1, 60_000),
    seed=st.none() | st.integers(0, 99),
)
def test_sounds_of_any_length_and_rate_are_prepared_the_same_under_two_threads(case, rate, length, seed):
    config = ENCODER.validate_python({**CASES[case], "max_seconds": 100})
    samples = np.random.default_rng(length).standard_normal(length).astype(np.float32)

    def make() -> Tensor:
        return config.preprocess((samples, rate), None if seed is None else random.Random(seed))

    assert torch.equal(under(1, make), under(2, make))


@settings(max_examples=15)
@given(
    case=st.sampled_from(["vit", "vit RandomResizedCrop", "timm", "timm tiles", "timm any ratio", "open_clip"]),
    size=st.tuples(st.integers(8, 400), st.integers(8, 400)),
    seed=st.none() | st.integers(0, 99),
)
def test_pictures_of_any_size_are_prepared_the_same_under_two_threads(case, size, seed):
    config = ENCODER.validate_python(CASES[case])
    picture = PIL.Image.effect_noise(size, 90).convert("RGB")

    def make() -> Tensor:
        return config.preprocess(picture, None if seed is None else random.Random(seed))

    assert torch.equal(under(1, make), under(2, make))


@pytest.fixture(scope="module")
def renderer(make_bundle) -> Renderer:
    image = {"augment": [{"name": "RandomResizedCrop", "scale": [0.3, 0.6]}]}
    return make_bundle(audio={"kind": "mlp", "stride": 2}, conformer=LIVELY, image=image, context=2000).renderer


@pytest.fixture
def clip(make_clip) -> bytes:
    return make_clip(3)


def same(one: Rendered, other: Rendered) -> bool:
    values = zip(one.media, other.media, strict=True)
    return (one.ids, one.labels) == (other.ids, other.labels) and all(
        torch.equal(a.values, b.values) for a, b in values
    )


def test_prompts_choices_and_parts_are_rendered_the_same_under_any_number_of_threads(renderer, clip):
    samples, rate = SOUNDS[2]
    parts = (Image(PICTURES[2]), Audio(samples, rate=rate), Video(clip), "What is this?")
    asked = (Message.of("user", *parts),)
    for make in (
        lambda: renderer.prompt(asked),
        lambda: renderer.choices(asked, ["yes", "no"])[0],
        lambda: renderer.parts(asked[0].parts),
    ):
        one = under(1, make)
        assert len(one.media) == 6
        assert same(one, under(2, make))
        assert same(one, under(4, make))
        torch.set_num_threads(2)
        assert same(one, in_thread(make))


@pytest.fixture
def sources(tmp_path, clip, open_world) -> list[Any]:
    """Worlds, and files of each modality in rows and a folder."""
    (tmp_path / "a.mp4").write_bytes(clip)
    PICTURES[2].save(tmp_path / "a.png")
    soundfile.write(tmp_path / "a.wav", *SOUNDS[2])
    answer = {"role": "assistant", "content": "Noise."}
    rows = [
        {"messages": [{"role": "user", "content": f"<{kind}>What?"}, answer], f"{kind}s": [name]}
        for kind, name in (("image", "a.png"), ("audio", "a.wav"), ("video", "a.mp4"))
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    files = open_source(MessagesConfig(reader="messages", path="rows.jsonl"), tmp_path)
    return [open_world("scene_sounds", size=20), open_world("sounds", size=20), files]


def test_steps_are_the_same_for_any_number_of_threads_and_workers(renderer, sources):
    order = MixtureSampler([len(source) for source in sources], [1.0] * 3, 5)
    options = {"objective": "respond", "batch_size": 3, "micro_batch_tokens": 4000}

    def steps(workers: int) -> list[Any]:
        return list(islice(iterate_steps(StepDataset(sources, order, renderer, **options), workers), 4))

    expected = under(1, lambda: steps(0))
    assert {modality for step in expected for batch in step.batches for modality in batch.media} == {"image", "audio"}
    assert not any(step.faults for step in expected)
    for threads, workers in ((2, 0), (4, 0), (2, 1), (2, 2), (4, 3)):
        for step, other in zip(expected, under(threads, partial(steps, workers)), strict=True):
            assert step.position == other.position
            for one, two in zip(step.batches, other.batches, strict=True):
                assert torch.equal(one.ids, two.ids)
                assert torch.equal(one.labels, two.labels)
                assert all(torch.equal(one.media[m].values, two.media[m].values) for m in one.media)


def test_another_process_makes_the_same_whatever_its_threads_hashes_locale_and_time_zone():
    other = {"OMP_NUM_THREADS": "4", "RAYON_NUM_THREADS": "3", "OPENBLAS_NUM_THREADS": "4"}
    other |= {"TOKENIZERS_PARALLELISM": "true", "PYTHONHASHSEED": "2", "LC_ALL": "C", "TZ": "Asia/Kathmandu"}
    process = subprocess.Popen([sys.executable, __file__, "4"], env={**os.environ, **other}, stdout=subprocess.PIPE)
    here = json.loads(json.dumps(under(1, digests)))
    there = json.loads(process.communicate()[0])
    assert (here.pop("threads"), there.pop("threads")) == (1, 4)
    for name, made in here.items():
        assert made == there[name], name


def test_the_number_of_threads_is_as_it_was_after_an_error():
    long = (np.zeros(40 * 8000, np.float32), 8000)
    config = ENCODER.validate_python(CASES["whisper"])
    torch.set_num_threads(3)
    with pytest.raises(UserError, match="over the encoder's limit"):
        config.preprocess(long)
    assert torch.get_num_threads() == 3
    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(UserError, match="over the encoder's limit"):
            pool.submit(config.preprocess, long).result()
        assert pool.submit(torch.get_num_threads).result() == 3
    assert torch.get_num_threads() == 3


def test_python_threads_that_render_at_once_all_keep_their_number_and_so_do_later_ones():
    inside, barrier = in_one_thread(torch.get_num_threads), threading.Barrier(4)
    config, seen = ENCODER.validate_python(CASES["conformer speed"]), []

    def render() -> None:
        barrier.wait()
        for seed in range(5):
            config.preprocess(SOUNDS[1], random.Random(seed))
            seen.append((torch.get_num_threads(), inside()))

    for threads in (3, 2):
        torch.set_num_threads(threads)
        started = [threading.Thread(target=render) for _ in range(4)]
        for thread in started:
            thread.start()
        for thread in started:
            thread.join()
        assert set(seen) == {(threads, 1)}
        assert torch.get_num_threads() == in_thread(torch.get_num_threads) == threads
        seen.clear()


def test_a_thread_that_first_uses_torch_while_another_renders_gets_the_number_of_the_process():
    torch.set_num_threads(3)
    assert in_thread(in_one_thread(lambda: in_thread(torch.get_num_threads))) == 3


def test_what_runs_in_one_thread_may_call_what_does():
    torch.set_num_threads(2)
    nested = in_one_thread(lambda: resampled(torch.ones(9), 8000, 16_000).shape)
    assert nested() == in_thread(nested) == (18,)
    assert torch.get_num_threads() == 2


def test_a_fork_of_a_process_that_has_rendered_renders_too():
    torch.set_num_threads(2)
    in_thread(in_one_thread(torch.get_num_threads))
    child = os.fork()
    if not child:
        code = 1
        try:
            torch.set_num_threads(2)
            told = [in_one_thread(torch.get_num_threads)(), in_thread(in_one_thread(torch.get_num_threads))]
            code = int(told != [1, 1])
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]))
    json.dump(digests(), sys.stdout)
