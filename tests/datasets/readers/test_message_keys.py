"""Every key of a conversation's row, turn and part is read, in `ignore`, or an error; what is read has its meaning."""

import json
import re
import tempfile
from pathlib import Path

import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmgpt.config import UserError, build
from mmgpt.datasets.calls import Call
from mmgpt.datasets.media import Image
from mmgpt.datasets.readers.messages import ORIGIN, MessagesConfig
from mmgpt.datasets.readers.registry import open_source
from mmgpt.datasets.sample import Message, Text, parse_messages

Q, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
TURNS = [Q, A]
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "X"}'}}


def read(folder: Path, *rows, **options):
    PIL.Image.new("RGB", (4, 4), "red").save(folder / "a.png")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return open_source(build(MessagesConfig, {"reader": "messages", "path": "rows.jsonl", **options}, "x"), folder)


def said(sample) -> list[tuple[str, str]]:
    return [(message.role, message.text) for message in sample.messages]


def with_part(**part) -> dict:
    return {"messages": [{"role": "user", "content": [part, {"type": "text", "text": "?"}]}, A]}


def with_turn(turn: dict, *more: dict) -> dict:
    return {"messages": [Q, {**A, **turn}, *more]}


@pytest.mark.parametrize(
    ("row", "options", "told"),
    [
        (
            {"messages": [{**Q, "content": "<image>q"}, A], "image_path": "a.png"},
            {},
            "says <image>.*messages, image_path",
        ),
        ({"messages": [{**Q, "content": "<sound>q"}, A]}, {}, r"says <sound>.*text_tags: \['<sound>'\]"),
        (
            {"messages": [{**Q, "content": "[v]q"}, A]},
            {"placeholders": {"video": "[v]"}},
            r"says \[v\], but .* no video",
        ),
        ({"messages": [Q, {**A, "content": "see <video>"}]}, {}, "says <video>"),
        ({"messages": [{"role": "system", "content": "<audio>"}, *TURNS]}, {}, "says <audio>"),
        (with_part(type="text", text="<image>"), {}, "says <image>"),
        (
            {"messages": TURNS, "imgs": ["a.png"]},
            {},
            r"rows/0: the row: nothing reads 'imgs'; did you mean images\?",
        ),
        ({"messages": TURNS, "weight": 0.5}, {}, "nothing reads 'weight'"),
        ({"messages": TURNS, "conversations": TURNS}, {}, "turns stand under messages and conversations"),
        ({"messages": TURNS, "response": "b"}, {}, "nothing reads 'response'"),
        ({"messages": TURNS, "image": "a.png"}, {"columns": {"images": "pics"}}, "columns.images=pics, but no row"),
        ({"messages": TURNS, "sistem": "s"}, {"columns": {"system": "system"}}, r"did you mean system\?"),
        ({"dialog": TURNS}, {"columns": {"messages": "dialogue"}}, r"did you mean dialog\?"),
        (
            {"messages": [{"who": "user", "says": "q"}]},
            {"tags": {"role_tag": "whoo"}},
            r"no key 'whoo'.*did you mean who\?",
        ),
        ({"messages": [{"role": "user", "says": "q"}]}, {"tags": {"content_tag": "say"}}, r"did you mean says\?"),
        (with_part(type="image"), {}, "holds no image"),
        (
            {**with_part(type="image", index=1), "images": ["a.png"]},
            {},
            "index=1 is no number of one of the row's images",
        ),
        ({**with_part(type="image", path="a.png", index=0), "images": ["a.png"]}, {}, "nothing reads 'index'"),
        (with_part(type="image", path="a.png", min_pixels=4), {}, "nothing reads 'min_pixels'"),
        (with_part(type="text", text="q", cache_control={"type": "ephemeral"}), {}, "nothing reads 'cache_control'"),
        (with_part(type="image", path="a.png", detail="high"), {}, "asks for detail='high'"),
        (with_part(type="video", path="a.mp4", fps=2), {}, "gives fps with a file"),
        (with_part(type="audio", path="a.wav", sampling_rate=8000), {}, "gives sampling_rate with a file"),
        (with_part(type="image", path="a.png", url="b.png"), {}, "holds a image under path and url"),
        (with_part(type="image", image={"url": "a.png", "format": "png"}), {}, "nothing reads 'format'"),
        (with_turn({"name": "Bob"}), {}, "message 1: the assistant turn: nothing reads 'name'"),
        (with_turn({"refusal": "no"}), {}, "nothing reads 'refusal'"),
        (with_turn({"audio": {"id": "1"}}), {}, "nothing reads 'audio'"),
        (with_turn({"images": ["a.png"]}), {}, "nothing reads 'images'"),
        (with_turn({"reasoning_content": "hm"}), {}, "nothing reads 'reasoning_content'; say reasoning: think"),
        (with_turn({"weight": 0.5}), {}, "weight=0.5 of a turn turns its loss on or off"),
        (with_turn({"loss": "yes"}), {}, "loss='yes'"),
        (with_turn({"loss_mask": 2}), {}, "loss_mask=2"),
        (with_turn({"loss": True, "weight": 0}), {}, "say opposite things"),
        ({"messages": [{**Q, "loss": True}, A]}, {}, "turns on the loss of a user turn"),
        (with_turn({"content": None}), {}, "rows.jsonl: rows/0: message 1: the assistant turn has no content"),
        (with_turn({"content": " "}), {}, "message 1: the answer is blank and would be learned"),
        ({"messages": [{"role": "user", "content": float("nan")}, A]}, {}, "message 0: the user turn has no content"),
        ({"texts": [{"user": "q", "assistant": ""}]}, {}, "the answer is blank"),
        ({"texts": [{"user": "q", "assistant": "a", "score": 1}]}, {}, "nothing reads 'score'"),
        ({"query": "q", "response": "a", "history": [["q"]]}, {}, "is no exchange"),
        ({"messages": "[{]"}, {}, "are not JSON"),
        ({"messages": [{"role": "system", "content": "S1"}, *TURNS], "system": "S2"}, {}, "two system texts"),
        ({"messages": [{"role": "Developer", "content": "S1"}, *TURNS], "system": "S2"}, {}, "two system texts"),
        ({"messages": TURNS, "system": ["S"]}, {}, "write a string"),
        (with_part(type=["image"]), {}, "is not known"),
        ({"messages": [Q, {**A, "tool_calls": "weather"}]}, {}, "is not JSON"),
        (with_turn({"tool_calls": [{**CALL, "extra": 1}]}), {}, "nothing reads 'extra'"),
        (with_turn({"tool_calls": [{**CALL, "type": "custom"}]}), {}, "only functions"),
        (with_turn({"tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}), {}, "arguments .* is not JSON"),
        (with_turn({"tool_calls": [{"name": "f", "arguments": '{"a": 1, "a": 2}'}]}), {}, "a key stands twice"),
        (with_turn({"tool_calls": [{"name": "f", "arguments": [1]}]}), {}, "arguments that are no object"),
        (
            with_turn({"tool_calls": [CALL]}, {"role": "tool", "tool_call_id": "c2", "content": "x"}),
            {},
            "id of no call",
        ),
        (
            with_turn({"tool_calls": [CALL]}, {"role": "tool", "name": "f", "content": "x"}),
            {},
            "'f' is no tool .*: weather",
        ),
        ({"messages": TURNS, "tools": "[{}]"}, {}, "tools: {} has no name"),
        ({"messages": TURNS, "tools": 0}, {}, "tools: 0"),
        ({"messages": TURNS, "objects": {"bbox": [[1, 2, 3, 4]]}}, {}, "say <bbox> 0 times, objects lists 1"),
        ({"messages": [Q, {**A, "content": "<bbox>"}]}, {}, "say <bbox> 1 times, objects lists 0"),
        ({"messages": TURNS, "objects": {"bbox_type": "norm1", "bbox": [[0, 0]]}}, {}, "bbox_type is not 'real'"),
        ({"messages": TURNS, "objects": {"rf": ["a"]}}, {}, r"nothing reads 'rf'; did you mean ref\?"),
        ({"messages": [Q, {**A, "content": "<bbox>"}], "objects": {"bbox": [[1, None]]}}, {}, "bbox holds"),
        ({"messages": TURNS}, {"text_tags": ["<picture>"]}, "text_tags: '<picture>' is no placeholder"),
        *(
            ({"messages": [{**Q, "content": f"{tag}q"}, A]}, {}, rf"a turn says {re.escape(tag)}, but the row holds no")
            for tag in ("<img>", "<image_1>", "<image 1>", "<|image|>", "<|image_pad|>", "<ImageHere>", "<IMAGE>")
        ),
        ({"messages": [{**Q, "content": "<|video_pad|>q"}, A]}, {}, r"no video.*text_tags: \['<\|video_pad\|>'\]"),
        *(
            ({"messages": TURNS, **marks}, {}, f"{next(iter(marks))}'.* mark good and bad answers, which preference")
            for marks in (
                {"rejected_response": "b"},
                {"rejected_messages": TURNS},
                {"label": False},
                {"label": True},
                {"kto_tag": False},
                {"chosen": A, "rejected": A},
            )
        ),
        ({"prompt": [Q], "chosen": [A], "rejected": [A]}, {}, "mark good and bad answers"),
    ],
)
def test_what_a_row_says_and_nothing_reads_is_an_error_that_names_it(row, options, told, tmp_path):
    with pytest.raises(UserError, match=told):
        read(tmp_path, row, **options)[0]


@pytest.mark.parametrize(
    ("row", "options"),
    [
        ({"messages": [{**Q, "content": "<image>q"}, A]}, {"text_tags": ["<image>"]}),
        ({"messages": [{**Q, "content": "<img>q"}, A]}, {"text_tags": ["<img>"]}),
        ({"messages": [{**Q, "content": "<image>Is <image_1> red?"}, A], "images": ["a.png"]}, {}),
        ({"messages": TURNS, "label": True, "score": 1}, {"ignore": ["label", "sc*"]}),
        ({"messages": TURNS, "label": None, "rejected": "", "chosen": [], "weight": float("nan")}, {}),
        ({"messages": TURNS, "id": 3, "model": "gpt", "source": "web"}, {}),
        (with_turn({"name": "Bob", "weight": 0}, A), {"ignore": ["name", "weight"]}),
        (with_turn({"tool_calls": None, "function_call": {"name": None, "arguments": None}, "loss": None}), {}),
        ({"messages": [{**Q, "loss": False}, {**A, "weight": 1}]}, {}),
        (with_turn({"reasoning_content": "hm"}), {"reasoning": "drop"}),
        ({"messages": json.dumps(TURNS)}, {}),
        ({"messages": TURNS, "conversations": [], "texts": None}, {}),
        ({"messages": [{"role": "Human", "content": "q"}, {"role": "BOT", "content": "a"}]}, {}),
        ({"conversation": [{"human": "q", "assistant": "a"}]}, {}),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a", "role": None}]}, {}),
        ({"messages": [{"role": "developer", "content": "S"}, *TURNS], "system": None}, {}),
        (with_part(type="text", text="q", image=None, index=None), {}),
        (with_part(type="image", image_url={"url": "a.png", "detail": "auto"}), {}),
    ],
)
def test_what_is_said_to_be_words_ignored_or_absent_is_left_out(row, options, tmp_path):
    sample = read(tmp_path, row, **options)[0]
    assert sample.messages[-1] == Message.of("assistant", "a")
    assert all(message.is_learned for message in sample.messages if message.role == "assistant")


@pytest.mark.parametrize(
    "switch", [{"weight": 0}, {"loss": False}, {"loss_mask": 0}, {"train": False}, {"weight": 0.0}]
)
def test_a_switch_turns_off_the_loss_of_its_turn_and_is_written_and_read_back(switch, tmp_path):
    row = {"messages": [Q, {**A, "content": "BAD", **switch}, Q, {**A, "content": "GOOD"}]}
    messages = read(tmp_path, row)[0].messages
    assert [m.text for m in messages if m.role == "assistant" and m.is_learned] == ["GOOD"]
    assert parse_messages([message.to_dict() for message in messages]) == messages


SUN = {"role": "tool", "content": "sun"}
CALLED = (Call("weather", '{"city": "X"}', "c1"),)


@pytest.mark.parametrize(
    ("row", "calls"),
    [
        (with_turn({"content": None, "tool_calls": [CALL]}, {**SUN, "tool_call_id": "c1"}, A), CALLED),
        (with_turn({"content": "", "tool_calls": [CALL]}, {**SUN, "name": "weather"}, A), CALLED),
        ({"messages": [Q, {"role": "assistant", "tool_calls": [CALL]}, SUN, A]}, CALLED),
        (
            with_turn({"function_call": {"name": "weather", "arguments": "{}"}}, {**SUN, "role": "function"}, A),
            (Call("weather"),),
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": "q"},
                    {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "X"}}'},
                    {"from": "observation", "value": "sun"},
                    {"from": "gpt", "value": "a"},
                ]
            },
            (Call("weather", '{"city": "X"}'),),
        ),
        (
            {
                "messages": [
                    Q,
                    {**A, "content": "let me see"},
                    *({"role": "tool_call", "content": json.dumps({"name": name})} for name in "fg"),
                    *({"role": "tool_response", "content": text} for text in ("1", "2")),
                    A,
                ]
            },
            (Call("f"), Call("g")),
        ),
    ],
)
def test_calls_of_tools_are_read_in_every_spelling_and_written_back(row, calls, tmp_path):
    tools = [{"name": "weather", "parameters": {"type": "object", "unit": None}}]
    messages = read(tmp_path, {**row, "tools": json.dumps(tools)})[0].messages
    assert messages[0].tools == (
        '{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}',
    )
    assert [message.calls for message in messages if message.calls] == [calls]
    assert messages[3].role == "tool"
    assert parse_messages([message.to_dict() for message in messages]) == messages


def test_answers_of_tools_come_in_the_order_of_the_calls_that_they_name(tmp_path):
    calls = [{**CALL, "id": name} for name in ("c1", "c2")]
    answers = [{"role": "tool", "tool_call_id": name, "content": name} for name in ("c2", "c1")]
    messages = read(tmp_path, with_turn({"tool_calls": calls}, *answers, A, Q, A))[0].messages
    assert [m.text for m in messages if m.role == "tool"] == ["c1", "c2"]


def test_reasoning_is_written_before_the_answer_where_that_is_asked_for(tmp_path):
    thought = {"reasoning_content": "\n2+2 is 4\n"}
    sample = read(tmp_path, with_turn({**thought, "content": "four"}), reasoning="think")[0]
    assert sample.messages[1].text == "<think>\n2+2 is 4\n</think>\n\nfour"
    sample = read(tmp_path, with_turn({**thought, "content": None, "tool_calls": [CALL]}), reasoning="think")[0]
    assert (sample.messages[1].text, sample.messages[1].calls) == ("<think>\n2+2 is 4\n</think>\n", CALLED)
    plain = read(tmp_path, with_turn({"content": "<think>x</think>y"}))[0]
    assert plain.messages[1].text == "<think>x</think>y"


def test_names_and_boxes_of_objects_stand_where_the_markup_does(tmp_path):
    turns = [{**Q, "content": "find the <ref-object>"}, {**A, "content": "<bbox> and <bbox>"}]
    objects = {"ref": ["sheep"], "bbox": [[90.9, 160.8, 135.0, 212.8], [3, 4]], "bbox_type": "real", "image_id": None}
    for given_as in (objects, json.dumps(objects)):
        sample = read(tmp_path, {"messages": turns, "objects": given_as})[0]
        assert said(sample) == [("user", "find the sheep"), ("assistant", "[(90.9,160.8),(135,212.8)] and [(3,4)]")]
    words = read(tmp_path, {"messages": turns}, text_tags=["<ref-object>", "<bbox>"])[0]
    assert said(words) == [("user", "find the <ref-object>"), ("assistant", "<bbox> and <bbox>")]


def test_parts_point_into_the_rows_images_by_index(tmp_path):
    PIL.Image.new("RGB", (8, 8), "blue").save(tmp_path / "b.png")
    parts = [{"type": "image", "index": at, "text": None} for at in (1, 0, 1)]
    row = {"messages": [{"role": "user", "content": parts}, A], "images": ["a.png", "b.png"]}
    assert [part.load().size for part in read(tmp_path, row)[0].messages[0].parts] == [(8, 8), (4, 4), (8, 8)]
    with pytest.raises(UserError, match="1 images have no placeholder"):
        read(tmp_path, {**row, "messages": [{"role": "user", "content": parts[:1]}, A]})[0]
    mixed = [{"role": "user", "content": [*parts[:1], {"type": "image"}]}, A]
    with pytest.raises(UserError, match="some images are named by index and some are not"):
        read(tmp_path, {**row, "messages": mixed})[0]


def test_a_system_text_and_its_turn_that_say_the_same_are_one(tmp_path):
    turns = [{"role": "system", "content": "S"}, *TURNS]
    assert said(read(tmp_path, {"messages": turns, "system": "S"})[0])[0] == ("system", "S")
    assert len(read(tmp_path, {"messages": turns, "system": "S"})[0].messages) == 3


def test_rows_of_parquet_keep_the_columns_that_nothing_reads_so_that_they_are_refused(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{"messages": TURNS, "label": None}, {"messages": TURNS, "label": False}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    source = open_source(MessagesConfig(reader="messages", path="rows.parquet"), tmp_path)
    assert said(source[0]) == [("user", "q"), ("assistant", "a")]
    with pytest.raises(UserError, match=r"rows.parquet: rows/1: 'label' mark"):
        source[1]


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("a\ud83d", "a\ufffd"),
        ("\ude00b", "\ufffdb"),
        ("\ud83d\ude00", "\U0001f600"),
        ("x\ud83dy\ud83d\ude00", "x\ufffdy\U0001f600"),
    ],
)
def test_a_lone_surrogate_is_the_replacement_character_wherever_text_enters(text, right, tmp_path):
    row = {"messages": [{**Q, "content": text}, {**A, "content": [{"type": "text", "text": text}]}], "system": text}
    for role, found in said(read(tmp_path, row)[0]):
        assert found == right, role
    call = {"name": text, "arguments": {text: text}}
    (called,) = read(tmp_path, with_turn({"tool_calls": [call]}))[0].messages[1].calls
    assert (called.name, json.loads(called.arguments)) == (right, {right: right})


KNOWN = {
    "row": {"messages", "conversations", "conversation", "texts", "query", "response", "history", *ORIGIN},
    "turn": {"role", "content"},
    "part": {"type", "text"},
}
values = st.sampled_from([0, 1, 0.5, True, False, "x", ["x"], {"a": 1}])
NAMES = (
    "weight loss loss_mask train name tool_calls tool_call_id function_call reasoning_content refusal audio images "
    "image label rejected chosen tools objects system detail cache_control index fps sampling_rate format min_pixels"
)
words = st.text(st.characters(codec="utf-8", categories=["L", "N"]), min_size=1, max_size=12)
keys = st.sampled_from(NAMES.split(" ")) | words


@given(level=st.sampled_from(["row", "turn", "part"]), key=keys, value=values)
def test_any_further_key_changes_the_sample_or_is_an_error_that_names_it(level, key, value):
    if key in KNOWN[level]:
        return
    parts = [{"type": "text", "text": "a", **({key: value} if level == "part" else {})}]
    turn = {"role": "assistant", "content": parts, **({key: value} if level == "turn" else {})}
    row = {"messages": [Q, turn], **({key: value} if level == "row" else {})}
    with tempfile.TemporaryDirectory() as folder:
        try:
            messages, told = read(Path(folder), row)[0].messages, ""
        except UserError as error:
            messages, told = (), str(error)
    if told:
        assert key in told.split("rows/0: ")[1]
        return
    plain = (Message.of("user", "q"), Message.of("assistant", "a"))
    is_on = level == "turn" and key in ("weight", "loss", "loss_mask", "train") and value in (1, True)
    assert is_on or messages != plain


def test_prompts_take_what_openai_clients_send_and_refuse_the_rest():
    url = {"url": "a.png", "detail": "auto"}
    raw = [
        {"role": "developer", "content": "S"},
        {"role": "user", "content": [{"type": "image_url", "image_url": url}]},
    ]
    system, user = parse_messages(raw)
    assert system == Message("system", (Text("S"),))
    assert isinstance(user.parts[0], Image)
    with pytest.raises(UserError, match=r"message 0: the user turn: nothing reads 'name'; .* Leave it out"):
        parse_messages([{"role": "user", "content": "q", "name": "Bob"}])


def test_a_faulty_first_row_is_told_when_it_is_read_and_not_before(tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"messages": [\n' + json.dumps({"messages": TURNS, "pics": []}) + "\n")
    for columns in ({}, {"images": "pics"}):
        source = open_source(MessagesConfig(reader="messages", path="bad.jsonl", columns=columns), tmp_path)
        assert len(source) == 2
        with pytest.raises(UserError, match="row 0 is not JSON"):
            source[0]
