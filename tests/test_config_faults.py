"""An error of a config names the key as the user wrote it and shows that key's value, never a tree."""

from copy import deepcopy

import pytest

from mmgpt.config import UserError, apply_overrides, build
from mmgpt.evaluation.tasks.task import TaskConfig
from mmgpt.training.recipe import Recipe

CONFORMER = {"kind": "conformer", "mels": 40, "width": 16, "depth": 1, "heads": 2}
EPISODES = {"reader": "episodes", "of": {"reader": "world", "name": "scenes"}}


@pytest.fixture
def recipe(make_recipe):
    tree = make_recipe({"name": "one"}, {"name": "two"}).model_dump(mode="json")
    tree["model"]["encoders"]["audio"], tree["model"]["adapters"]["audio"] = dict(CONFORMER), {"kind": "mlp"}
    tree["stages"][1]["data"] = [deepcopy(EPISODES)]
    return tree


def fault(cls, tree, *overrides) -> str:
    with pytest.raises(UserError) as caught:
        build(cls, apply_overrides(tree, overrides), "real.yaml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("model=small", "model='small': a mapping of keys to values is wanted here"),
        ("model=null", "model=None: a mapping of keys to values is wanted here"),
        ("stages={}", "stages is a mapping: a list is wanted here"),
        ("stages.0.data=[x]", "stages.0.data.0='x': a mapping of keys to values is wanted here"),
        ("stages.0.data=[name:x]", "stages.0.data.0='name:x': a mapping of keys to values is wanted here; a space"),
        ("stages.0.data={reader: text}", "stages.0.data is a mapping: a list is wanted here"),
        ("stages.0.data=[{path: a}]", "stages.0.data.0 is a mapping without reader; give it reader: ..."),
        ("stages.0.train=decoder", "stages.0.train='decoder': a list is wanted here"),
        ("tasks=easy_vqa", "tasks='easy_vqa': a list is wanted here"),
        ("model.encoders.image=vit", "model.encoders.image='vit': a mapping of keys to values is wanted here"),
        ("model.encoders.imgae.width=3", "model.encoders.imgae is a mapping without kind; did you mean image?"),
        ("stages.0.lora=true", "stages.0.lora=True: a mapping of keys to values is wanted here"),
        ("stages.0.lern.rate=1", "stages.0.lern is not a field of StageConfig; known: "),
        ("stages.0.optimiser.kind=sgd", "stages.0.optimiser is not a field of StageConfig; did you mean optimizer?"),
        ("stages.0.learning_rates.encoders.*=1e-3", "stages.0.learning_rates.encoders is a mapping: a single value is"),
        ("stages.0.auxiliary={ct: 1}", "stages.0.auxiliary.ct is no key here: Input should be 'ctc'"),
        ("stages.1.data.0.ways=-1", "stages.1.data.0.ways=-1: Input should be greater than 0"),
        ("stages.1.data.0.ways=[5, x]", "stages.1.data.0.ways.1='x': Input should be a valid integer"),
        ("stages.1.data.0.ways=[]", "stages.1.data.0.ways=[]: List should have at least 1 item"),
        ("stages.1.data.0.of.nme=x", "stages.1.data.0.of.nme is not a field of WorldConfig; did you mean name?"),
        ("stages.1.data.0.of.reader=wrld", "stages.1.data.0.of.reader=wrld is not known; did you mean world?"),
        ("stages.1.data.0.labels=permuted", ""),
    ],
)
def test_a_wrong_type_or_name_is_told_at_its_own_key(override, told, recipe):
    if not told:
        build(Recipe, apply_overrides(recipe, [override]), "real.yaml")
        return
    said = fault(Recipe, recipe, override)
    assert said.startswith(f"real.yaml: {told}")
    assert "\n" not in said


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["model.decoder.heads=5"], "model.decoder.heads=5 does not divide width="),
        (["model.decoder.kv_heads=5"], "model.decoder.kv_heads=5 does not divide heads="),
        (["model.decoder.head_width=3"], "model.decoder.head_width: head width 3 is odd"),
        (["model.decoder.unrotated_layers=[99]"], "model.decoder.unrotated_layers holds 99"),
        (["model.encoders.image.heads=5"], "model.encoders.image.heads=5 does not divide width="),
        (["model.encoders.image.patch_size=5"], "model.encoders.image.patch_size=5 does not divide image_size="),
        (["model.encoders.image.augment=[{name: Flop}]"], "model.encoders.image.augment: Flop is no transform"),
        (["model.encoders.audio.kernel=4"], "model.encoders.audio.kernel=4 is even"),
        (["model.encoders.audio.chunk=3"], "model.encoders.audio.chunk=3 needs a window"),
        (["model.encoders.audio.noise_snr=[3, 1]"], "model.encoders.audio.noise_snr=[3.0, 1.0]: the lowest"),
        (["model.adapters.image.stride=3"], "model.adapters.image: fold: stride=3 does not divide"),
        (["model.adapters.audio={kind: fold, stride: 2}"], "model.adapters.audio: fold joins squares"),
        (["model.adapters.audio={kind: resampler, heads: 7, queries: 2}"], "model.adapters.audio.heads=7 does not"),
        (["model.adapters={image: {kind: mlp}}"], "model.encoders ['audio', 'image'] and adapters ['image'] must"),
        (["model.encoders.audio={kind: vit}"], "model.encoders.audio.kind=vit: encoder vit reads image"),
        (["model.heads=[{kind: classify, modality: audio, labels: [a, a]}]"], "model.heads.0.labels hold 'a' twice"),
        (["model.heads=[{kind: contrastive, modality: imag}]"], "model.heads.0.modality: head contrastive is for imag"),
        (["stages.0.epochs=3"], "stages.0.steps=4 and epochs=3.0: give one of the two"),
        (["stages.0.train=[]"], "stages.0.train=[]: nothing would learn"),
        (["stages.0.objective=ctc"], "stages.0.objective: stage one learns ctc"),
        (["stages.0.auxiliary={ctc: 1}"], "stages.0.auxiliary.ctc: stage one learns ctc"),
        (["stages.0.objective=masked", "stages.0.word_dropout=0.1"], "stages.0.word_dropout=0.1 is for causal"),
        (["stages.0.optimizer.muon_convolutions=true"], "stages.0.optimizer.muon_convolutions is for kind=muon"),
        (["stages.1.data.0.words=[a, b]"], "stages.1.data.0.ways=5 needs as many made-up labels"),
        (["media_markup={vido: [a, b]}"], "media_markup.vido: the model has no such encoder"),
        (["stages.two.name=one"], "stages ['one', 'one'] must have different names"),
    ],
)
def test_a_rule_of_a_whole_section_is_told_at_the_key_it_is_about(overrides, key, recipe):
    said = fault(Recipe, recipe, *overrides)
    assert said.startswith(f"real.yaml: {key}")
    assert "{'" not in said


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["reader=jsonl"], "reader has no kind; write reader: {kind: jsonl, path: FILE}"),
        (["prompt='{q'"], "prompt: the template '{q': expected '}' before end of string; write {{ and }}"),
        (["answer='{a}}'"], "answer: the template '{a}}': Single '}' encountered"),
        (["kind=choose", "choices=[true, no]"], 'choices.0=True: Input should be a valid string; write "true" in q'),
        (["generate.max_new_tokens=2.5"], "generate.max_new_tokens=2.5: Input should be a valid integer"),
        (["generate.num_beams=2", "generate.temperature=1.0"], "generate.num_beams=2 does not go with temperature"),
        (["metrics=[exact]"], "metrics: metric 'exact' does not exist"),
        (["shots.embedder=decodr"], "shots.embedder=decodr is not known; did you mean decoder?"),
        (["reader.where={a: 1}"], 'reader.where.a=1: Input should be a valid string; write "1" in quotes'),
        (["length_normalise=on"], "length_normalise='on': Input should be a valid boolean; write true"),
    ],
)
def test_a_task_is_told_its_faults_in_its_own_keys(overrides, told):
    tree = {"name": "t", "reader": {"kind": "jsonl", "path": "t.jsonl"}, "prompt": "{q}", "answer": "{a}"}
    assert fault(TaskConfig, tree, *overrides).startswith(f"real.yaml: {told}")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("stages.0.learning_rate=yes", "='yes': Input should be a valid number"),
        ("stages.0.learning_rate=true", "=True: Input should be a valid number; true and false are no numbers"),
        ("stages.0.learning_rate='3e-3'", "='3e-3': Input should be a valid number; write it without quotes"),
        ("stages.0.learning_rate=.inf", "=inf: Input should be a finite number"),
        ("stages.0.learning_rate=.nan", "=nan: Input should be a finite number"),
        ("stages.0.learning_rate=1e999", "=inf: Input should be a finite number"),
        ("stages.0.learning_rates={a: .inf}", ".a=inf: Input should be a finite number"),
        ("stages.0.optimizer.betas=[.9, .inf]", ".1=inf: Input should be a finite number"),
        ("stages.0.data.0.weight=.inf", "=inf: Input should be a finite number"),
        ("stages.0.steps=.inf", "=inf: Input should be a valid integer"),
        ("stages.0.steps=1:30", "='1:30': Input should be a valid integer"),
        ("stages.0.steps=10.5", "=10.5: Input should be a valid integer"),
        ("stages.0.steps='10'", "='10': Input should be a valid integer; write it without quotes"),
        ("stages.0.steps=true", "=True: Input should be a valid integer; true and false are no numbers"),
        ("stages.0.steps=1_00", "='1_00': Input should be a valid integer"),
        ("model.decoder.norm_scale=yes", "='yes': Input should be a valid boolean; write true"),
        ("model.decoder.norm_scale=0", "=0: Input should be a valid boolean; write false"),
        ("model.decoder.norm_scale='true'", "='true': Input should be a valid boolean; write true"),
        ("seed=9223372036854775808", "=9223372036854775808: Input should be less than"),
        ("stages.0.name=010", '=10: Input should be a valid string; write "10" in quotes'),
    ],
)
def test_nothing_is_taken_for_a_number_or_a_boolean_that_is_none(override, told, recipe):
    said = fault(Recipe, recipe, override)
    assert said.startswith(f"real.yaml: {override.partition('=')[0]}{told}")


@pytest.mark.parametrize(
    ("text", "steps"), [("010", 10), ("1e3", 1000), ("10.0", 10), ("1_000", 1000), ("0o10", 8), ("0x1F", 31)]
)
def test_whole_numbers_are_taken_however_they_are_written(text, steps, recipe):
    built = build(Recipe, apply_overrides(recipe, [f"stages.0.steps={text}"]), "real.yaml").stages[0].steps
    assert built == steps
    assert type(built) is int
