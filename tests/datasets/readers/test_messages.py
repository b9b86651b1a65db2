import json
import os

import numpy as np
import PIL.Image
import pytest

from mmgpt.config import UserError, build
from mmgpt.datasets.media import Image, MediaError
from mmgpt.datasets.readers.messages import MessagesConfig
from mmgpt.datasets.readers.registry import open_source
from mmgpt.datasets.sample import Message, Text


@pytest.fixture
def open_rows(tmp_path):
    (tmp_path / "pictures").mkdir()
    for name, colour in (("red.png", "red"), ("blue.png", "blue")):
        PIL.Image.new("RGB", (4, 4), colour).save(tmp_path / "pictures" / name)

    def read(*rows, **options):
        lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
        (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        tree = {"reader": "messages", "path": "rows.jsonl", **options}
        return open_source(build(MessagesConfig, tree, "messages"), tmp_path)

    return read


def texts(source) -> list[str]:
    return [source[index].messages[0].text for index in range(len(source))]


def talk(asked, answer: str = "red") -> list[dict]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]


def colour(part) -> tuple[int, ...]:
    return tuple(np.asarray(part.load())[0, 0].tolist())


def test_rows_of_hugging_face_content_parts_are_read_with_media_beside_the_file(open_rows):
    parts = [{"type": "image", "path": "pictures/red.png"}, {"type": "text", "text": "What <image> is it?"}]
    source = open_rows({"messages": talk(parts)})
    picture, text = source[0].messages[0].parts
    assert colour(picture) == (255, 0, 0)
    assert text == Text("What <image> is it?")
    assert source[0].key == "rows/0"


def test_ms_swift_rows_put_their_images_where_the_tags_stand(open_rows):
    row = {
        "messages": talk("<image>First<image> second", "caf\u00e9"),
        "images": ["pictures/blue.png", "pictures/red.png"],
    }
    parts = open_rows(row, media_root=None)[0].messages[0].parts
    assert [p.text if isinstance(p, Text) else colour(p) for p in parts] == [
        (0, 0, 255),
        "First",
        (255, 0, 0),
        " second",
    ]
    rooted = open_rows({**row, "images": ["blue.png", "red.png"]}, media_root="pictures")[0].messages[0].parts
    assert colour(rooted[0]) == (0, 0, 255)


@pytest.mark.parametrize("images", [None, []])
def test_an_image_tag_in_a_row_without_images_is_plain_text_where_that_is_said(images, open_rows):
    row = {"messages": talk("write <image> in <audio> HTML")}
    source = open_rows(row if images is None else {**row, "images": images}, text_tags=["<image>", "<audio>"])
    assert source[0].messages[0].parts == (Text("write <image> in <audio> HTML"),)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("no tag", "rows/1: 2 images have no placeholder"),
        ("<image> one", "rows/1: 1 images have no placeholder"),
        ("<image><image><image>", "rows/1: more <image> tags than images"),
    ],
)
def test_tags_and_images_that_differ_in_number_are_refused_with_the_row(asked, told, open_rows):
    good = {"messages": talk("hello")}
    bad = {"messages": talk(asked), "images": ["pictures/red.png"] * 2}
    with pytest.raises(UserError, match=told):
        open_rows(good, bad)[1]


def test_media_paths_may_not_climb_out_of_the_media_folder(open_rows):
    for path in ("../a.png", "pictures/../../a.png"):
        source = open_rows({"messages": talk("<image>"), "images": [path]})
        with pytest.raises(UserError, match="leads out of the data root"):
            source[0]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("{not json", "row 1 is not JSON"),
        ("[1, 2]", "row 1 is .1, 2.; give objects"),
        ('{"text": "a"}', "row 1 has no messages"),
        ('{"messages": "a"}', "messages must be a list"),
        ('{"messages": [{"role": "robot", "content": ""}]}', "role 'robot' is not known"),
    ],
)
def test_a_row_that_is_no_conversation_is_refused_with_its_number(row, told, open_rows):
    source = open_rows({"messages": talk("a")}, row)
    with pytest.raises(UserError, match=told):
        source[1]


def test_blank_lines_are_no_rows_and_a_limit_keeps_the_first(open_rows):
    rows = [json.dumps({"messages": talk(str(number))}) for number in range(5)]
    source = open_rows(rows[0], "", rows[1], "  ", *rows[2:])
    assert texts(source) == ["0", "1", "2", "3", "4"]
    assert texts(open_rows(*rows, limit=2)) == ["0", "1"]
    assert isinstance(
        open_rows({"messages": talk("<image>"), "images": ["pictures/red.png"]})[0].messages[0].parts[0], Image
    )


def shown(sample) -> list[tuple[str, list]]:
    return [(m.role, [p.text if isinstance(p, Text) else colour(p) for p in m.parts]) for m in sample.messages]


RED, BLUE = (255, 0, 0), (0, 0, 255)
ASKED = "<image>\nWhat is it?"
LLAVA = [
    {
        "id": "1",
        "image": "red.png",
        "conversations": [{"from": "human", "value": ASKED}, {"from": "gpt", "value": "A cup."}],
    },
    {"id": "2", "conversations": [{"from": "system", "value": "Be kind."}, {"from": "human", "value": "<image>?"}]},
    {"id": "3", "image": ["red.png", "blue.png"], "conversations": [{"from": "human", "value": "<image> or <image>"}]},
]
LLAVA_SHOWN = [
    [("user", [RED, "\nWhat is it?"]), ("assistant", ["A cup."])],
    [("system", ["Be kind."]), ("user", ["<image>?"])],
    [("user", [RED, " or ", BLUE])],
]


@pytest.mark.parametrize("name", ["llava.json", "llava.jsonl", "llava.parquet"])
def test_llava_rows_are_read_from_json_json_lines_and_parquet(name, open_rows, tmp_path):
    open_rows({"messages": []})  # for its pictures
    if name.endswith(".parquet"):
        pyarrow = pytest.importorskip("pyarrow")
        rows = [{**row, "image": np.atleast_1d(row.get("image", [])).tolist()} for row in LLAVA]
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), tmp_path / name)
    else:
        text = json.dumps(LLAVA) if name.endswith("json") else "\n".join(map(json.dumps, LLAVA))
        (tmp_path / name).write_text(text)
    source = open_source(
        MessagesConfig(reader="llava", path=name, media_root="pictures", text_tags=["<image>"]), tmp_path
    )
    assert [shown(source[n]) for n in range(len(source))] == LLAVA_SHOWN
    assert source[1].key == "llava/1"


def test_sharegpt_rows_with_custom_tags_and_columns_as_llama_factory_names_them(open_rows):
    row = {
        "dialog": [{"who": "Q", "says": "<image>?"}, {"who": "A", "says": "red"}, {"who": "T", "says": "{}"}],
        "instruction": "Be brief.",
        "pics": ["pictures/red.png"],
    }
    tags = {"role_tag": "who", "content_tag": "says", "user_tag": "Q", "assistant_tag": "A", "observation_tag": "T"}
    columns = {"messages": "dialog", "system": "instruction", "images": "pics"}
    source = open_rows(row, tags=tags, columns=columns)
    talked = [("user", [RED, "?"]), ("assistant", ["red"]), ("tool", ["{}"])]
    assert shown(source[0]) == [("system", ["Be brief."]), *talked]


def test_older_ms_swift_rows_and_pretraining_rows_are_conversations(open_rows):
    old = {
        "query": "<image>?",
        "response": "red",
        "history": [["Hi", "Hello"]],
        "system": "S",
        "images": ["pictures/red.png"],
    }
    source = open_rows(old, {"response": "alone"}, {"messages": [{"role": "assistant", "content": "once"}]})
    turns = [("user", ["Hi"]), ("assistant", ["Hello"]), ("user", [RED, "?"]), ("assistant", ["red"])]
    assert shown(source[0]) == [("system", ["S"]), *turns]
    assert source[1].messages == (Message.of("assistant", "alone"),)
    assert source[2].messages == (Message.of("assistant", "once"),)


def test_sounds_and_videos_take_their_tags_and_other_placeholders_can_be_named(open_rows):
    row = {"messages": talk("<sound>a<audio>b<video>"), "sound": "a.wav", "audios": ["b.wav"], "video": "c.mp4"}
    kinds = [part.modality for part in open_rows(row)[0].messages[0].parts if not isinstance(part, Text)]
    assert kinds == ["audio", "audio", "video"]
    video = open_rows({"video": "c.mp4", "messages": talk("<image>\nWhat?")}, placeholders={"video": "<image>"})
    assert video[0].messages[0].parts[0].modality == "video"
    both = {"video": "c.mp4", "image": "pictures/red.png", "messages": talk("<image><image>")}
    with pytest.raises(UserError, match="rows/0: media of two kinds share a placeholder"):
        open_rows(both, placeholders={"video": "<image>"})[0]


def test_content_parts_that_hold_no_medium_take_the_next_of_the_row(open_rows):
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "or"}, {"type": "image"}]
    row = {"messages": talk(parts), "images": ["pictures/red.png", "pictures/blue.png"]}
    assert shown(open_rows(row)[0])[0] == ("user", [RED, "or", BLUE])
    assert shown(open_rows(row)[0])[0] == ("user", [RED, "or", BLUE])
    with pytest.raises(UserError, match="more <image> tags than images"):
        open_rows({**row, "images": ["pictures/red.png"]})[0]


def test_pictures_without_tags_come_first_where_that_is_asked_for(open_rows):
    texts = [{"user": "What?", "assistant": "red", "source": "x"}, {"user": "And?", "assistant": "blue"}]
    row = {"texts": texts, "images": ["pictures/red.png", "pictures/blue.png"]}
    talked = [("assistant", ["red"]), ("user", ["And?"]), ("assistant", ["blue"])]
    assert shown(open_rows(row, untagged="first")[0]) == [("user", [RED, BLUE, "What?"]), *talked]
    with pytest.raises(UserError, match="rows/0: 2 images have no placeholder"):
        open_rows(row)[0]
    half = {"messages": talk("<image>?"), "images": row["images"]}
    with pytest.raises(UserError, match="rows/0: 1 images have no placeholder"):
        open_rows(half, untagged="first")[0]
    with pytest.raises(UserError, match="rows/0: its media have no user turn"):
        open_rows({**half, "messages": [{"role": "assistant", "content": "a"}]}, untagged="first")[0]


def test_a_row_may_only_name_files_below_the_data_root(open_rows, tmp_path, tmp_path_factory):
    secret = tmp_path_factory.mktemp("elsewhere") / "secret.png"
    PIL.Image.new("RGB", (4, 4)).save(secret)
    os.symlink(secret, tmp_path / "pictures" / "link.png")
    os.symlink(secret.parent, tmp_path / "pictures" / "folder")
    inside = str(tmp_path / "pictures" / "red.png")
    assert shown(open_rows({"messages": talk("<image>"), "images": [inside]})[0])[0] == ("user", [RED])
    for path in (
        str(secret),
        "/etc/passwd",
        "../../etc/passwd",
        "rows.jsonl/../../x.png",
        "pictures/link.png",
        "pictures/folder/secret.png",
        "a\0b",
    ):
        part = [{"type": "image", "path": path}]
        for row in ({"messages": talk("<image>"), "images": [path]}, {"messages": talk(part)}):
            with pytest.raises(UserError, match=r"leads out of the data root|not a path"):
                open_rows(row)[0]
    with pytest.raises(UserError, match="leads out of the media folder"):
        open_rows({"messages": talk("<image>"), "images": ["../rows.jsonl"]}, media_root="pictures")[0]
    with pytest.raises(MediaError, match="7 is no image"):
        open_rows({"messages": talk("<image>"), "images": [7]})[0]
