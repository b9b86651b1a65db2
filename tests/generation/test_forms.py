"""The same picture, sound or video in every form that a user may hold it in gives the same tokens."""

import base64
import io

import numpy as np
import PIL.Image
import pytest
import soundfile
import torch

import mmgpt
from mmgpt.config import UserError
from mmgpt.datasets.media import Audio, Image, MediaError, Video
from mmgpt.datasets.sample import Message
from mmgpt.generation.prompts import parse_prompt

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
SOUND = np.round(np.random.default_rng(1).uniform(-1, 1, 4000) * 2**14).astype(np.float32) / 2**15
RATE = 8000


def png() -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(PIXELS).save(buffer, "PNG")
    return buffer.getvalue()


def wav() -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, SOUND, RATE, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def encoded(payload: bytes) -> str:
    return base64.b64encode(payload).decode()


def picture_forms(path: str) -> list:
    tensor_CHW = torch.from_numpy(PIXELS).permute(2, 0, 1)
    url = f"data:image/png;base64,{encoded(png())}"
    objects = [
        path,
        png(),
        bytearray(png()),
        memoryview(png()),
        open(path, "rb"),  # noqa: SIM115
        io.BytesIO(png()),
        url,
        encoded(png()),
        PIL.Image.fromarray(PIXELS),
        PIXELS,
        PIXELS / 255,
        PIXELS.astype(np.int64),
        np.moveaxis(PIXELS, 2, 0),
        torch.from_numpy(PIXELS),
        tensor_CHW,
        tensor_CHW.double() / 255,
        (tensor_CHW / 255).requires_grad_(),
        lambda: PIXELS,
    ]
    return [
        *map(Image, objects),
        {"type": "image", "path": path},
        {"type": "image", "url": path},
        {"type": "image", "url": url},
        {"type": "image", "image": PIXELS},
        {"type": "image", "image": Image(path)},
        {"type": "image", "base64": encoded(png())},
        {"type": "image_url", "image_url": {"url": url, "detail": "auto"}},
        {"type": "image_url", "image_url": url},
        {"type": "image", "image": {"bytes": png(), "path": None}},
    ]


def sound_forms(path: str) -> list:
    url = f"data:audio/wav;base64,{encoded(wav())}"
    stereo_CS = np.stack([SOUND, SOUND])
    objects = [path, wav(), open(path, "rb"), io.BytesIO(wav()), url, encoded(wav())]  # noqa: SIM115
    arrays = [
        SOUND,
        SOUND.astype(np.float64),
        (SOUND * 2**15).astype(np.int16),
        stereo_CS,
        stereo_CS.T,
        torch.from_numpy(SOUND),
        torch.from_numpy(SOUND)[None],
        torch.from_numpy(stereo_CS).requires_grad_(),
    ]
    return [
        *map(Audio, objects),
        *(Audio(array, rate=RATE) for array in arrays),
        {"type": "audio", "path": path},
        {"type": "audio", "audio": SOUND, "sampling_rate": RATE},
        {"type": "audio", "audio": {"array": SOUND.tolist(), "sampling_rate": RATE}},
        {"type": "audio_url", "audio_url": {"url": url}},
        {"type": "audio", "audio_url": url},
        {"type": "input_audio", "input_audio": {"data": encoded(wav()), "format": "wav"}},
    ]


def video_forms(path: str, payload: bytes) -> list:
    url = f"data:video/mp4;base64,{encoded(payload)}"
    return [
        *map(Video, [path, payload, open(path, "rb"), io.BytesIO(payload), url, encoded(payload)]),
        {"type": "video", "path": path},
        {"type": "video", "video": payload},
        {"type": "video_url", "video_url": {"url": url}},
    ]


@pytest.fixture
def seeing_and_hearing(make_assistant):
    return make_assistant(audio={"kind": "linear"}, context=1000)


@pytest.mark.parametrize("kind", ["image", "audio", "video"])
def test_every_form_of_a_medium_gives_the_same_tokens_and_reply(kind, seeing_and_hearing, make_clip, tmp_path):
    payload = {"image": png, "audio": wav, "video": lambda: make_clip(2)}[kind]()
    path = str(tmp_path / "a.file")
    (tmp_path / "a.file").write_bytes(payload)
    forms = {
        "image": lambda: picture_forms(path),
        "audio": lambda: sound_forms(path),
        "video": lambda: video_forms(path, payload),
    }[kind]()
    prompts = [[{"role": "user", "content": [form, {"type": "text", "text": "What?"}]}] for form in forms]
    rendered = [seeing_and_hearing.renderer.prompt(parse_prompt(prompt)) for prompt in prompts]
    for form, one in zip(forms, rendered, strict=True):
        assert one.ids == rendered[0].ids, form
        assert len(one.media) == len(rendered[0].media)
        for medium, wanted in zip(one.media, rendered[0].media, strict=True):
            torch.testing.assert_close(
                medium.values, wanted.values, atol=0, rtol=0, msg=lambda told, form=form: f"{form}: {told}"
            )
    replies = seeing_and_hearing.chat(prompts, max_new_tokens=5)
    assert len({reply.text for reply in replies}) == 1
    seeing_and_hearing.chat(prompts[4], max_new_tokens=1)  # an open file is wound back, or was kept


def test_frames_with_their_rate_are_the_video_that_holds_them_and_go_on_as_one():
    frames_THWC = np.random.default_rng(3).integers(0, 256, (6, 8, 10, 3), dtype=np.uint8)
    forms = [
        frames_THWC,
        list(frames_THWC),
        [PIL.Image.fromarray(frame) for frame in frames_THWC],
        torch.from_numpy(frames_THWC).permute(0, 3, 1, 2) / 255,
    ]
    given = [Video(form, rate=2) for form in forms]
    spelt = [{"type": "video", "video": frames_THWC, "fps": 2.0}, given[0].to_part()]
    given += [message.parts[0] for message in parse_prompt([{"role": "user", "content": [one]} for one in spelt])]
    for video in given:
        film = video.load(rate=1)
        assert film.times == [0, 1, 2]
        assert np.array_equal(np.stack([np.asarray(frame) for frame in film.frames]), frames_THWC[::2])
        assert len(video.load(rate=1, most=2).frames) == 2


def test_an_array_with_channels_at_either_end_is_read_as_its_library_means_it():
    square = np.random.default_rng(2).integers(0, 256, (3, 5, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(Image(square).load()), square)
    assert np.array_equal(np.asarray(Image(torch.from_numpy(square)).load()), square.transpose(1, 2, 0))
    grey = np.asarray(Image(square[..., :1]).load())
    assert np.array_equal(grey, square[..., :1].repeat(3, axis=2))
    assert np.array_equal(np.asarray(Image(torch.from_numpy(square[:1, :, 0])).load()), square[:1, :, :1].repeat(3, 2))
    half = torch.rand(3, 8, 8, dtype=torch.bfloat16)
    assert np.array_equal(np.asarray(Image(half).load()), (half.float() * 255).round().byte().permute(1, 2, 0).numpy())


@pytest.mark.parametrize(
    ("part", "told"),
    [
        (Image(io.StringIO("text")), "gives str; open the file in binary mode, 'rb'"),
        (Image(torch.zeros(2, 8, 8)), "is not a picture"),
        (Image(np.full((4, 4, 3), 300)), "must lie in 0 to 255"),
        (Image("iVBOR" * 20), "image given as base64: not a picture that can be read"),
        (Image("not/there" * 3), "no such file"),
        (Audio(torch.zeros(100)), "an array does not tell its rate; write Audio"),
        (Video(np.zeros((8, 8, 3)), rate=1), "not a video; give a path, .* or frames with their rate"),
        (Video([], rate=1), "the video has no frames"),
        (Video(np.zeros((2, 8, 8, 3))), "frames do not tell their rate; write Video"),
    ],
)
def test_a_form_that_cannot_be_read_is_refused_with_the_remedy(part, told, seeing_and_hearing):
    with pytest.raises(MediaError, match=told):
        seeing_and_hearing.ask(part, "What?")


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ({"type": "image", "image": Audio(b"x")}, "a part of type image holds audio given as bytes, of kind audio"),
        ({"type": "audio", "audio": {"format": "wav"}}, "holds no audio; give it a url, path or data"),
    ],
)
def test_a_part_that_holds_another_kind_or_nothing_is_refused(part, told):
    with pytest.raises(UserError, match=told):
        parse_prompt([{"role": "user", "content": [part]}])


def test_a_long_base64_is_never_shown_whole_and_goes_on_as_a_data_url():
    picture = mmgpt.Image(encoded(png()))
    assert picture.name() == "image given as base64"
    (message,) = parse_prompt([Message.of("user", picture).to_dict()])
    assert np.array_equal(np.asarray(message.parts[0].load()), PIXELS)
