import io
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import settings

from mmgpt.cli import main
from mmgpt.config import build
from mmgpt.datasets.readers.registry import open_source
from mmgpt.datasets.sample import Sample
from mmgpt.datasets.source import Source
from mmgpt.datasets.worlds.world import WorldConfig
from mmgpt.generation.assistant import Assistant
from mmgpt.inputs.templates import TEMPLATES
from mmgpt.inputs.tokenizer import END, Tokenizer
from mmgpt.model.bundle import ModelBundle, new_bundle
from mmgpt.model.config import ModelConfig
from mmgpt.training.recipe import Recipe
from mmgpt.training.run_tokenizer import texts_of

ROOT = Path(__file__).resolve().parent.parent
DECODER = {"width": 32, "depth": 2, "heads": 4, "kv_heads": 2, "context": 320, "token_shift": True}
VIT = {"kind": "vit", "image_size": 16, "patch_size": 4, "width": 32, "depth": 1, "heads": 2}
SHAPES = ("circle", "triangle", "rectangle")
COLOURS = ("red", "green", "blue", "teal")
FOLD = {"kind": "fold", "stride": 2}
CONFORMER = {"kind": "conformer", "rate": 8000, "mels": 16, "width": 16, "depth": 1, "heads": 2, "stem": 4, "kernel": 5}

if "PYTEST_XDIST_WORKER" in os.environ:  # processes that share the cores: more threads would wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for what a test starts
    torch.set_num_threads(1)

settings.register_profile("mmgpt", deadline=None)  # the first call of a kernel takes far longer than the rest
settings.load_profile("mmgpt")


def pytest_make_parametrize_id(val: object) -> str | None:
    """Files in bytes are named by their length: some hold the time at which they were made, and names must not vary."""
    return f"{len(val)} bytes" if isinstance(val, bytes) and len(val) > 16 else None


@pytest.fixture(scope="session", autouse=True)
def _kept_apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is kept from one process to the next is not kept from one run of the tests to the next."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMGPT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_packs() -> Path:
    packs = Path(os.environ.get("MMGPT_DATA") or ROOT.parent / "shared" / "data")
    if not packs.is_dir():
        pytest.skip(f"no data packs at {packs}; name their folder in MMGPT_DATA")
    return packs


@pytest.fixture(scope="session")
def open_world() -> Callable[..., Source]:
    return lambda name, **options: open_source(WorldConfig(reader="world", name=name, **options))


@pytest.fixture(scope="session")
def scenes(open_world: Callable[..., Source]) -> list[Sample]:
    source = open_world("scenes")
    return [source[index] for index in range(6)]


@pytest.fixture(scope="session")
def tokenizer(open_world: Callable[..., Source]) -> Tokenizer:
    sources = [open_world(name) for name in ("stories", "scenes")]
    return Tokenizer.train((text for s in sources for i in range(60) for text in texts_of(s[i])), 400)


@pytest.fixture(scope="session")
def make_bundle(tokenizer: Tokenizer) -> Callable[..., ModelBundle]:
    """A tiny model; `zero_init` is off, for at the identity blocks would hide what goes wrong in them."""

    def make(
        *,
        image: dict[str, Any] | None = VIT,
        adapter: dict[str, Any] = FOLD,
        audio: dict[str, Any] | None = None,
        conformer: dict[str, Any] | None = None,
        template: str = "plain",
        heads: list[dict[str, Any]] | None = None,
        **decoder: Any,
    ) -> ModelBundle:
        tree = {
            "decoder": {**DECODER, "zero_init": False, **decoder},
            "encoders": {"image": {**VIT, **image}} if image is not None else {},
            "adapters": {"image": adapter} if image is not None else {},
            "heads": heads or [],
        }
        if audio is not None:
            tree["encoders"]["audio"], tree["adapters"]["audio"] = {**CONFORMER, **(conformer or {})}, audio
        torch.manual_seed(0)
        extended = tokenizer.extended(token for token in TEMPLATES[template].tokens if token != END)
        return new_bundle(build(ModelConfig, tree, "tiny model"), extended, template)

    return make


@pytest.fixture(scope="session")
def make_clip() -> Callable[..., bytes]:
    """An MP4 of 16 x 16 pixels that shows another grey every second, with a tone or silent."""
    av = pytest.importorskip("av")

    def make(seconds: int, sound: bool = True) -> bytes:
        buffer = io.BytesIO()
        with av.open(buffer, "w", format="mp4") as out:
            stream = out.add_stream("libx264", rate=2)
            stream.width, stream.height, stream.pix_fmt, stream.thread_count = 16, 16, "yuv420p", 1
            track = out.add_stream("aac", rate=8000, layout="mono") if sound else None
            for at in range(2 * seconds):
                grey = np.full((16, 16, 3), 10 + 240 * (at // 2) // seconds, np.uint8)
                out.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
            out.mux(stream.encode())
            if track:
                tone_S = np.sin(np.arange(8000 * seconds) * 0.3).astype(np.float32) / 2
                frame = av.AudioFrame.from_ndarray(tone_S[None], format="fltp", layout="mono")
                frame.sample_rate = 8000
                out.mux(track.encode(frame))
                out.mux(track.encode())
        return buffer.getvalue()

    return make


@pytest.fixture(scope="session")
def gradients() -> Callable[..., tuple[float, dict[str, torch.Tensor]]]:
    """Loss and gradients, a target, of a model over several batches."""

    def compute(model: torch.nn.Module, batches: list[Any]) -> tuple[float, dict[str, torch.Tensor]]:
        model.zero_grad(set_to_none=True)
        targets = sum(batch.num_targets for batch in batches)
        loss = sum(model(batch).total for batch in batches) / targets
        loss.backward()
        return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    return compute


@pytest.fixture(scope="session")
def make_recipe() -> Callable[..., Recipe]:
    """A tiny recipe: each stage is a dict of what differs from a few steps on generated pictures."""

    def make(*stages: dict[str, Any], **changes: Any) -> Recipe:
        base = {
            "data": [{"reader": "world", "name": "scenes"}],
            "steps": 4,
            "batch_size": 2,
            "save_every": 100,
        }
        numbered = [{"name": f"stage{n}", **base, "log_every": 1, **stage} for n, stage in enumerate(stages or [{}])]
        tree: dict[str, Any] = {
            "name": "tiny",
            "template": "plain",
            "tokenizer": {"vocab_size": 300, "num_samples": 20},
            "model": {"decoder": DECODER, "encoders": {"image": VIT}, "adapters": {"image": FOLD}},
            "stages": numbered,
        }
        return build(Recipe, {**tree, **changes}, "tiny recipe")

    return make


@pytest.fixture(scope="session")
def first_branches() -> Callable[[Sample, int], Sample]:
    return lambda sample, count: replace(sample, branches=sample.branches[:count])


@pytest.fixture
def mmgpt_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run a command line in this process: (exit code, standard output, standard error)."""

    def run(*arguments: object, typed: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["mmgpt", *map(str, arguments)])
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as ended:
            main.main()
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out, shown.err

    return run


def questions(image: int) -> list[list[Any]]:
    """Rows as easy-VQA has them: [question, answer, image_id]."""
    shape, colour = SHAPES[image % 3], COLOURS[image % 4]
    return [
        ["what shape is in the image?", shape, image],
        ["what is the color of the shape?", colour, image],
        ["does the image contain a circle?", "yes" if shape == "circle" else "no", image],
    ]


@pytest.fixture(scope="session")
def easy_vqa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with easy-VQA's layout: 12 pictures to train on, 7 others to be tested on."""
    root = tmp_path_factory.mktemp("data")
    for split, images in (("train", range(12)), ("test", range(20, 27))):
        folder = root / "easy_vqa" / split
        (folder / "images").mkdir(parents=True)
        for image in images:
            picture = PIL.Image.effect_noise((64, 64), 20 + 8 * image).convert("RGB")
            picture.save(folder / "images" / f"{image}.png")
        rows = [row for image in images for row in questions(image)]
        (folder / "questions.json").write_text(json.dumps(rows))
    return root


@pytest.fixture
def answerer(easy_vqa: Path, make_bundle: Callable[..., ModelBundle]) -> Assistant:
    """A random model whose tokenizer comes from the training questions; loud, so that its answers differ."""
    rows = json.loads((easy_vqa / "easy_vqa" / "train" / "questions.json").read_text())
    tokenizer = Tokenizer.train((str(text) for row in rows for text in row[:2]), 330)
    torch.manual_seed(0)
    bundle = new_bundle(make_bundle().model.config, tokenizer, "plain")
    with torch.no_grad():
        bundle.model.decoder.head.weight *= 20
    return Assistant(bundle)


@pytest.fixture
def make_assistant(make_bundle: Callable[..., ModelBundle]) -> Callable[..., Assistant]:
    """A random model with a loud output layer, so that its texts are varied and its choices clear."""

    def make(**options: Any) -> Assistant:
        bundle = make_bundle(**options)
        with torch.no_grad():
            bundle.model.decoder.head.weight *= 20
        return Assistant(bundle)

    return make


@pytest.fixture
def assistant(make_assistant: Callable[..., Assistant]) -> Assistant:
    return make_assistant()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums are added up in an order that depends on the number of threads; what is compared bitwise takes one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
