import shlex
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from mmgpt.datasets.media import Audio, Image
from mmgpt.datasets.sample import Message
from mmgpt.evaluation.run import Evaluation
from mmgpt.reports.examples import Example, save_examples

PICTURE = Image(PIL.Image.new("RGB", (8, 8), "red"))
SOUND = Audio(np.sin(np.arange(800) / 3).astype(np.float32), rate=8000)


def sample(*media: Image | Audio, question: str = "What?", said: str = "red", truth: str = "red") -> dict:
    message = Message.of("user", *media, question).to_dict()
    return {"messages": [message], "prediction": said, "reference": truth, "scores": {"exact_match": said == truth}}


def saved(folder: Path, *tasks: list[dict], **options: int) -> list[Example]:
    evaluation = Evaluation("tiny", {}, samples={f"task{n}-0": rows for n, rows in enumerate(tasks)})
    return save_examples(evaluation, folder / "examples", **options)


def names(examples: list[Example]) -> list[list[str]]:
    return [[file.name for file in one.files] for one in examples]


def test_each_task_gives_an_example_with_its_pictures_and_sounds_in_the_order_of_the_prompt(tmp_path):
    tasks = [sample(PICTURE)], [sample(PICTURE)], [sample(SOUND)], [sample(SOUND, PICTURE, said="blue")]
    examples = saved(tmp_path, *tasks)
    assert names(examples) == [["0.png"], ["1.png"], ["2.wav"], ["3.wav", "3.png"]]
    assert [one.is_right for one in examples] == [True, True, True, False]
    assert Image(examples[3].files[1]).load().getpixel((0, 0)) == (255, 0, 0)
    sound = Audio(examples[3].files[0]).load()
    assert sound.rate == 8000
    np.testing.assert_allclose(sound.samples, SOUND.source, atol=1e-4)


def test_a_second_picture_of_a_question_has_a_number_of_its_own(tmp_path):
    (example,) = saved(tmp_path, [sample(PICTURE, SOUND, PICTURE, SOUND, PICTURE)])
    assert names([example]) == [["0.png", "0.wav", "0-1.png", "0-1.wav", "0-2.png"]]
    assert all(file.is_file() for file in example.files)


def test_few_tasks_give_three_examples_from_all_over_them(tmp_path):
    rows = [sample(PICTURE, question=str(number)) for number in range(30)]
    assert [one.question for one in saved(tmp_path, rows)] == ["0", "10", "20"]
    assert [one.question for one in saved(tmp_path, rows, rows[:6])] == ["0", "2", "20"]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_samples_give_as_many_examples_and_none_twice(count, tmp_path):
    rows = [sample(PICTURE, question=str(number)) for number in range(count)]
    assert [one.question for one in saved(tmp_path, rows)] == ["0", "1"][:count]


def test_questions_without_media_are_passed_over(tmp_path):
    assert saved(tmp_path) == []
    assert saved(tmp_path, [sample()], [sample(), sample()]) == []
    assert names(saved(tmp_path, [sample()], [sample(), sample(SOUND)])) == [["0.wav"]]


def test_an_example_tells_the_command_that_asks_it_again(tmp_path):
    (example,) = saved(tmp_path, [sample(SOUND, PICTURE, question="It's what?")])
    assert shlex.split(example.command(Path("runs/a b"))) == [
        *("mmgpt", "ask", "runs/a b", "It's what?"),
        *("--audio", str(tmp_path / "examples" / "0.wav")),
        *("--image", str(tmp_path / "examples" / "0.png")),
    ]
