"""Videos in a prompt: which frames, their times, their sound, and the count of their tokens."""

import io

import numpy as np
import PIL.Image
import pytest
import torch

from mmgpt.checkpoints.save_load import load_bundle, save_bundle
from mmgpt.config import UserError, build
from mmgpt.datasets.media import Audio, Image, MediaError, Video
from mmgpt.datasets.sample import Message, Sample
from mmgpt.files import write_folder
from mmgpt.inputs.batch import collate
from mmgpt.inputs.rendered import IGNORED
from mmgpt.inputs.trimming import TooLong
from mmgpt.inputs.video import VideoConfig

LINEAR = {"kind": "linear"}


def with_video(bundle, **fields):
    """The same model with other options of videos."""
    config = bundle.model.config
    bundle.model.config = config.model_copy(update={"video": build(VideoConfig, fields, "video")})
    return bundle


@pytest.fixture
def both(make_bundle):
    return make_bundle(audio=LINEAR, context=2000)


def read(bundle, rendered) -> str:
    """The prompt in words, each medium as its kind."""
    said, at, media = "", 0, iter(rendered.media)
    while at < len(rendered.ids):
        if rendered.ids[at] in bundle.model.placeholder_ids.values():
            medium = next(media)
            said, at = f"{said}[{medium.modality}]", at + medium.num_tokens
        else:
            said, at = said + bundle.tokenizer.decode([rendered.ids[at]], keep_special=True), at + 1
    return said


def test_a_video_is_its_frames_each_after_its_time_and_then_its_sound(both, make_clip):
    video = Video(make_clip(3))
    rendered = both.renderer.prompt((Message.of("user", "See", video, "What?"),))
    assert read(both, rendered) == "See0:00 [image]0:01 [image]0:02 [image][audio]What?<|end|>"
    film = video.load(rate=1)
    told = []
    for second, frame in enumerate(film.frames):
        told += [f"0:0{second} ", Image(frame)]
    by_hand = both.renderer.prompt((Message.of("user", "See", *told, Audio(*film.sound), "What?"),))
    assert rendered.ids == by_hand.ids
    assert all(torch.equal(a.values, b.values) for a, b in zip(rendered.media, by_hand.media, strict=True))
    for modality, slot in both.model.placeholder_ids.items():
        assert rendered.ids.count(slot) == sum(m.num_tokens for m in rendered.media if m.modality == modality)
    with torch.no_grad():
        assert both.model.eval().hidden(collate([rendered])).isfinite().all()


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"rate": 0.5}, ["0:00 ", "0:02 "]),
        ({"frames": 3}, ["0:00 ", "0:02 ", "0:03 "]),  # the middles of three parts of four seconds: 0.7, 2, 3.3
        ({"frames": 1, "time": "{minutes:02}:{seconds:02}.{tenths}|"}, ["00:02.0|"]),
        ({"frames": 2, "time": ""}, ["", ""]),
        ({"rate": 2, "time": "<{seconds}.{tenths}>"}, [f"<{at // 2}.{5 * (at % 2)}>" for at in range(8)]),
    ],
)
def test_options_say_how_many_frames_and_how_their_times_are_told(fields, told, both, make_clip):
    bundle = with_video(both, sound=False, **fields)
    rendered = bundle.renderer.prompt((Message.of("user", Video(make_clip(4))),))
    assert read(bundle, rendered) == "".join(f"{time}[image]" for time in told) + "<|end|>"


def test_a_model_takes_of_a_video_what_it_has_an_encoder_for(make_bundle, make_clip):
    talk = (Message.of("user", Video(make_clip(2)), "What?"),)
    seeing, hearing = make_bundle(), make_bundle(image=None, audio=LINEAR)
    assert read(seeing, seeing.renderer.prompt(talk)) == "0:00 [image]0:01 [image]What?<|end|>"
    assert read(hearing, hearing.renderer.prompt(talk)) == "[audio]What?<|end|>"
    with pytest.raises(UserError, match="this model has no video encoder; it takes text: leave it out"):
        make_bundle(image=None).renderer.prompt(talk)
    with pytest.raises(MediaError, match=r"has no sound, and the model has no image encoder"):
        hearing.renderer.prompt((Message.of("user", Video(make_clip(2, sound=False)), "What?"),))
    with pytest.raises(MediaError, match=r"video\.sound is false; set it to true"):
        with_video(make_bundle(image=None, audio=LINEAR), sound=False).renderer.prompt(talk)


def test_a_sound_longer_than_its_encoder_takes_is_pieces_after_their_times(make_bundle, make_clip):
    bundle = make_bundle(audio=LINEAR, conformer={"max_seconds": 2}, context=2000)
    rendered = with_video(bundle, frames=1, time="<{seconds}.{tenths}>").renderer.prompt(
        (Message.of("user", Video(make_clip(5))),)
    )
    film = Video(make_clip(5)).load(count=1)
    thirds = [int(len(film.sound.samples) / 800 * at / 3) / 10 for at in (1, 2)]
    told = "".join(f"<{seconds}>[audio]" for seconds in (0.0, *thirds))
    assert read(bundle, rendered) == f"<2.5>[image]{told}<|end|>"
    lengths = [medium.values.shape[-1] for medium in rendered.media[1:]]
    assert max(lengths) - min(lengths) <= 1


def test_a_silent_video_is_its_frames_alone(both, make_clip):
    rendered = both.renderer.prompt((Message.of("user", Video(make_clip(1, sound=False))),))
    assert read(both, rendered) == "0:00 [image]<|end|>"


def test_a_video_is_decoded_once_however_many_turns_are_left_out(make_bundle, make_clip, monkeypatch):
    renderer = make_bundle(context=100).renderer
    decoded = []
    original = Video.load
    monkeypatch.setattr(Video, "load", lambda *args, **options: decoded.append(1) or original(*args, **options))
    turns = []
    for _ in range(4):
        turns += [Message.of("user", "1" * 40), Message.of("assistant", "2")]
    turns += [Message.of("user", Video(make_clip(3)), "What?"), Message.of("assistant", "a cat")]
    rendered = renderer.render(Sample(tuple(turns), key="long"))
    assert rendered.is_trimmed
    assert len(decoded) == 1


def test_a_video_is_never_cut(make_bundle, make_clip):
    renderer = make_bundle(context=32).renderer
    video = Video(make_clip(6), label="holiday.mp4")
    sample = Sample((Message.of("user", video, "What?"), Message.of("assistant", "a cat")), key="one")
    with pytest.raises(TooLong, match=r"one: .* tokens in one exchange alone"):
        renderer.render(sample)
    with pytest.raises(TooLong, match=r"heaviest media: holiday.mp4 24\); shorten it"):  # six frames of four tokens
        renderer.prompt(sample.messages[:1])


def test_times_and_frames_are_never_targets_and_the_reply_is(both, make_clip):
    sample = Sample((Message.of("user", Video(make_clip(2)), "What?"), Message.of("assistant", "a cat")), key="one")
    wanted = both.tokenizer.encode("a cat") + both.tokenizer.encode_markup("<|end|>")
    rendered = both.renderer.render(sample)
    assert tuple(label for label in rendered.labels if label != IGNORED) == wanted
    causal = both.renderer.render(sample, "causal")
    times = both.tokenizer.encode("0:00 ")
    assert causal.ids[: len(times)] == list(times)
    assert set(causal.labels[: len(times)]) == {IGNORED}


def test_the_frames_of_a_showing_are_augmented_alike(make_bundle):
    bundle = make_bundle(image={"augment": [{"name": "RandomHorizontalFlip"}]})
    ramp = PIL.Image.fromarray(np.tile(np.arange(16, dtype=np.uint8) * 15, (16, 1)))
    film = gif([ramp] * 8)
    sample = Sample((Message.of("user", Video(film)), Message.of("assistant", "a ramp")), key="ramp")
    seen = set()
    for draw in range(12):
        media = bundle.renderer.render(sample, sample_number=draw).media
        is_flipped = {medium.values[0, 0, 0].item() > 100 for medium in media}
        assert len(media) == 8
        assert len(is_flipped) == 1
        seen |= is_flipped
    assert seen == {True, False}


def gif(frames: list[PIL.Image.Image]) -> bytes:
    buffer = io.BytesIO()
    frames = [frame.copy() for frame in frames]
    for number, frame in enumerate(frames):
        frame.putpixel((8, 8), number)  # equal ones would be joined
    frames[0].save(buffer, "gif", save_all=True, append_images=frames[1:], duration=1000)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"time": "{hours}"}, r"time='{hours}' cannot be written .* use {minutes}"),
        ({"time": "{"}, "cannot be written"),
        ({"rate": 0}, "rate"),
        ({"most": 3}, "most is not a field of VideoConfig"),
    ],
)
def test_options_that_cannot_be_are_refused(fields, told):
    with pytest.raises(UserError, match=told):
        build(VideoConfig, fields, "video")


def test_the_options_are_saved_with_the_model(both, tmp_path):
    bundle = with_video(both, rate=0.25, frames=5)
    write_folder(tmp_path / "model", lambda draft: save_bundle(bundle, draft))
    assert load_bundle(tmp_path / "model").renderer.video.config == VideoConfig(rate=0.25, frames=5)
