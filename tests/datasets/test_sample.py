import base64
import io
import struct
import warnings
import zipfile
import zlib

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgpt.config import UserError
from mmgpt.datasets.sample import Audio, Image, MediaError, Message, Sample, Text, Video, join_turns, parse_messages


def encode(picture: PIL.Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=format, **options)
    return buffer.getvalue()


PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
PNG = encode(PIL.Image.fromarray(PIXELS))


def bomb(width: int, height: int) -> bytes:
    """A PNG that is a header with a huge size and one row of nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (PNG[: len(PNG) // 2], "damaged"),
        (PNG[:20], "not a picture"),
        (b"just some text", "not a picture"),
        (b"", "not a picture"),
        (b"\0" * 1000, "not a picture"),
        (bomb(20_000, 20_000), "shrink it"),
        (bomb(9_000, 9_000), r"9000x9000 pixels.* 64,000,000; shrink it"),
        (None, "no such file"),
    ],
    ids=["torn", "header", "text", "empty", "zeros", "bomb", "over-our-limit", "missing"],
)
def test_a_picture_that_cannot_be_used_is_refused_with_its_file_and_the_reason(content, reason, tmp_path):
    file = tmp_path / "holiday.png"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(MediaError, match=rf"holiday.png: .*{reason}"):
        Image(str(file)).load()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
@settings(max_examples=60)
@given(
    edits=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8)), max_size=4), keep=st.floats(0.05, 1)
)
def test_damage_of_any_kind_gives_a_picture_or_a_media_error_and_nothing_else(format, edits, keep):
    content = bytearray(encode(PIL.Image.fromarray(PIXELS), format))
    for share, piece in edits:
        at = int(share * len(content))
        content[at : at + len(piece)] = piece
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            assert Image(bytes(content[: int(keep * len(content))])).load().mode == "RGB"
        except MediaError as error:
            assert str(error).startswith("image given as bytes: ")  # noqa: PT017


def test_every_way_of_giving_a_picture_gives_the_same_pixels(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        archive.writestr("deep/a.png", PNG)
    url = "data:image/png;base64," + base64.b64encode(PNG).decode()
    for source in (
        str(tmp_path / "a.png"),
        tmp_path / "a.png",
        str(tmp_path / "some.zip" / "deep" / "a.png"),
        PNG,
        url,
        PIXELS,
        PIL.Image.fromarray(PIXELS),
    ):
        assert np.array_equal(np.asarray(Image(source).load()), PIXELS)


def test_a_picture_is_upright_rgb_with_transparency_on_white():
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # taken with the camera turned: to be rotated by 270 degrees
    turned = Image(encode(PIL.Image.fromarray(PIXELS), "PNG", exif=exif)).load()
    assert np.array_equal(np.asarray(turned), np.rot90(PIXELS, -1))
    clear = PIL.Image.new("RGBA", (2, 1), (200, 0, 0, 0))
    clear.putpixel((1, 0), (200, 0, 0, 255))
    assert np.asarray(Image(encode(clear)).load()).tolist() == [[[255, 255, 255], [200, 0, 0]]]
    grey = Image(np.full((2, 2), 7, np.uint8)).load()
    assert np.asarray(grey).tolist() == [[[7, 7, 7]] * 2] * 2


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("https://example.com/a.png", "does not fetch media from the network"),
        ("data:image/png;base64,@@@", "not valid base64"),
        ("data:image/png", "has no comma"),
        ("absent.zip/a.png", "no such file"),
        (".", "cannot be read"),
        (object(), "not a picture"),
        (np.zeros((2, 2, 7)), "not a picture"),
    ],
)
def test_a_source_that_leads_nowhere_is_refused_with_the_reason(source, reason):
    with pytest.raises(MediaError, match=reason):
        Image(source).load()


def test_a_zip_that_lacks_the_member_or_is_none_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        archive.writestr("a.png", PNG)
    (tmp_path / "torn.zip").write_bytes(b"PK nonsense")
    for name, reason in (("some.zip/b.png", "the zip holds no such member"), ("torn.zip/a.png", "cannot be read")):
        with pytest.raises(MediaError, match=rf"{name}: {reason}"):
            Image(str(tmp_path / name)).load()


def test_hugging_face_and_openai_spellings_become_the_same_messages():
    url = "data:image/png;base64," + base64.b64encode(PNG).decode()
    sound = base64.b64encode(b"RIFF").decode()
    spellings = [
        {"role": "user", "content": [{"type": "image", "url": url}, {"type": "text", "text": "What?"}]},
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}],
        },
        {"role": "user", "content": [{"type": "image", "image": url}, "What?"]},
    ]
    for (message,) in (parse_messages([raw]) for raw in spellings):
        picture, text = message.parts
        assert isinstance(picture, Image)
        assert np.array_equal(np.asarray(picture.load()), PIXELS)
        assert text == Text("What?")
    raw = [{"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}}, {"type": "video", "path": "v.mp4"}]
    audio, video = parse_messages([{"role": "user", "content": raw}])[0].parts
    assert isinstance(audio, Audio)
    assert audio.read() == b"RIFF"
    assert isinstance(video, Video)
    assert parse_messages([{"role": "system", "content": "plain"}]) == (Message.of("system", "plain"),)


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        ("hello", "messages must be a list of messages, not str"),
        ({"role": "user"}, "messages must be a list of messages, not dict"),
        (["hello"], "is not a message; it needs the keys role and content"),
        ([{"role": "usr", "content": ""}], r"role 'usr' is not known; did you mean user\?"),
        ([{"role": "user", "content": 3}], "content 3 is neither a string nor a list"),
        ([{"role": "user", "content": [{"type": "imag"}]}], r"type 'imag' is not known; did you mean image\?"),
        ([{"role": "user", "content": [{"type": "image"}]}], "holds no image; give it a path, url or image"),
        ([{"role": "user", "content": [3]}], "3 is not a content part"),
    ],
)
def test_a_message_that_is_none_is_refused_with_what_is_wrong(raw, told):
    with pytest.raises(UserError, match=told):
        parse_messages(raw)


@given(texts=st.lists(st.text(), min_size=1, max_size=3), role=st.sampled_from(["system", "user", "assistant", "tool"]))
def test_messages_written_as_dicts_are_read_back(texts, role):
    message = Message.of(role, *texts)
    assert parse_messages([message.to_dict()]) == (message,)


def test_media_written_as_dicts_hold_the_same_pixels():
    for source in (PNG, PIXELS, PIL.Image.fromarray(PIXELS)):
        ((part,),) = (m.parts for m in parse_messages([Message.of("user", Image(source)).to_dict()]))
        assert np.array_equal(np.asarray(part.load()), PIXELS)


def test_unbranching_joins_a_turn_that_a_branch_goes_on_with():
    picture = Image(PIXELS)
    context = (Message.of("system", "s"), Message.of("user", picture))
    branches = tuple((Message.of("user", q), Message.of("assistant", a)) for q, a in ("ab", "cd"))
    first, second = Sample(context, "source", "key", branches).unbranched()
    assert (first.key, second.key) == ("key#0", "key#1")
    assert second.messages == (context[0], Message.of("user", picture, "c"), Message.of("assistant", "d"))
    assert first.branches == ()
    assert join_turns(context, (Message.of("assistant", "d"),)) == (*context, Message.of("assistant", "d"))
    assert first.unbranched() == [first]
