import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import soundfile
import typer.testing
import yaml

from mmgpt.checkpoints.save_load import save_bundle
from mmgpt.cli import main
from mmgpt.config import Config
from mmgpt.datasets.sample import Message
from mmgpt.files import write_folder
from mmgpt.inputs.render import Renderer

COMMANDS = ("quickstart", "train", "eval", "ask", "chat", "convert", "push", "compare", "leaderboard")


@pytest.fixture
def checkpoint(make_bundle, tmp_path) -> Path:
    write_folder(tmp_path / "model", lambda draft: save_bundle(make_bundle(), draft))
    return tmp_path / "model"


@pytest.fixture
def picture(tmp_path) -> str:
    PIL.Image.effect_noise((30, 30), 90).save(tmp_path / "scene.png")
    return str(tmp_path / "scene.png")


@pytest.fixture
def recipe(make_recipe, tmp_path):
    """Write a tiny recipe whose stage reads `data`."""

    def write(data: dict | None = None, **changes) -> Path:
        config: Config = make_recipe({"steps": 1, **({"data": [data]} if data else {})}, **changes)
        tree = config.model_dump(mode="json", exclude_none=True)
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tree))
        return tmp_path / "tiny.yaml"

    return write


def refused(answer: tuple[int, str, str], after: str = "") -> str:
    """The one line with which wrong input is refused; `after` begins what a stage that had started told before."""
    code, shown, told = answer
    assert code == 2, told
    assert "Traceback" not in told + shown
    *before, line = told.splitlines()
    assert line.startswith("error: ")
    assert before[0].startswith(after) if after else not before, told
    return line


def run_installed(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("mmgpt")), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_installed_command_shows_what_it_can_do():
    done = run_installed("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for command in COMMANDS:
        assert f" {command} " in done.stdout


def test_the_installed_command_refuses_wrong_input_in_one_line_and_exits_with_2(recipe, tmp_path):
    done = run_installed("train", recipe(), "stages.0.lerning_rate=1", "--out", tmp_path / "run")
    where = refused((done.returncode, done.stdout, done.stderr))
    assert "stages.0.lerning_rate is not a field of StageConfig; did you mean learning_rate" in where


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command):
    done = typer.testing.CliRunner().invoke(main.app, [command, "--help"])
    assert done.exit_code == 0
    assert f"{command} [OPTIONS]" in done.stdout
    registered = {info.name or info.callback.__name__: info.callback for info in main.app.registered_commands}
    assert set(registered) == set(COMMANDS)
    if command in ("ask", "chat"):
        assert "sounds" in done.stdout
    assert registered[command].__doc__.split(".")[0][:40] in " ".join(done.stdout.split())


def test_a_misspelt_command_option_or_choice_exits_with_2(mmgpt_says, checkpoint):
    for arguments in (
        ["trian"],
        ["ask", checkpoint, "?", "--imag", "a.png"],
        ["eval", checkpoint, "--tasks", "a", "--limit", 0],
    ):
        code, _, told = mmgpt_says(*arguments)
        assert code == 2
        assert "Traceback" not in told


def test_a_missing_recipe_is_refused_with_the_nearest_name(mmgpt_says):
    assert "quikstart: no such file" in (told := refused(mmgpt_says("train", "quikstart")))
    assert "did you mean quickstart" in told


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("model.decoder.widht=3", "model.decoder.widht is not a field of DecoderConfig; did you mean width"),
        ("stages.0.steps=none", "stages.0.steps='none'"),
        ("stages.stage0.train=[decodr]", "decodr"),
        ("stages.nope.steps=3", "nope is neither a name in the list nor an index below 1"),
        ("steps", "'steps' is not an override; write KEY=VALUE"),
        ("stages.0.steps=[1", "stages.0.steps"),
    ],
)
def test_a_wrong_override_is_refused_with_its_path(override, told, mmgpt_says, recipe, tmp_path):
    assert told in refused(mmgpt_says("train", recipe(), override, "--out", tmp_path / "run"))


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("absent.jsonl", None, "absent.jsonl: no such file or folder; set --data-root"),
        ("empty.jsonl", "", "empty.jsonl: holds no samples"),
        ("broken.jsonl", '{"messages": [', "row 0 is not JSON"),
        ("user.jsonl", {"messages": [{"role": "user", "content": "a"}]}, "user/0: no token is a target; give it"),
        (
            "loose.jsonl",
            {
                "images": ["a.png"],
                "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
            },
            "loose/0: 1 images have no placeholder; write one <image>-like tag",
        ),
        (
            "fake.jsonl",
            {
                "images": ["fake.png"],
                "messages": [{"role": "user", "content": "<image>"}, {"role": "assistant", "content": "b"}],
            },
            "not a picture that can be read; give a PNG",
        ),
    ],
)
def test_data_that_cannot_be_learned_from_is_refused_with_its_key(name, content, told, mmgpt_says, recipe, tmp_path):
    if content is not None:
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    (tmp_path / "fake.png").write_text("not a picture at all")
    file = recipe({"reader": "messages", "path": name})
    after = "stage0 (respond)" if name in ("user.jsonl", "fake.jsonl") else ""
    assert told in refused(mmgpt_says("train", file, "--data-root", tmp_path, "--out", tmp_path / "run"), after)


def test_ask_prints_the_answer_alone(mmgpt_says, checkpoint, picture):
    import mmgpt

    wanted = mmgpt.load(checkpoint).ask(mmgpt.Image(picture), "What is this?", max_new_tokens=6).text
    code, shown, told = mmgpt_says("ask", checkpoint, "What is this?", "--image", picture, "--max-new-tokens", 6)
    assert (code, told) == (0, "")
    assert shown.replace("\n", "").strip() == wanted.replace("\n", "").strip()


@pytest.mark.parametrize("choices", [(), ("--choices", "yes,no")])
@pytest.mark.parametrize("kinds", [("image", "audio", "image"), ("audio", "audio", "image"), ("audio", "image"), ()])
def test_pictures_and_sounds_reach_the_model_in_the_order_typed(
    kinds, choices, mmgpt_says, make_bundle, picture, tmp_path, monkeypatch
):
    soundfile.write(tmp_path / "a.wav", np.sin(np.arange(4000)), 8000)
    write_folder(tmp_path / "hearing", lambda draft: save_bundle(make_bundle(audio={"kind": "linear"}), draft))
    read, prepare = list[Message](), Renderer._prompt_pieces

    def watched(self, messages, *rest):
        read.extend(messages)
        return prepare(self, messages, *rest)

    monkeypatch.setattr(Renderer, "_prompt_pieces", watched)
    files = {"image": picture, "audio": str(tmp_path / "a.wav")}
    media = [word for kind in kinds for word in (f"--{kind}", files[kind])]
    code, _, told = mmgpt_says("ask", *media[:2], tmp_path / "hearing", *media[2:], "?", *choices, "--max-new-tokens=2")
    assert (code, told) == (0, "")
    *parts, question = read[0].parts
    assert [(part.modality, part.source) for part in parts] == [(kind, files[kind]) for kind in kinds]
    assert question.text == "?"


def test_a_video_is_asked_about_from_the_command_line(mmgpt_says, checkpoint, make_clip, tmp_path):
    import mmgpt

    (tmp_path / "a.mp4").write_bytes(make_clip(2))
    wanted = mmgpt.load(checkpoint).ask(mmgpt.Video(str(tmp_path / "a.mp4")), "What?", max_new_tokens=6).text
    code, shown, _ = mmgpt_says("ask", checkpoint, "What?", "--video", tmp_path / "a.mp4", "--max-new-tokens", 6)
    assert code == 0
    assert shown.replace("\n", "").strip() == wanted.replace("\n", "").strip()


def test_ask_with_choices_prints_the_choices_and_marks_the_best(mmgpt_says, checkpoint, picture):
    code, shown, _ = mmgpt_says("ask", checkpoint, "What?", "--image", picture, "--choices", "yes,no,a [red] one")
    lines = shown.splitlines()
    assert code == 0
    assert [line[2:].rsplit("  ", 1)[0] for line in lines] == ["yes", "no", "a [red] one"]
    logprobs = [float(line.rsplit("  ", 1)[1]) for line in lines]
    assert [line[0] for line in lines].index(">") == logprobs.index(max(logprobs))
    assert shown.count(">") == 1


@pytest.mark.parametrize(
    "choices", [["yes, no"], [" yes ,no "], ["yes,no,"], ["yes", " no"], ['"yes" , "no"']], ids=str
)
def test_spaces_around_choices_do_not_turn_the_answer_round(choices, mmgpt_says, checkpoint, picture):
    wanted = mmgpt_says("ask", checkpoint, "What?", "--image", picture, "--choices", "yes,no")
    options = [part for choice in choices for part in ("--choices", choice)]
    assert mmgpt_says("ask", checkpoint, "What?", "--image", picture, *options) == wanted


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["?", "--image", "not/there.png"], "not/there.png: no such file; check the image's path"),
        (["?", "--audio", "a.wav"], "a.wav: this model has no audio encoder; it takes text, image"),
        (["1" * 400], "tokens, 82 too many for the context of 320; shorten it"),
        (["?", "--choices", "yes"], "give each at least two choices"),
        (["?", "--choices", "yes,,no"], "one is empty"),
        (["?", "--choices", "yes, yes"], "'yes' is there twice"),
        (["?", "--temperature", -1], "temperature=-1"),
        (["?", "--max-new-tokens", 0], "max_new_tokens=0"),
        (["?", "--device", "cupu"], "device cupu: cannot be used here"),
    ],
)
def test_a_wrong_question_is_refused(arguments, told, mmgpt_says, checkpoint):
    assert told in refused(mmgpt_says("ask", checkpoint, *arguments))


def test_a_text_file_under_a_picture_s_name_is_refused(mmgpt_says, checkpoint, tmp_path):
    (tmp_path / "fake.png").write_text("not a picture at all")
    told = refused(mmgpt_says("ask", checkpoint, "What?", "--image", tmp_path / "fake.png"))
    assert (
        "fake.png: a text ('not a picture at all'), not a picture that can be read; give a PNG, JPEG or WebP file"
        in told
    )


def test_a_checkpoint_that_does_not_fit_or_is_cut_is_refused(mmgpt_says, checkpoint):
    described = json.loads((checkpoint / "config.json").read_text())
    described["model"]["decoder"]["width"] = 40
    (checkpoint / "config.json").write_text(json.dumps(described))
    assert "of another shape: " in refused(mmgpt_says("ask", checkpoint, "?"))
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "damaged or truncated" in refused(mmgpt_says("ask", checkpoint, "?"))
    assert "no such folder; give a run" in refused(mmgpt_says("ask", checkpoint / "no", "?"))


def test_a_model_whose_logits_are_not_numbers_exits_with_1(mmgpt_says, make_bundle, tmp_path):
    bundle = make_bundle()
    bundle.model.decoder.head.weight.data[5] = float("nan")
    write_folder(tmp_path / "model", lambda draft: save_bundle(bundle, draft, with_golden=False))
    code, _, told = mmgpt_says("ask", tmp_path / "model", "?")
    assert (code, told.count("\n")) == (1, 1)
    assert told.startswith("failed: ")


def test_eval_prints_a_table_and_writes_the_scores(mmgpt_says, checkpoint, tmp_path):
    out = tmp_path / "out"
    arguments = ["--tasks", "scene_questions, scene_captions", "--shots", "0,1", "--limit", 2, "--blind", "--out", out]
    code, shown, _ = mmgpt_says("eval", checkpoint, *arguments)
    assert code == 0
    for word in ("scene_questions", "scene_captions", "exact_match", "text-only", str(out)):
        assert word in shown
    content = json.loads((out / "results.json").read_text())
    assert [(row["task"], row["shots"], row["n"]) for row in content["results"]] == [
        (task, shots, 2) for task in ("scene_questions", "scene_captions") for shots in (0, 1)
    ]
    assert content["model"] == str(checkpoint)


def test_eval_shows_each_seed_and_their_mean_and_what_did_not_fit(mmgpt_says, checkpoint):
    arguments = ["--tasks", "scene_questions", "--shots", "0,40", "--seeds", "3,4", "--limit", 2]
    code, shown, _ = mmgpt_says("eval", checkpoint, *arguments)
    assert code == 0
    for words in ("40 seed 3", "40 seed 4", "40 mean", "were left out to fit the context"):
        assert words in " ".join(shown.split())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--tasks", "scene_question"], "did you mean scene_questions"),
        (
            ["--tasks", "scene_questions", "--shots", "0;4"],
            "0;4",
        ),
        (["--tasks", "scene_questions", "--shots", "-1"], "'-1'"),
        (["--tasks", "scene_questions", "--seeds", "0;1"], "--seeds 0;1: give numbers with commas between them"),
        (["--tasks", "scene_questions", "--blind-modes", "closed"], "closed"),
        (["--tasks", "easy_vqa", "--data-root", "not/there"], "set --data-root to the folder that holds easy_vqa"),
    ],
)
def test_a_wrong_evaluation_is_refused(arguments, told, mmgpt_says, checkpoint):
    assert told in refused(mmgpt_says("eval", checkpoint, *arguments))


def test_quickstart_shows_its_answers_and_the_command_that_asks_one_again(mmgpt_says, tmp_path, monkeypatch):
    from mmgpt.applications.pipeline import Finished
    from mmgpt.reports.examples import Example

    examples = [
        Example((Path("e/0.png"),), "What [shape]?", "ring", "ring", is_right=True),
        Example((Path("e/1.wav"), Path("e/1.png")), "How many?", "2", "[3]", is_right=False),
    ]
    for given in (examples, []):
        finished = Finished(tmp_path, None, tmp_path / "report.html", given)
        monkeypatch.setattr("mmgpt.applications.pipeline.run_recipe", lambda *_, finished=finished, **__: finished)
        code, shown, _ = mmgpt_says("quickstart", "--out", tmp_path)
        assert code == 0
        for words in ("e/0.png", "What [shape]?", "right  ring", "e/1.wav  e/1.png", "wrong  2", "truth  [3]"):
            assert (words in shown) == bool(given)
        command = f"mmgpt ask {tmp_path} 'How many?' --audio e/1.wav --image e/1.png"
        assert (command in shown) == bool(given)
        assert str(finished.report) in shown


def test_chat_talks_through_the_standard_input(mmgpt_says, checkpoint, picture):
    typed = f"/image {picture}\nWhat is this?\n/nwe\n/new\n/image no.png\nAnd?\n/quit\nnot read\n"
    code, shown, told = mmgpt_says("chat", checkpoint, "--max-new-tokens", 4, typed=typed)
    assert (code, told) == (0, "")
    assert "/nwe is not a command; /image PATH, /audio PATH or /video PATH adds one" in shown
    assert "no.png: no such file" in shown
    assert shown.count(" a second, the first words after ") == 2
