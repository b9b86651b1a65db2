import string
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mmgpt.config import UserError, apply_overrides, build, read_yaml, to_yaml
from mmgpt.evaluation.tasks.task import load_task
from mmgpt.model.multimodal import MultimodalModel
from mmgpt.training.recipe import Recipe, load_recipe

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
YAMLS = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml"))
RECIPES = [name for name in YAMLS if "stages:" in (CONFIGS / name).read_text()]
PRETRAINED = [name for name in RECIPES if "pretrained:" in (CONFIGS / name).read_text()]
TASKS = [name for name in YAMLS if name.startswith("tasks/")]


@pytest.fixture
def write(tmp_path):
    def to_file(text: str, name: str = "recipe.yaml") -> Path:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return to_file


@pytest.fixture
def tree(make_recipe) -> dict[str, Any]:
    return make_recipe({"name": "one"}, {"name": "two"}).model_dump(mode="json")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("model.decoder.widht=3", r"model.decoder.widht is not a field of DecoderConfig; did you mean width\?"),
        ("model.encoders.image.kind=vitt", r"model.encoders.image.kind=vitt is not known; did you mean vit\?"),
        ("model.encoders.image.patchsize=3", r"image.patchsize is not a field of ViTConfig; did you mean patch_size\?"),
        (
            "model.adapters.image.strides=3",
            r"adapters.image.strides is not a field of FoldConfig; did you mean stride\?",
        ),
        ("stages.one.step=3", r"stages.0.step is not a field of StageConfig; did you mean steps\?"),
        (
            "stages.two.data.0.wieght=3",
            r"stages.1.data.0.wieght is not a field of WorldConfig; did you mean weight\?",
        ),
        ("stages.two.optimizer.beta=3", r"optimizer.beta is not a field of OptimizerConfig; did you mean betas\?"),
        ("stage=3", r"stage is not a field of Recipe; did you mean stages\?"),
    ],
)
def test_an_unknown_key_is_answered_with_its_path_and_the_nearest_right_name(override, told, tree):
    with pytest.raises(UserError, match=told) as caught:
        build(Recipe, apply_overrides(tree, [override]), "my.yaml")
    assert str(caught.value).startswith("my.yaml: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("stages.one.steps=-3", r"stages.0.steps=-3: Input should be greater than 0"),
        ("stages.one.learning_rate=fast", r"stages.0.learning_rate='fast': Input should be a valid number"),
        ("stages.one.objective=repond", r"stages.0.objective='repond': Input should be 'respond'"),
        ("model.decoder.heads=5", r"heads=5 does not divide width=32"),
        ("stages.two.name=one", r"stages \['one', 'one'\] must have different names"),
    ],
)
def test_a_wrong_value_is_answered_with_its_path_the_value_and_the_rule(override, told, tree):
    with pytest.raises(UserError, match=told):
        build(Recipe, apply_overrides(tree, [override]), "my.yaml")


def test_a_missing_key_is_named(tree):
    del tree["stages"][0]["data"]
    with pytest.raises(UserError, match=r"my.yaml: stages.0.data is missing; it has no default"):
        build(Recipe, tree, "my.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [("3e-3", 0.003), ("1E5", 1e5), ("-2.5e+3", -2500.0), (".5", 0.5), ("2.", 2.0), ("7", 7), ("1e-3x", "1e-3x")],
)
def test_numbers_are_those_of_yaml_1_2(text, value, write):
    read = read_yaml(write(f"key: {text}\n"))["key"]
    assert read == value
    assert type(read) is type(value)


@given(number=st.floats(allow_nan=False, allow_infinity=False) | st.integers())
def test_every_number_python_writes_is_read_back_as_that_number(number):
    read = apply_overrides({}, [f"key={number!r}"])["key"]
    assert read == number
    assert type(read) is type(number)


def test_overrides_reach_mappings_lists_by_index_and_lists_by_name(tree):
    out = apply_overrides(tree, ["stages.0.steps=7", "stages.two.steps=8", "model.decoder.width=64", "tasks=[a, b]"])
    assert [stage["steps"] for stage in out["stages"]] == [7, 8]
    assert out["model"]["decoder"]["width"] == 64
    assert out["tasks"] == ["a", "b"]


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("stages.0.steps", "is not an override; write KEY=VALUE"),
        ("=3", "is not an override; write KEY=VALUE"),
        ("stages.three.steps=1", "three is neither a name in the list nor an index below 2"),
        ("stages.2.steps=1", "2 is neither a name in the list nor an index below 2"),
        ("name.first=1", "name is a single value, it has no first"),
        ("name.first.second=1", "name is a single value, it has no first; it is 'tiny'"),
        ("tasks=[a, b", "not valid YAML"),
    ],
)
def test_a_wrong_override_is_refused_with_what_is_wrong_in_it(override, told, tree):
    with pytest.raises(UserError, match=told):
        apply_overrides(tree, [override])


def test_an_include_is_replaced_by_its_file_with_the_other_keys_laid_over_it(write):
    write("{width: 32, depth: 2}", "parts/decoder.yaml")
    write("{include: parts/decoder.yaml, depth: 3}", "deeper.yaml")
    top = write("model: {decoder: {include: deeper.yaml, heads: 4}}\nlist: [{include: parts/decoder.yaml}]\n")
    assert read_yaml(top) == {
        "model": {"decoder": {"width": 32, "depth": 3, "heads": 4}},
        "list": [{"width": 32, "depth": 2}],
    }


def test_an_include_of_nothing_and_one_of_itself_are_refused(write):
    with pytest.raises(UserError, match=r"absent.yaml: no such file"):
        read_yaml(write("include: absent.yaml"))
    with pytest.raises(UserError, match="includes itself"):
        read_yaml(write("include: recipe.yaml"))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"a: [1, 2", "recipe.yaml: not valid YAML"),
        (b"- 1\n- 2\n", "recipe.yaml: holds a list; a config is a mapping"),
        (b"just words", "recipe.yaml: holds a str; a config is a mapping"),
        (b"", "recipe.yaml: holds a NoneType"),
        (b"\xff\xfe\x00", "recipe.yaml: not valid YAML"),
    ],
)
def test_a_file_that_is_no_config_is_refused_by_name(content, told, tmp_path):
    (tmp_path / "recipe.yaml").write_bytes(content)
    with pytest.raises(UserError, match=told):
        read_yaml(tmp_path / "recipe.yaml")


def test_a_missing_file_is_answered_with_the_nearest_config_that_comes_with_mmgpt():
    with pytest.raises(UserError, match=r"quickstrat: no such file, .*; did you mean quickstart\?"):
        read_yaml("quickstrat")
    assert read_yaml("quickstart") == read_yaml("configs/quickstart.yaml") == read_yaml(CONFIGS / "quickstart.yaml")


@pytest.mark.parametrize("name", sorted({*RECIPES} - {*PRETRAINED}))
def test_every_recipe_in_configs_builds_and_comes_back_from_its_yaml(name, tmp_path):
    recipe = load_recipe(CONFIGS / name)
    (tmp_path / "config.yaml").write_text(to_yaml(recipe), encoding="utf-8")
    assert load_recipe(tmp_path / "config.yaml") == recipe
    MultimodalModel(recipe.model, recipe.tokenizer.vocab_size, dict.fromkeys(recipe.model.encoders, 0))
    for task in recipe.tasks:
        load_task(task)


@pytest.mark.parametrize("name", PRETRAINED)
def test_a_recipe_that_begins_from_checkpoints_is_run_by_test_recipes_and_builds_all_but_its_model(name):
    tree, tiny = read_yaml(CONFIGS / name), {"decoder": {"width": 32, "depth": 1, "heads": 2}}
    recipe = build(Recipe, {**tree, "model": tiny, "media_markup": {}}, name)  # no checkpoint is at hand here
    assert name == f"recipes/{recipe.name}.yaml"  # the folder that training/test_recipes.py runs, on stand-ins


@pytest.mark.parametrize("name", TASKS)
def test_every_task_in_configs_builds_under_its_own_name(name):
    assert load_task(CONFIGS / name).name == Path(name).stem == load_task(Path(name).stem).name


@pytest.mark.parametrize("name", YAMLS)
def test_the_first_line_of_a_config_says_what_it_is_for(name):
    first = (CONFIGS / name).read_text().splitlines()[0]
    assert first.startswith("# ")
    assert len(first.split()) > 4
    assert not first.startswith("# configs/") or first.startswith(f"# configs/{name}: ")


@given(
    steps=st.integers(1, 10**6),
    rate=st.floats(1e-12, 1e3),
    name=st.text(string.ascii_letters, min_size=1),
    label=st.text(min_size=1).filter(str.isprintable),
)
def test_a_resolved_recipe_reloads_to_an_equal_one(steps, rate, name, label, make_recipe):
    data = [{"reader": "world", "name": "scenes", "label": label}]
    recipe = make_recipe({"steps": steps, "learning_rate": rate, "name": name, "data": data})
    again = build(Recipe, yaml.safe_load(to_yaml(recipe)), "again")
    assert again == recipe
    assert to_yaml(again) == to_yaml(recipe)


def test_configs_cannot_be_changed_once_built(make_recipe):
    with pytest.raises(ValueError, match="frozen"):
        make_recipe().seed = 3
