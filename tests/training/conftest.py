"""Checkpoints and data that the recipes name: files and layouts as they are downloaded, of tiny sizes."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import timm
import tokenizers
import torch
import transformers
import yaml
from timm.models import save_for_hf
from tokenizers import decoders, models, pre_tokenizers, trainers

RECIPES = Path(__file__).resolve().parents[2] / "configs" / "recipes"
SENTENCE = "a quiet yellow house stands on the left of two trees while seven grey birds fly over its old roof"
WORDS = SENTENCE.split()
TEXT = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
TOWER = {**TEXT, "image_size": 32, "patch_size": 8}
MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
DEFAULT_TURN = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
WITH_SYSTEM = "{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}"
TURNS = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
QWEN3 = f"{{%- if messages[0].role == 'system' %}}{WITH_SYSTEM}{{%- endif %}}{TURNS}"
QWEN2 = (
    f"{{%- if messages[0].role == 'system' %}}{WITH_SYSTEM}{{%- else %}}"
    f"{{{{- '<|im_start|>system\\n{DEFAULT_TURN}<|im_end|>\\n' }}}}{{%- endif %}}{TURNS}"
)


def spread(model: torch.nn.Module) -> Any:
    """Weights and statistics that all show in what the model gives."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        is_scale = parameter.dim() == 1 and ("norm" in name or "ln_" in name) and name.endswith("weight")
        torch.nn.init.normal_(parameter, mean=float(is_scale), std=0.1)
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            torch.nn.init.uniform_(buffer, 0.5, 2.0)
    return model.eval()


def save_language_model(folder: Path, kind: str, rows: int, template: str | None, **options: Any) -> Path:
    """In bfloat16, as these are on the hub, with more positions than any recipe takes."""
    sizes = {**TEXT, "num_key_value_heads": 2, "max_position_embeddings": 8192, "vocab_size": rows}
    config = transformers.AutoConfig.for_model(kind, **sizes, **options)
    shards = {"max_shard_size": "100KB"} if kind == "qwen2" else {}
    spread(transformers.AutoModelForCausalLM.from_config(config)).bfloat16().save_pretrained(folder, **shards)
    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=MARKS, show_progress=False)
    core.train_from_iterator([SENTENCE], trainer)
    core.save(str(folder / "tokenizer.json"))
    described = {"chat_template": template} if template else {}
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": MARKS[0], **described}))
    return folder


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of each outside checkpoint that the recipes begin with, by its name on the hub."""
    root = tmp_path_factory.mktemp("checkpoints")
    language = {
        "HuggingFaceTB/SmolLM2-135M": ("llama", 300, None, {"tie_word_embeddings": True}),
        "HuggingFaceTB/SmolLM2-135M-Instruct": ("llama", 320, QWEN3, {"tie_word_embeddings": True}),
        "Qwen/Qwen2.5-7B-Instruct": ("qwen2", 320, QWEN2, {"tie_word_embeddings": False}),
        "Qwen/Qwen3-1.7B": ("qwen3", 320, QWEN3, {"tie_word_embeddings": True, "head_dim": 32}),
    }
    made = {
        name: save_language_model(root / Path(name).name, kind, rows, template, **options)
        for name, (kind, rows, template, options) in language.items()
    }
    square, words = {"height": 32, "width": 32}, {**TEXT, "vocab_size": 300}
    for name, kind, pixels in (
        ("google/siglip-base-patch16-224", "siglip", transformers.SiglipImageProcessor(size=square, resample=3)),
        (
            "openai/clip-vit-large-patch14-336",
            "clip",
            transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=square),
        ),
    ):
        config = transformers.AutoConfig.for_model(kind, text_config=words, vision_config=TOWER)
        made[name] = root / kind
        spread(transformers.AutoModel.from_config(config)).save_pretrained(made[name])
        pixels.save_pretrained(made[name])
    made["timm/naflexvit_so400m_patch16_siglip.v2_webli"] = root / "naflex"
    sizes = {"embed_dim": 32, "depth": 2, "num_heads": 2}
    tower = spread(timm.create_model("naflexvit_so400m_patch16_siglip", **sizes))
    save_for_hf(tower, root / "naflex", safe_serialization=True, model_args=sizes)
    made["timm/vit_small_patch14_dinov2.lvd142m"] = root / "dinov2"
    dino = {**sizes, "img_size": 56}
    tower = spread(timm.create_model("vit_small_patch14_dinov2", **dino))
    save_for_hf(tower, root / "dinov2", safe_serialization=True, model_args=dino)
    file = root / "dinov2" / "config.json"
    described = json.loads(file.read_text())
    described["pretrained_cfg"] |= {"input_size": [3, 56, 56]}
    file.write_text(json.dumps(described))
    sound = {**TEXT, "hidden_size": 32, "subsampling_conv_channels": 8, "conv_kernel_size": 5}
    made["nvidia/parakeet-ctc-0.6b"] = root / "parakeet"
    ctc = transformers.ParakeetCTCConfig(vocab_size=20, encoder_config=sound)
    spread(transformers.ParakeetForCTC(ctc)).save_pretrained(root / "parakeet")
    transformers.ParakeetFeatureExtractor(feature_size=80).save_pretrained(root / "parakeet")
    return made


def draw_picture(seed: int) -> PIL.Image.Image:
    """Coloured squares; no two are alike, and their ratios differ."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (4, 3 + seed % 4, 3), dtype=np.uint8)
    return PIL.Image.fromarray(small).resize((24 + 8 * (seed % 4), 32), PIL.Image.Resampling.NEAREST)


def draw_sound(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    time = np.arange(8_000 + 1_000 * (seed % 5)) / 16_000
    tones = sum(np.sin(2 * np.pi * pitch * time) for pitch in rng.uniform(90, 4000, 4))
    return (0.1 * tones + 0.01 * rng.normal(size=len(time))).astype(np.float32)


def say(seed: int, count: int = 5) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, count))


class Downloads:
    """Writes data sets below one root; every picture, sound and sentence is another."""

    def __init__(self, root: Path) -> None:
        self.root, self.made = root, 0

    def number(self) -> int:
        self.made += 1
        return self.made

    def picture(self, name: str) -> None:
        file = self.root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        draw_picture(self.number()).save(file)

    def sound(self, name: str) -> None:
        file = self.root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(file, draw_sound(self.number()), 16_000)

    def table(self, name: str, separator: str, rows: list[dict[str, Any]]) -> None:
        file = self.root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w", newline="", encoding="utf-8") as out:
            writer = csv.DictWriter(out, list(rows[0]), delimiter=separator)
            writer.writeheader()
            writer.writerows(rows)

    def cauldron(self, name: str) -> None:
        """Two rows: one picture and two questions; two pictures and one."""
        rows = []
        for pictures, questions in ((1, 2), (2, 1)):
            encoded = []
            for _ in range(pictures):
                file = io.BytesIO()
                draw_picture(self.number()).save(file, "PNG")
                encoded.append({"bytes": file.getvalue(), "path": None})
            texts = [
                {"user": f"{say(self.number())}?", "assistant": say(self.number(), 2), "source": name}
                for _ in range(questions)
            ]
            rows.append({"images": encoded, "texts": texts})
        folder = self.root / "cauldron" / name
        folder.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), folder / "train-00000-of-00001-e3f1a0b2c4d5e6f7.parquet")

    def llava_pretrain(self) -> None:
        rows = []
        for number in ("004539375", "002239345", "005947502", "005116462"):
            image = f"{number[:5]}/{number}.jpg"
            self.picture(f"llava_pretrain/images/{image}")
            asked = "Render a clear and concise summary of the photo.\n<image>"
            rows.append({"id": number, "image": image, "conversations": _talk(asked, say(self.number(), 7))})
        (self.root / "llava_pretrain" / "blip_laion_cc_sbu_558k.json").write_text(json.dumps(rows))

    def llava_mix665k(self) -> None:
        rows: list[dict[str, Any]] = [
            {"id": "wgByO4Y_0", "model": "", "conversations": _talk(say(self.number()), say(self.number()))}
        ]
        for image in (
            "coco/train2017/000000033471.jpg",
            "gqa/images/2354786.jpg",
            "ocr_vqa/images/140031996.jpg",
            "textvqa/train_images/011e7e629fb9ae7b.jpg",
            "vg/VG_100K_2/2.jpg",
        ):
            self.picture(f"llava/{image}")
            talk = [
                *_talk(f"<image>\n{say(self.number())}?", say(self.number())),
                *_talk(f"{say(self.number())}?", say(self.number(), 2)),
            ]
            rows.append({"id": Path(image).stem, "image": image, "conversations": talk})
        (self.root / "llava" / "llava_v1_5_mix665k.json").write_text(json.dumps(rows))

    def librispeech(self, subset: str, speaker: int) -> None:
        folder = f"LibriSpeech/{subset}/{speaker}/{speaker + 1000}"
        names = [f"{speaker}-{speaker + 1000}-{number:04d}" for number in range(2)]
        for name in names:
            self.sound(f"{folder}/{name}.flac")
        lines = [f"{name} {say(self.number()).upper()}\n" for name in names]
        (self.root / folder / f"{speaker}-{speaker + 1000}.trans.txt").write_text("".join(lines))

    def common_voice(self) -> None:
        rows = [
            {
                "client_id": "a1b2",
                "path": f"common_voice_en_{number}.mp3",
                "sentence_id": "c3",
                "sentence": f'"{say(self.number()).capitalize()}," he said.',
                "sentence_domain": "",
                "up_votes": 2,
                "down_votes": 0,
                "age": "",
                "gender": "",
                "accents": "",
                "variant": "",
                "locale": "en",
                "segment": "",
            }
            for number in (17922420, 18128801)
        ]
        for row in rows:
            self.sound(f"common_voice/clips/{row['path']}")
        lines = ["\t".join(map(str, line)) for line in [rows[0], *(row.values() for row in rows)]]
        (self.root / "common_voice" / "train.tsv").write_text("\n".join(lines) + "\n")

    def audiocaps(self) -> None:
        """The second of its videos is gone, as many are."""
        rows = [
            {"audiocap_id": 91139 + at, "youtube_id": name, "start_time": 30, "caption": say(self.number(), 8)}
            for at, name in enumerate(("r1nicOVtvkQ", "7RLeSVYbwNw", "ncuM6Ga3hfo"))
        ]
        self.table("audiocaps/train.csv", ",", rows)
        for row in (rows[0], rows[2]):
            self.sound(f"audiocaps/train/{row['youtube_id']}.wav")

    def clotho(self) -> None:
        rows = []
        for name in ("Distorted AM Radio noise.wav", "Blade small.wav"):
            self.sound(f"clotho/development/{name}")
            rows.append({"file_name": name, **{f"caption_{n}": say(self.number(), 8) for n in range(1, 6)}})
        self.table("clotho/clotho_captions_development.csv", ",", rows)

    def flickr8k_full(self) -> None:
        names = [f"{number}_a.jpg" for number in range(4)]
        lines = [f"{name}#{n}\t{say(self.number(), 6)} ." for name in names for n in range(5)]
        for name in names:
            self.picture(f"flickr8k_full/Images/{name}")
        (self.root / "flickr8k_full" / "Flickr8k.token.txt").write_text("\n".join(lines))
        (self.root / "flickr8k_full" / "Flickr_8k.trainImages.txt").write_text("\n".join(names))


def _talk(asked: str, answered: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": asked}, {"from": "gpt", "value": answered}]


@pytest.fixture(scope="session")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with a handful of samples of each data set of the recipes."""
    data = Downloads(tmp_path_factory.mktemp("downloads"))
    recipe = yaml.safe_load((RECIPES / "vision-222m.yaml").read_text())
    for name in dict.fromkeys(item["path"] for stage in recipe["stages"] for item in stage["data"]):
        data.cauldron(name.removeprefix("cauldron/"))
    data.llava_pretrain()
    data.llava_mix665k()
    for speaker, subset in ((103, "train-clean-100"), (14, "train-clean-360"), (20, "train-other-500")):
        data.librispeech(subset, speaker)
    data.common_voice()
    data.audiocaps()
    data.clotho()
    data.flickr8k_full()
    return data.root


@pytest.fixture(scope="session")
def picture_of() -> Callable[[int], PIL.Image.Image]:
    return draw_picture


@pytest.fixture(scope="session")
def sound_of() -> Callable[[int], np.ndarray]:
    return draw_sound
