"""Members of samples in shards: each is used, left out by name, or an error; what says nothing is missing."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tars_made import opened, picture, read, words, write_tar

from mmgpt.config import UserError
from mmgpt.datasets.media import Audio, Image, MediaError
from mmgpt.datasets.readers.registry import TableConfig, open_source
from mmgpt.datasets.readers.shards import ShardsConfig
from mmgpt.datasets.sample import Text
from mmgpt.datasets.shard_writer import Job, write_shards

pytestmark = pytest.mark.usefixtures("_own_ranges")

ARRAY = b'{"messages": [{"role": "user", "content": [{"type": "audio", "audio": {"array": [0.1]}}]}]}'
RED = ("1.png", picture())


def talk(*shown: str, **more) -> bytes:
    parts = [{"type": "image", "path": one} for one in shown]
    turns = [{"role": "user", "content": [*parts, {"type": "text", "text": "What?"}]}]
    return json.dumps({"messages": [*turns, {"role": "assistant", "content": "Red."}], **more}).encode()


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ([("2.txt", b"cat")], r"few/0 \(2\): the template shows \{image\}, and it holds none; its members: \.txt"),
        ([RED], r"few/0 \(1\): the template names \{txt\}, and it holds none"),
        ([RED, ("1.txt", b"")], r"\{txt\} says nothing"),
        ([RED, ("1.txt", b" \n\n")], r"\{txt\} says nothing"),
        ([RED, ("1.txt", b"\xef\xbb\xbf\n")], r"\{txt\} says nothing"),
        ([RED, ("1.txt", b"\xff\xfea\x00")], "not UTF-8"),
        ([("a.wav", b"RIFF"), ("b.txt", b"two halves")], r"nothing reads 'wav'"),
    ],
)
def test_a_sample_without_what_its_template_names_is_a_counted_fault_that_names_it(members, told, tmp_path):
    source = read(tmp_path, *members)
    with pytest.raises(UserError, match=told) as fault:
        source[0]
    assert isinstance(fault.value, MediaError) == ("nothing reads" not in told)


@pytest.mark.parametrize("held", ["null", "NaN", '""', '"  "'])
def test_a_caption_in_a_json_that_is_null_is_missing(held, tmp_path):
    source = read(tmp_path, RED, ("1.json", f'{{"caption": {held}}}'.encode()), answer="{caption}")
    with pytest.raises(MediaError, match=r"\{caption\} says nothing"):
        source[0]


@pytest.mark.parametrize(
    ("held", "caption"),
    [("3", "3"), ("3.0", "3"), ("0.25", "0.25"), ('"nan"', "nan"), ('"None"', "None"), ("0", "0"), ('" a "', " a ")],
)
def test_numbers_and_words_of_a_json_are_captions_as_they_are_written(held, caption, tmp_path):
    source = read(tmp_path, RED, ("1.json", f'{{"caption": {held}}}'.encode()), answer="{caption}")
    assert words(source) == [caption]


@pytest.mark.parametrize("held", ['["a", "b"]', '{"en": "a"}', "[]"])
def test_a_list_or_object_is_no_caption(held, tmp_path):
    source = read(tmp_path, RED, ("1.json", f'{{"caption": {held}}}'.encode()), answer="{caption}")
    with pytest.raises(UserError, match=r"\{caption\} is .*, not a text"):
        source[0]


@pytest.mark.parametrize(
    ("held", "caption"),
    [
        (b"a cat\n", "a cat"),
        (b"a cat\r\n", "a cat"),
        (b"\xef\xbb\xbfa cat", "a cat"),
        (b"a\ncat\n\n", "a\ncat\n"),
        ("caf\u00e9\u2028x".encode(), "caf\u00e9\u2028x"),
    ],
)
def test_a_text_member_is_read_without_a_mark_and_the_end_of_its_last_line(held, caption, tmp_path):
    assert words(read(tmp_path, RED, ("1.txt", held))) == [caption]


def test_a_json_with_a_byte_order_mark_is_read_and_a_doubled_key_is_not(tmp_path):
    assert words(read(tmp_path, RED, ("1.json", b'\xef\xbb\xbf{"c": "cat"}'), answer="{c}")) == ["cat"]
    with pytest.raises(MediaError, match="has the key 'c' twice"):
        read(tmp_path, RED, ("1.json", b'{"c": "cat", "c": "dog"}'), answer="{c}")[0]


@pytest.mark.parametrize(
    ("more", "ignore", "told"),
    [
        ([("1.txt", b"a"), ("1.cls", b"3")], [], r"nothing reads 'cls'.*ignore: \[cls\]"),
        ([("1.txt", b"a"), ("1.wav", b"x")], [], "nothing reads 'wav'"),
        ([("1.txt", b"a"), ("1", b"x")], [], "nothing reads ''"),
        ([("1.txt", b"a"), ("1.json", b'{"url": "u", "w": 3}')], [], r"'url', 'w'.*or for all .* ignore: \[json\]"),
        ([("1.txt", b"a"), ("1.json", b'{"url": "u", "w": 3}')], ["u*"], r"nothing reads 'w'"),
        ([("1.txt", b"a"), ("1.json", b'{"conversations": []}')], [], "nothing reads 'conversations'; known: messages"),
        ([("1.caption", b"a")], [], "nothing reads 'caption'"),
    ],
)  # fmt: skip
def test_members_and_keys_that_no_template_names_are_refused(more, ignore, told, tmp_path):
    with pytest.raises(UserError, match=told):
        read(tmp_path, RED, *more, ignore=ignore)[0]


@pytest.mark.parametrize("ignore", [["json", "cls"], ["*"], ["1.json", "c?s"], ["url", "w", "cls"]])
def test_what_ignore_names_is_left_out(ignore, tmp_path):
    more = [("1.txt", b"a"), ("1.json", b'{"url": "u", "w": 3}'), ("1.cls", b"3")]
    assert words(read(tmp_path, RED, *more, ignore=ignore)) == ["a"]


def test_all_else_may_be_left_out_and_the_json_still_be_read(tmp_path):
    more = [("1.txt", b"a"), ("1.json", b'{"caption": "b", "w": 3}'), ("1.cls", b"3")]
    assert words(read(tmp_path, RED, *more, ignore=["*"], answer="{caption}")) == ["b"]


def test_files_beside_the_samples_are_no_samples_where_ignore_names_them(tmp_path):
    members = [("LICENSE", b"x"), RED, ("1.txt", b"a"), ("stats.csv", b"1,2")]
    with pytest.raises(UserError, match=r"few/0 \(LICENSE\): nothing reads ''"):
        read(tmp_path, *members)[0]
    assert words(read(tmp_path, *members, ignore=["LICENSE", "stats.*"])) == ["a"]


def test_a_misspelt_member_in_a_template_is_named_with_the_nearest(tmp_path):
    with pytest.raises(UserError, match=r"'txt'; did you mean txxt\?"):
        read(tmp_path, RED, ("1.txt", b"a"), answer="{txxt}")[0]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"answer": "{image}"}, "what is learned is text"),
        ({"answer": " "}, "what is learned is text"),
        ({"answer": "{txt"}, "expected '}'"),
        ({"answer": "{txt!r}"}, "the name of a member or key alone"),
        ({"prompt": "{}"}, "the name of a member or key alone"),
        ({"prompt": "{score:.2f}"}, "the name of a member or key alone"),
    ],
)
def test_templates_that_cannot_be_filled_are_refused_with_the_config(options, told, tmp_path):
    with pytest.raises(ValueError, match=told):
        ShardsConfig(reader="shards", path="few.tar", **options)


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ([("1.0.png", picture()), ("1.1.png", b""), ("1.json", talk("0.png"))], "not show all members: .* '1.png'"),
        ([("1.0.png", picture()), ("1.json", talk())], "nothing reads '0.png'"),
        ([("1.0.png", picture()), ("1.json", talk("0.png")), ("1.txt", b"a")], "nothing reads 'txt'"),
        ([("1.0.png", picture()), ("1.json", talk("0.png", lang="en"))], "nothing reads 'lang'"),
        ([("1.0.png", picture()), ("1.json", talk("0.jpg"))], "'0.jpg' is no member of the sample; did you mean 0.png"),
        ([("1.0.png", picture()), ("1.json", talk("2.0.png"))], "'2.0.png' is no member"),
        ([("1.json", talk(branches={"a": 1}))], "branches are a list"),
        ([("1.json", talk(truths=[3]))], "truths are objects"),
        ([("1.json", b'{"messages": [{"role": "usr", "content": "a"}]}')], r"few/0 \(1\): message 0: role 'usr'"),
        ([("1.json", ARRAY)], "is no member"),
    ],
)  # fmt: skip
def test_conversations_show_all_their_members_and_nothing_else(members, told, tmp_path):
    with pytest.raises(UserError, match=told):
        read(tmp_path, *members)[0]


@pytest.mark.parametrize("path", ["0.png", "0.PNG", "a.0.png", "A.0.Png"])
def test_a_part_names_its_member_by_its_end_or_in_full(path, tmp_path):
    source = read(tmp_path, ("s/a.0.png", picture()), ("s/a.json", talk(path, key=None, source=None, branches=None)))
    assert (source[0].key, source[0].source) == ("few/0", "few")
    assert source[0].messages[0].parts[0].load().size == (4, 4)


def test_what_is_scored_and_the_classes_of_media_are_read_back_from_shards(tmp_path):
    (tmp_path / "1.png").write_bytes(picture())
    row = {"q": "What?", "a": "red", "all": ["red", "dark red"], "c": ["red", "blue"], "kind": "color", "f": "1.png"}
    (tmp_path / "rows.json").write_text(json.dumps([row]))
    told = {"answer": "{a}", "answers": "all", "choices": "c", "tags": ["kind"]}
    table = TableConfig(reader="table", path="rows.json", image="{f}", prompt="{image}{q}", **told)
    write_shards(Job(table, tmp_path, tmp_path / "out", max_bytes=100_000))
    before, after = open_source(table, tmp_path)[0], opened(tmp_path, "out")[0]
    assert before.truths
    assert before.truths == after.truths
    assert [turn.to_dict()["role"] for turn in after.turns] == [turn.to_dict()["role"] for turn in before.turns]


SOUND = b"".join((b"RIFF", (36 + 16).to_bytes(4, "little"), b"WAVEfmt ", (16).to_bytes(4, "little")))
SOUND += b"\x01\x00\x01\x00\x40\x1f\x00\x00\x80\x3e\x00\x00\x02\x00\x10\x00data\x10\x00\x00\x00" + bytes(range(16))
CONTENT = {
    "png": picture(),
    "JPG": picture(kind="JPEG"),
    "wav": SOUND,
    "txt": b"words",
    "json": b'{"url": "u"}',
    "cls": b"7",
}
MEMBERS = st.tuples(
    st.sampled_from(["", "./", "a/"]), st.sampled_from(["1", "2", "x y"]), st.sampled_from(sorted(CONTENT))
)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    members=st.lists(MEMBERS, min_size=1, max_size=8),
    prompt=st.sampled_from(["{image}", "{image}{audio}", "{cls}", "", "{image}{url}"]),
    ignore=st.lists(st.sampled_from(["json", "cls", "*"]), max_size=2),
)
def test_members_in_any_order_are_read_back_or_refused_and_never_dropped(members, prompt, ignore, tmp_path):
    """Each member that is not ignored is in one sample's turns, or its sample, or the tar, is an error."""
    write_tar(tmp_path / "few.tar", *((f"{folder}{key}.{ext}", CONTENT[ext]) for folder, key, ext in members))
    try:
        source = opened(tmp_path, prompt=prompt, answer="{txt}", ignore=ignore)
        samples = [source[number] for number in range(len(source))]
    except UserError:
        return
    used = {"image": ("png", "JPG"), "audio": ("wav",), "video": ()}
    seen = [
        part.modality if not isinstance(part, Text) else part.text
        for one in samples
        for turn in one.turns
        for part in turn.parts
    ]
    for kind, exts in used.items():
        if f"{{{kind}}}" in prompt or not ignore:
            assert seen.count(kind) == sum(ext in exts for _, _, ext in members)
    assert seen.count("words") == sum(ext == "txt" for _, _, ext in members) == len(samples)
    for field, word, end in (("{cls}", "7", "cls"), ("{url}", "u", "json")):
        held = sum(ext == end for _, _, ext in members)
        assert seen.count(word) == (held if field in prompt else 0)
        assert field in prompt or not held or {end, "*"} & set(ignore)
    shown = [part for one in samples for turn in one.turns for part in turn.parts if isinstance(part, Image | Audio)]
    assert all(np.asarray(one.load() if isinstance(one, Image) else one.load().samples).size for one in shown)


@pytest.mark.parametrize("tag", ["<image>", "<audio>", "<sound>", "<video>"])
def test_a_tag_in_the_words_of_a_json_without_its_medium_is_refused_but_where_it_is_words(tag, tmp_path):
    turns = [{"role": "user", "content": f"{tag}What is it?"}, {"role": "assistant", "content": "Red."}]
    members = [("1.json", json.dumps({"messages": turns}).encode())]
    with pytest.raises(UserError, match=rf"\(1\): a turn says {tag} and shows no .*text_tags: \['{tag}'\]"):
        words(read(tmp_path, *members))
    assert words(read(tmp_path, *members, text_tags=[tag])) == ["Red."]
    branched = {"messages": turns[1:], "branches": [turns]}
    with pytest.raises(UserError, match=f"a turn says {tag}"):
        words(read(tmp_path, ("1.json", json.dumps(branched).encode())))
    written = [("1.json", json.dumps({"messages": turns, "key": "row 1", "source": "s"}).encode())]
    assert words(read(tmp_path, *written)) == ["Red."]
