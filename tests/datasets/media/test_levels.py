"""Pictures as numbers: of any type, layout and mode they give the right level, or an error that says what to write."""

import warnings

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from mmgpt.datasets.media import Image, MediaError, Video

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
PIXELS[0, 0] = 255, 255, 255
GREY = PIXELS[..., 0]


def levels(source: object) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        return np.asarray(Image(source).load()).astype(int)


def as_rgb(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(PIL.Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")).astype(int)


SCALED = {  # a type, and an 8-bit picture as it holds one
    "uint8": lambda levels: levels,
    "uint16": lambda levels: levels.astype(np.uint16) * 257,
    ">u2": lambda levels: (levels.astype(np.uint16) * 257).astype(">u2"),
    "int16": lambda levels: levels.astype(np.int16),
    "int32": lambda levels: levels.astype(np.int32),
    "int32 of 16 bits": lambda levels: levels.astype(np.int32) * 257,
    "uint32": lambda levels: levels.astype(np.uint32),
    "int64": lambda levels: levels.astype(np.int64),
    "uint64": lambda levels: levels.astype(np.uint64),
    "float16": lambda levels: (levels / 255).astype(np.float16),
    "float32": lambda levels: (levels / 255).astype(np.float32),
    ">f4": lambda levels: (levels / 255).astype(">f4"),
    "float64": lambda levels: levels / 255,
    "float32 in 0-255": lambda levels: levels.astype(np.float32),
    "float64 in 0-255": lambda levels: levels.astype(np.float64),
    "bfloat16": lambda levels: torch.from_numpy(levels / 255).bfloat16(),
    "bfloat16 with a gradient": lambda levels: torch.from_numpy(levels / 255).bfloat16().requires_grad_(),
    "torch uint16": lambda levels: torch.from_numpy(levels.astype(np.int32) * 257).to(torch.uint16),
}
LAYOUTS = {
    "plain": lambda array: array,
    "batch of one": lambda array: array[None],
    "turned": lambda array: array.flip(0, 1).flip(0, 1) if hasattr(array, "flip") else array[::-1, ::-1][::-1, ::-1],
    "copied in columns": lambda array: array if hasattr(array, "detach") else np.asfortranarray(array),
}


@settings(deadline=None, max_examples=150)
@given(
    picture=arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, min_side=5, max_side=9)),
    colours=st.sampled_from([None, 3]),
    kind=st.sampled_from(list(SCALED)),
    layout=st.sampled_from(list(LAYOUTS)),
    is_first=st.booleans(),
)
def test_an_8_bit_picture_in_any_type_and_layout_is_itself(picture, colours, kind, layout, is_first):
    if colours:
        picture = np.stack([picture, picture[::-1], 255 - picture], axis=0 if is_first else 2)
    brightest = int(picture.max())
    assume(brightest == 0 or brightest > 16)  # what is darker is refused where its type has several scales
    given_array = LAYOUTS["plain" if layout == "batch of one" and not colours else layout](SCALED[kind](picture))
    expected = as_rgb(np.moveaxis(picture, 0, 2) if colours and is_first else picture)
    assert np.abs(levels(given_array) - expected).max() <= 1


@pytest.mark.parametrize("kind", SCALED)
def test_every_type_with_its_scale(kind):
    assert np.abs(levels(SCALED[kind](PIXELS)) - PIXELS).max() <= 1


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (PIXELS.tolist(), PIXELS),
        (tuple(map(tuple, GREY.tolist())), GREY),
        (GREY[..., None], GREY),
        (GREY[None], GREY),
        (PIXELS[None], PIXELS),
        (torch.from_numpy(PIXELS.transpose(2, 0, 1).copy())[None], PIXELS),
        (PIXELS.transpose(2, 0, 1), PIXELS),
        (PIXELS[::-1, ::-1], PIXELS[::-1, ::-1]),
        (PIXELS[::2, ::3], PIXELS[::2, ::3]),
        (GREY > 100, (GREY > 100).astype(np.uint8) * 255),
        (PIXELS > 100, (PIXELS > 100).astype(np.uint8) * 255),
        (np.zeros((4, 5)), np.zeros((4, 5), np.uint8)),
        (np.zeros((4, 5), np.int64), np.zeros((4, 5), np.uint8)),
        (np.zeros((4, 5), np.uint16), np.zeros((4, 5), np.uint8)),
        (np.ones((4, 5)), np.full((4, 5), 255, np.uint8)),
        ((GREY > 100).astype(float), (GREY > 100).astype(np.uint8) * 255),
        ((GREY > 100).astype(np.uint8), (GREY > 100).astype(np.uint8)),  # a level of 1: bytes have one scale
        (np.float32(1.0000002) * (PIXELS / 255).astype(np.float32), PIXELS),
        (np.dstack([PIXELS, np.full_like(GREY, 255)]), PIXELS),
        (np.dstack([PIXELS / 255, np.ones(GREY.shape)]), PIXELS),
        (np.dstack([PIXELS, np.zeros_like(GREY)]), np.full_like(PIXELS, 255)),
        (np.dstack([PIXELS.astype(np.uint16) * 257, np.full(GREY.shape, 65535, np.uint16)]), PIXELS),
    ],
)
def test_arrays_lists_and_tensors_in_every_layout(array, expected):
    assert np.abs(levels(array) - as_rgb(expected)).max() <= 1


def test_what_resampling_leaves_over_1_is_clipped():
    edge = PIL.Image.fromarray((np.add.outer(np.arange(64) > 31, np.arange(64) > 31) > 0).astype(np.float32))
    resampled = np.asarray(edge.resize((200, 200), PIL.Image.Resampling.LANCZOS))
    assert resampled.max() > 1.1
    assert np.array_equal(levels(resampled.clip(0)), levels(resampled.clip(0, 1)))


UNTOLD = {
    "1.3": (1.3 * PIXELS / 255, "values up to 1.3: over 1.25"),
    "5": (PIXELS / 51, "values up to 5: over 1.25, .*; divide by what white is, and clip to 0 to 1"),
    "over 255": (PIXELS * 4.0, "values from 0 to 1020, which must lie in 0 to 1 or 0 to 255; scale them"),
    "normalised": (PIXELS / 127.5 - 1, r"values from -1 to 1, which must lie .* undo that: x \* std \+ mean"),
    "below 0": (PIXELS / 255 - 0.05, "values from -0.05 to 0.95"),
    "ImageNet": ((PIXELS / 255 - 0.45) / 0.225, "undo that"),
    "a mask of int64": ((GREY > 100).astype(int), "0 and 1 alone, .*; give a mask as bool, or times 255"),
    "a mask in a list": ([[0, 1], [1, 0]], "give a mask as bool, or times 255"),
    "bytes in uint16": (PIXELS.astype(np.uint16), "uint16 values up to 255, too dark .*8-bit levels as uint8"),
    "10 bits": (PIXELS.astype(np.uint16) * 4, r"uint16 values up to 1020, too dark .* / 1023 \(10 bits\)"),
    "12 bits": (PIXELS.astype(np.uint16) * 16, r"uint16 values up to 4080, too dark .* / 4095 \(12\)"),
    "12 bits in int32": (PIXELS.astype(np.int32) * 16, "int32 values up to 4080, too dark"),
    "int8": (PIXELS.astype(np.int8), "int8 is no type of pixels; give uint8"),
    "negative": (PIXELS.astype(np.int32) - 3, "int32 values from -3 to 252, which must lie in 0 to 255"),
    "over 16 bits": (PIXELS.astype(np.int64) * 1000, "which must lie in 0 to 65535"),
    "int16 of 15 bits": (PIXELS.astype(np.int16) * 128, "which must lie in 0 to 255"),
    "NaN": (np.where(PIXELS > 9, PIXELS / 255, np.nan), r"[\d,]+ of 1,800 values are not finite"),
    "inf": (np.where(PIXELS > 9, PIXELS / 255, np.inf), r"[\d,]+ of 1,800 values are not finite"),
    "alpha in 0-1": (
        np.dstack([PIXELS.astype(float), np.ones(GREY.shape)]),
        "its alpha channel reaches 1, its",
    ),
    "alpha in 0-255": (np.dstack([PIXELS / 255, np.full(GREY.shape, 255.0)]), "give all channels one scale"),
    "a mask for alpha": (np.dstack([PIXELS, (GREY > 9).astype(np.uint8)]), "its alpha channel reaches 1"),
    "complex": (PIXELS.astype(complex), "complex128 is no type of pixels"),
    "objects": (PIXELS.astype(object), "object is no type of pixels"),
    "strings": (PIXELS.astype(str), "is no type of pixels"),
    "times": (PIXELS.astype("datetime64[s]"), "is no type of pixels"),
    "ragged": ([[1], [1, 2]], "cannot be read as an array .*give an array of numbers"),
    "seven channels": (np.zeros((5, 5, 7)), r"shape \(5, 5, 7\) of float64 is not a picture"),
    "a batch": (np.stack([PIXELS, PIXELS]), "not a picture; give the pictures of a batch one by one, or Video"),
    "5 axes": (np.zeros((1, 1, 4, 4, 3)), "not a picture"),
    "no width": (np.zeros((5, 0)), "not a picture; it holds no pixels"),
    "no height": (np.zeros((0, 5, 3)), "not a picture; it holds no pixels"),
    "one axis": (np.arange(9), r"shape \(9,\) of int64 is not a picture"),
    "one number": (np.array(3.0), "not a picture"),
    "a file's bytes": (
        np.frombuffer(b"\x89PNG\r\n\x1a\n" + bytes(99), np.uint8),
        "bytes of a PNG picture in an array",
    ),
    "a sparse tensor": (torch.eye(3).to_sparse(), "cannot be read as an array"),
    "no data": (torch.empty(3, 4, 4, device="meta"), "cannot be read as an array"),
    "a dict": ({"bytes": b""}, "dict is not a picture"),
}


@pytest.mark.parametrize(("array", "told"), UNTOLD.values(), ids=UNTOLD)
def test_numbers_on_no_scale_or_on_two_and_shapes_of_no_picture_are_refused(array, told):
    with pytest.raises(MediaError, match=rf"^image given as \w+: .*{told}"):
        levels(array)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "RGBX", "I", "F", "La", "PA", "RGBa", "CMYK"])
def test_pil_pictures_of_every_mode(mode):
    through = {"La": "LA", "PA": "P", "RGBa": "RGBA"}.get(mode)
    is_grey = mode in ("L", "LA", "P", "I", "F", "La", "PA")
    picture = PIL.Image.fromarray(GREY if is_grey else PIXELS)
    picture = (picture.convert(through) if through else picture).convert(mode)
    assert np.abs(levels(picture) - as_rgb(GREY if is_grey else PIXELS)).max() <= 1


@pytest.mark.parametrize("mode", ["YCbCr", "LAB", "HSV", "1"])
def test_pil_pictures_of_other_colour_spaces_are_those_of_pillow(mode):
    picture = PIL.Image.fromarray(PIXELS).convert(mode)
    assert np.array_equal(levels(picture), np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L", "I;16N"])
def test_pil_pictures_of_16_bits(mode):
    order = ">u2" if mode == "I;16B" else "<u2"
    wide = PIL.Image.frombytes(mode, (30, 20), (GREY.astype(order) * 257).tobytes())
    assert np.abs(levels(wide) - as_rgb(GREY)).max() <= 1
    dark = PIL.Image.frombytes(mode, (30, 20), GREY.astype(order).tobytes())
    with pytest.raises(MediaError, match="too dark to be sure that 65535 is white"):
        levels(dark)


def test_translucent_pil_pictures_lie_on_white():
    for mode, through in (("LA", "LA"), ("La", "LA"), ("RGBA", "RGBA"), ("RGBa", "RGBA")):
        clear = PIL.Image.new(through, (2, 2), (0, 0) if through == "LA" else (0, 0, 0, 0)).convert(mode)
        assert (levels(clear) == 255).all()


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_a_picture_without_pixels_is_refused(size):
    with pytest.raises(MediaError, match=rf"{size[0]}x{size[1]} pixels are no picture"):
        levels(PIL.Image.new("RGB", size))


@pytest.mark.parametrize(
    "frames",
    [
        PIXELS[None] * np.array([0, 1, 1, 2])[:, None, None, None] / np.array(2.0),  # floats in 0-255, the first black
        [PIXELS * 0.001, PIXELS * 0.5, PIXELS * 0.5, PIXELS * 1.0],
        [(PIXELS // 64).astype(np.uint16), *[PIXELS.astype(np.uint16) * 257] * 3],
        [torch.from_numpy(PIXELS * 0.002), *[torch.from_numpy(PIXELS / 2)] * 2, torch.from_numpy(PIXELS * 1.0)],
    ],
)
def test_the_frames_of_a_video_are_on_one_scale(frames):
    shown = [np.asarray(frame).mean() for frame in Video(frames, rate=1).load(rate=1).frames]
    assert shown[0] < 2
    assert shown[-1] == pytest.approx(PIXELS.mean(), abs=1)


@pytest.mark.parametrize(
    ("frames", "rate", "told"),
    [
        ([PIXELS], "25", "rate='25' is no number of frames a second; write Video"),
        ([PIXELS], 0, "rate=0 is no number"),
        ([PIXELS], -1.0, "rate=-1.0 is no number"),
        ([PIXELS], float("nan"), "rate=nan is no number"),
        ([PIXELS], float("inf"), "rate=inf is no number"),
        ([PIXELS], True, "rate=True is no number"),
        ([PIXELS], None, "frames do not tell their rate"),
        ([], 25, "the video has no frames"),
        (PIXELS, 25, r"not a video; .*an array \(frames, H, W, 3\)"),
        ([PIXELS - 0.5 * 255], 25, "which must lie in"),
        ([PIXELS, "absent.png"], 25, "absent.png|frame 1"),
        (np.zeros((3, 5, 5, 7)), 25, "frame 0: shape"),
        (5, 25, "5 is no video"),
        (None, None, "None is no video"),
    ],
)
def test_frames_that_cannot_be_used_are_refused(frames, rate, told):
    with pytest.raises(MediaError, match=told):
        Video(frames, rate=rate).load(rate=25)


@pytest.mark.parametrize("scale", [1, 255])
def test_two_channels_are_grey_and_alpha(scale):
    grey_HW, alpha_HW = np.mgrid[0:6, 0:8] * (255 / np.array([5, 7]))[:, None, None]
    levels_HWC = np.stack([grey_HW, alpha_HW], axis=-1).round().astype(np.uint8)
    white = PIL.Image.new("RGBA", (8, 6), "white")
    right = np.asarray(PIL.Image.alpha_composite(white, PIL.Image.fromarray(levels_HWC).convert("RGBA")))[..., :3]
    pixels_HWC = levels_HWC if scale == 255 else levels_HWC / 255
    for pixels in (pixels_HWC, torch.from_numpy(pixels_HWC)):
        assert np.array_equal(np.asarray(Image(pixels).load()), right)
    assert np.array_equal(np.asarray(Video(pixels_HWC[None], rate=1).load().frames[0]), right)
    with pytest.raises(MediaError, match="its alpha channel reaches 1"):
        Image(np.stack([levels_HWC[..., 0], np.ones((6, 8), np.uint8)], axis=-1)).load()


def test_a_rate_of_frames_is_a_number_of_any_type():
    for rate in (np.array(2.0), torch.tensor(2), np.float32(2)):
        assert Video(np.zeros((4, 8, 8, 3)), rate=rate).load(rate=1).times == [0, 1]
    with pytest.raises(MediaError, match="no number of frames"):
        Video(np.zeros((4, 8, 8, 3)), rate=np.array([2.0]))
    with pytest.raises(MediaError, match="s of video, limit"):
        Video(np.zeros((4, 8, 8, 3)), rate=1e-9).load()
