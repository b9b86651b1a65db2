import io

import PIL.Image
import pytest
from rich.console import Console

from mmgpt.datasets.media import Image
from mmgpt.datasets.sample import Message
from mmgpt.generation.terminal import talk


@pytest.fixture
def converse(monkeypatch, assistant):
    """Type lines into a talk; what was shown, and the messages of every answer asked for."""
    asked: list[list[Message]] = []
    original = assistant.stream

    def watched(messages, **options):
        pieces = original(messages, **options)
        asked.append(list(messages))
        return pieces

    def run(*lines: str) -> tuple[str, list[list[Message]]]:
        shown = io.StringIO()
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        monkeypatch.setattr("sys.stdout", io.StringIO())
        monkeypatch.setattr(assistant, "stream", watched)
        asked.clear()
        talk(assistant, Console(file=shown, width=200), max_new_tokens=6, temperature=0.0)
        return shown.getvalue(), list(asked)

    return run


@pytest.fixture
def picture(tmp_path) -> str:
    PIL.Image.new("RGB", (20, 20), "red").save(tmp_path / "a red picture.png")
    return str(tmp_path / "a red picture.png")


def test_an_answer_is_shown_as_it_is_and_becomes_part_of_the_talk(converse, assistant):
    shown, asked = converse("2 + 2 =", "", "And?", "/quit", "not read any more")
    first = assistant.ask("2 + 2 =", max_new_tokens=6).text
    assert first in shown
    question = Message.of("user", "2 + 2 =")
    assert asked == [[question], [question, Message.of("assistant", first), Message.of("user", "And?")]]
    assert "a second)" in shown


def test_a_picture_goes_with_the_next_question_alone(converse, picture):
    _, asked = converse(f"/image {picture}", "What is this?", "And this?")
    parts = asked[0][0].parts
    assert [type(part) for part in parts] == [Image, type(asked[0][0].parts[1])]
    assert parts[0].source == picture
    assert asked[1][-1] == Message.of("user", "And this?")


def test_new_forgets_the_talk_and_the_waiting_picture(converse, picture):
    _, asked = converse("2 + 2 =", f"/image {picture}", "/new", "And?")
    assert asked[1] == [Message.of("user", "And?")]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("/imag a.png", "/imag is not a command; /image PATH adds"),
        ("/[/red]", "/[/red] is not a command; /image PATH adds"),
        ("/image", "cannot be read"),
        ("/image not/there.png", "not/there.png: no such file"),
        ("/audio a.wav", "this model has no audio encoder"),
        ("1" * 400, "too many for the context of 320"),
    ],
)
def test_a_fault_is_told_and_the_talk_goes_on(line, told, converse):
    shown, asked = converse(line, "2 + 2 =")
    assert told in shown
    assert asked == [[Message.of("user", "2 + 2 =")]]


def test_the_oldest_exchanges_are_left_out_when_the_talk_outgrows_the_context(converse):
    lines = [f"{number}" + "1" * 120 for number in range(5)]
    _, asked = converse(*lines)
    assert [messages[-1].text for messages in asked] == lines
    assert [messages[0].text[0] for messages in asked] == ["0", "0", "1", "2", "3"]
    assert [[message.role for message in messages] for messages in asked[1:]] == [["user", "assistant", "user"]] * 4


def test_the_end_of_the_input_ends_the_talk(converse):
    shown, asked = converse()
    assert asked == []
    assert "/quit ends" in shown
