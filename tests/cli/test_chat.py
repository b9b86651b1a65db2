import io
import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import soundfile
from rich.console import Console

from mmgpt.cli.chat import talk
from mmgpt.datasets.media import Audio, Image, Video
from mmgpt.datasets.readers.messages import MessagesConfig
from mmgpt.datasets.readers.registry import open_source
from mmgpt.datasets.sample import Message, Text
from mmgpt.generation.assistant import Assistant


@pytest.fixture
def converse_with(monkeypatch):
    """Type lines into a talk; what was shown, and the messages of every answer asked for."""

    def run(assistant: Assistant, *lines: str) -> tuple[str, list[list[Message]]]:
        asked: list[list[Message]] = []
        original, shown = assistant.stream, io.StringIO()

        def watched(messages, **options):
            pieces = original(messages, **options)
            asked.append(list(messages))
            return pieces

        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        monkeypatch.setattr("sys.stdout", io.StringIO())
        monkeypatch.setattr(assistant, "stream", watched)
        talk(assistant, Console(file=shown, width=200), max_new_tokens=6, temperature=0.0)
        return shown.getvalue(), asked

    return run


@pytest.fixture
def converse(converse_with, assistant):
    return partial(converse_with, assistant)


@pytest.fixture
def hearing(make_assistant) -> Assistant:
    return make_assistant(audio={"kind": "linear"})


@pytest.fixture
def picture(tmp_path) -> str:
    PIL.Image.new("RGB", (20, 20), "red").save(tmp_path / "a red picture.png")
    return str(tmp_path / "a red picture.png")


def test_an_answer_is_shown_as_it_is_and_becomes_part_of_the_talk(converse, assistant):
    shown, asked = converse("2 + 2 =", "", "And?", "/quit", "not read any more")
    first = assistant.ask("2 + 2 =", max_new_tokens=6).text
    assert "".join(filter(str.isprintable, first)) in "".join(filter(str.isprintable, shown))
    question = Message.of("user", "2 + 2 =")
    assert asked == [[question], [question, Message.of("assistant", first), Message.of("user", "And?")]]
    tokens = len(assistant.ask("2 + 2 =", max_new_tokens=6).tokens)
    assert re.search(rf"\({tokens} tokens, \d+ a second, the first words after \d+\.\d\d s\)", shown)


def test_a_picture_goes_with_the_next_question_alone(converse, picture):
    _, asked = converse(f"/image {picture}", "What is this?", "And this?")
    parts = asked[0][0].parts
    assert [type(part) for part in parts] == [Image, type(asked[0][0].parts[1])]
    assert parts[0].source == picture
    assert asked[1][-1] == Message.of("user", "And this?")


@pytest.fixture
def sound(tmp_path) -> str:
    soundfile.write(tmp_path / "a short sound.wav", np.sin(np.arange(4000)), 8000)
    return str(tmp_path / "a short sound.wav")


def test_pictures_and_sounds_go_with_the_next_question_in_the_order_given(converse_with, hearing, picture, sound):
    lines = [f"/audio {sound}", f"/image {picture}", f"/audio {sound}", "What are these?", "And this?"]
    shown, asked = converse_with(hearing, *lines)
    parts = asked[0][0].parts
    assert [type(part) for part in parts] == [Audio, Image, Audio, Text]
    assert [part.source for part in parts[:3]] == [sound, picture, sound]
    assert hearing.chat(asked[0], max_new_tokens=6).text in shown
    assert asked[1][-1] == Message.of("user", "And this?")


def test_a_sound_that_cannot_be_used_is_told_at_once_and_the_talk_goes_on(converse_with, hearing, tmp_path):
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 8000)
    soundfile.write(tmp_path / "long.wav", np.zeros(31 * 8000), 8000)
    lines = [f"/audio {tmp_path}/{name}.wav" for name in ("no", "empty", "long")]
    shown, asked = converse_with(hearing, *lines, "/audio", "2 + 2 =")
    for told in (
        "no.wav: no such file; check the audio's path",
        "empty.wav: the sound is empty; remove it",
        "long.wav: 31.00 s of sound, over the encoder's limit of 30 s; cut it",
        "/audio needs a path; /image PATH, /audio PATH or /video PATH adds",
    ):
        assert told in " ".join(shown.split())  # whatever the width of the terminal
    assert asked == [[Message.of("user", "2 + 2 =")]]


def test_a_video_goes_with_the_next_question(converse_with, hearing, make_clip, tmp_path):
    (tmp_path / "a film.mp4").write_bytes(make_clip(2))
    shown, asked = converse_with(hearing, f"/video {tmp_path}/a film.mp4", "What is this?")
    assert [type(part) for part in asked[0][0].parts] == [Video, Text]
    assert hearing.chat(asked[0], max_new_tokens=6).text in shown


def test_the_system_turn_is_set_changed_and_taken_away(converse):
    _, asked = converse("/system Be brief.", "2 + 2 =", "/system Be long.", "And?", "/new", "Hi.", "/system", "Bye.")
    systems = [[turn.text for turn in turns if turn.role == "system"] for turns in asked]
    assert systems == [["Be brief."], ["Be long."], ["Be long."], []]
    assert [len(turns) for turns in asked] == [2, 4, 2, 3]


def test_a_template_without_system_turns_refuses_one_at_once(converse_with, make_assistant):
    shown, asked = converse_with(make_assistant(template="gemma"), "/system Be brief.", "2 + 2 =")
    assert "this model's chat template has no system turns" in shown
    assert [turn.role for turn in asked[0]] == ["user"]


def test_a_saved_talk_is_read_back_by_the_reader_of_messages(converse_with, hearing, picture, sound, tmp_path):
    lines = ["/system Be brief.", f"/image {picture}", f"/audio {sound}", "What is <image> here?", "And?"]
    shown, _ = converse_with(
        hearing, *lines, f"/save {tmp_path}/talks.jsonl", "/new", "Hi.", f"/save {tmp_path}/talks.jsonl"
    )
    assert "4 turns added" in shown
    rows = [json.loads(line) for line in (tmp_path / "talks.jsonl").read_text().splitlines()]
    assert rows[0]["messages"][1]["content"][:2] == [
        {"type": "image", "path": Path(picture).name},
        {"type": "audio", "path": Path(sound).name},
    ]
    source = open_source(MessagesConfig(reader="messages", path="talks.jsonl"), tmp_path)
    first, second = (source[index].messages for index in range(2))
    assert [turn.role for turn in first] == ["system", "user", "assistant", "user", "assistant"]
    assert [turn.text for turn in first[:2]] == ["Be brief.", "What is <image> here?"]
    assert hearing.chat(first[:-3], max_new_tokens=6).text == first[2].text
    assert [turn.text for turn in second[:2]] == ["Be brief.", "Hi."]


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["/save a.jsonl"], "there is nothing to save yet; ask something first"),
        (["Hi.", "/save"], "/save needs a file; "),
        (["Hi.", "/save not/there/a.jsonl"], "not/there/a.jsonl: cannot be written .* give another file"),
    ],
)
def test_a_talk_that_cannot_be_saved_is_told(lines, told, converse):
    shown, _ = converse(*lines)
    assert re.search(told, shown)


def test_new_forgets_the_talk_and_the_waiting_picture(converse, picture):
    _, asked = converse("2 + 2 =", f"/image {picture}", "/new", "And?")
    assert asked[1] == [Message.of("user", "And?")]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("/imag a.png", "/imag is not a command; /image PATH, /audio PATH"),
        ("/[/red]", "/[/red] is not a command; /image PATH, /audio PATH"),
        ("/image", "/image needs a path; "),
        ("/image not/there.png", "not/there.png: no such file"),
        ("/audio a.wav", "a.wav: this model has no audio encoder; it takes text, image"),
        ("1" * 400, "too many for the context of 320"),
    ],
)
def test_a_fault_is_told_and_the_talk_goes_on(line, told, converse):
    shown, asked = converse(line, "2 + 2 =")
    assert told in shown
    assert asked == [[Message.of("user", "2 + 2 =")]]


def test_the_oldest_exchanges_are_left_out_when_the_talk_outgrows_the_context(converse):
    lines = [f"{number}" + "1" * 120 for number in range(5)]
    shown, asked = converse(*lines)
    assert [messages[-1].text for messages in asked] == lines
    assert [messages[0].text[0] for messages in asked] == ["0", "0", "1", "2", "3"]
    assert [[message.role for message in messages] for messages in asked[1:]] == [["user", "assistant", "user"]] * 4
    assert shown.count("the oldest 2 turns left out") == 1
    assert "the oldest 6 turns left out" in shown


def test_the_end_of_the_input_ends_the_talk(converse):
    shown, asked = converse()
    assert asked == []
    assert "/quit ends" in shown
