import base64

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmgpt.config import UserError
from mmgpt.datasets.media import Audio, Image, Video
from mmgpt.datasets.sample import Message, Sample, Text, join_turns, parse_messages

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
PNG = Image(PIXELS).encoded()[1]


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
