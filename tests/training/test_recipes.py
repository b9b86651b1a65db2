"""The recipes that begin from outside checkpoints, run from their own files on tiny stand-ins of all that they name."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import transformers
import yaml

import mmgpt
from mmgpt.checkpoints.convert import convert
from mmgpt.checkpoints.pretrained_parts import load_parts
from mmgpt.checkpoints.save_load import load_bundle, unique_weights
from mmgpt.config import UserError
from mmgpt.files import load_weights
from mmgpt.inputs.tokenizer import Tokenizer
from mmgpt.model.bundle import new_bundle
from mmgpt.training.loop import train
from mmgpt.training.optim import matches
from mmgpt.training.recipe import Recipe, load_recipe

RECIPES = Path(__file__).resolve().parents[2] / "configs" / "recipes"
NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))
CHATML = (  # what vision-222m names, for its decoder's checkpoint brings no template
    "{%- for one in messages %}{{- '<|im_start|>' + one.role + '\\n' + one.content + '<|im_end|>\\n' }}{%- endfor %}"
    "{{- '<|im_start|>assistant\\n' }}"
)
EXPORTS = {  # a new recipe needs a line here, and its checkpoints and data in conftest.py
    "vision-222m": ["hf-smolvlm"],
    "llava-7b": ["hf-llava"],
    "omni-2b": [],
    "captions": [],
}


def parts_of(name, checkpoints):
    """Overrides that put the stand-ins in the place of the checkpoints that a recipe names."""
    model = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())["model"]
    named = {"decoder": model["decoder"], **{f"encoders.{kind}": one for kind, one in model["encoders"].items()}}
    return [f"model.{part}.pretrained={checkpoints[one['pretrained']]}" for part, one in named.items()]


@dataclass
class Trained:
    name: str
    folder: Path
    recipe: Recipe

    def after(self, stage: str) -> dict[str, torch.Tensor]:
        (folder,) = (self.folder / stage).glob("checkpoint-*")
        return load_weights(folder)


@pytest.fixture(scope="module", params=NAMES)
def trained(request, checkpoints, downloads, tmp_path_factory):
    overrides, folder = parts_of(request.param, checkpoints), tmp_path_factory.mktemp("runs") / request.param
    for stage in yaml.safe_load((RECIPES / f"{request.param}.yaml").read_text())["stages"]:
        key = f"stages.{stage['name']}"
        batch = 32 if len(stage["data"]) > 2 else 2
        overrides += [f"{key}.workers=0", f"{key}.schedule.warmup=1", f"{key}.batch_size={batch}"]
        overrides += [f"{key}.steps=2"] if "steps" in stage else []
    run = train(f"recipes/{request.param}", overrides=overrides, data_root=downloads, out=folder, device="cpu")
    return Trained(request.param, folder, run.recipe)


def differing(before, after):
    assert before.keys() == after.keys()
    return {name for name, weight in after.items() if not torch.equal(weight, before[name])}


@pytest.mark.train
def test_align_moves_the_adapters_and_leaves_every_other_bit_as_the_checkpoints_have_it(trained):
    tokenizer = Tokenizer.load(trained.folder)
    saved = load_bundle(trained.folder / "align" / "checkpoint-2")
    fresh = new_bundle(trained.recipe.model, tokenizer, saved.template, saved.model.vocab_size)
    load_parts(fresh.model, saved.new_tokens)
    moved = differing(unique_weights(fresh.model), trained.after("align"))
    assert moved == {name for name in unique_weights(fresh.model) if name.startswith("adapters.")}


@pytest.mark.train
def test_the_embedding_is_the_checkpoints_and_new_tokens_are_its_mean(trained):
    theirs = load_weights(Path(trained.recipe.model.decoder.pretrained))["model.embed_tokens.weight"].float()
    ours, new = trained.after("align")["decoder.embedding.weight"], load_bundle(trained.folder).new_tokens
    known = sorted(set(range(len(theirs))) - set(new))
    assert new
    assert torch.equal(ours[known], theirs[known])
    assert torch.allclose(ours[list(new)], theirs[known].mean(dim=0), atol=2**-9)  # the mean in the file's bfloat16


@pytest.mark.train
def test_instruct_moves_what_it_says_and_nothing_else(trained):
    aligned, final, stage = trained.after("align"), load_weights(trained.folder / "final"), trained.recipe.stages[1]
    learns = {name for name in aligned if any(matches(name, pattern) for pattern in stage.train)}
    if stage.lora:  # of the linear layers that it names
        targets = stage.lora.targets
        learns |= {n for n, w in aligned.items() if w.dim() == 2 and any(matches(n, one) for one in targets)}
    assert differing(aligned, final) == learns


@pytest.mark.train
def test_every_source_is_learned_from_and_no_loss_is_without_bounds(trained):
    lines = [json.loads(line) for line in (trained.folder / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert {line["stage"] for line in steps} == {"align", "instruct"}
    assert all(math.isfinite(value) for line in steps for name, value in line.items() if name.startswith("loss"))
    assert not any(line["skipped"] or line["trimmed"] for line in steps)
    labels = {item.label for stage in trained.recipe.stages for item in stage.data}
    assert {name.removeprefix("loss/") for line in steps for name in line if name.startswith("loss/")} == labels


@pytest.mark.train
def test_a_run_talks_as_the_template_of_its_decoders_checkpoint_does(trained):
    folder, renderer = Path(trained.recipe.model.decoder.pretrained), mmgpt.load(trained.folder).renderer
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    theirs.chat_template = json.loads((folder / "tokenizer_config.json").read_text()).get("chat_template") or CHATML
    talk = [{"role": "user", "content": "a house"}]
    expected = theirs.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)
    assert renderer.prompt((mmgpt.Message.of("user", "a house"),)).ids == expected
    assert ("You are Qwen" in theirs.decode(expected)) == (trained.name == "llava-7b")


@pytest.mark.train
def test_a_run_answers_prompts_with_its_media(trained, picture_of, sound_of):
    model = mmgpt.load(trained.folder, device="cpu")
    media = [mmgpt.Image(picture_of(1))]
    if "audio" in trained.recipe.model.encoders:
        media.append(mmgpt.Audio(sound_of(1), rate=16_000))
    replies = [model.ask(one, "What is this?", max_new_tokens=4) for one in media]
    replies.append(model.ask(*media, "What is this?", max_new_tokens=4))
    assert all(reply.tokens and all(map(math.isfinite, reply.logprobs)) for reply in replies)


@pytest.mark.train
def test_a_run_goes_out_in_the_forms_that_have_its_parts(trained, picture_of, tmp_path):
    for form in ("hf-smolvlm", "hf-llava"):
        if form not in EXPORTS[trained.name]:
            with pytest.raises(UserError, match=f"^{form} has no place for "):
                convert(trained.folder, tmp_path / form, to=form)
            continue
        convert(trained.folder, tmp_path / form, to=form)
        theirs = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / form).eval()
        processor = transformers.AutoProcessor.from_pretrained(tmp_path / form)
        content = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
        prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = processor(text=[prompt], images=[picture_of(1)], return_tensors="pt", add_special_tokens=False)
        answer = theirs.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        model = mmgpt.load(trained.folder, device="cpu")
        assert model.ask(mmgpt.Image(picture_of(1)), "What is this?", max_new_tokens=8).tokens == answer.tolist()


def test_data_check_opens_a_recipe_without_its_model(mmgpt_says, checkpoints, downloads):
    parts = parts_of("omni-2b", checkpoints)
    code, said, told = mmgpt_says(
        "data", "check", RECIPES / "omni-2b.yaml", *parts, "--data-root", downloads, "--workers", 0
    )
    assert code == 0, said + told
    assert "faults: 0, warnings: 0" in said


def test_the_overrides_in_the_head_of_llava_train_all_of_its_decoder(checkpoints):
    given = {
        "stages.instruct.lora": "null",
        "stages.instruct.train": '["adapters.*", decoder]',
        "stages.instruct.learning_rate": "2e-5",
        "stages.instruct.learning_rates": "{}",
    }
    head = (RECIPES / "llava-7b.yaml").read_text().partition("\nname:")[0]
    for key, value in given.items():
        assert f"{key}={value}" in head or f"{key}='{value}'" in head
    overrides = [f"{key}={value}" for key, value in given.items()]
    recipe = load_recipe(RECIPES / "llava-7b.yaml", [*parts_of("llava-7b", checkpoints), *overrides])
    assert (recipe.stages[1].lora, recipe.stages[1].train) == (None, ["adapters.*", "decoder"])
