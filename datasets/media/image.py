"""Pictures: whatever their file's depth, colours and orientation, 8-bit RGB, upright, on white.

Shape letters: H W pixels, C channels.
"""

import io
import struct
import warnings
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import PIL.ExifTags
import PIL.Image

from mmgpt.datasets.media.formats import refusal
from mmgpt.datasets.media.levels import WORD, to_levels, white_of
from mmgpt.datasets.media.medium import LIMITS, Limits, Media, MediaError
from mmgpt.datasets.media.png import without_extras

# Others are left out: Pillow hands EPS files, which are programs, to Ghostscript. HEIF is that of pillow-heif.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO", "HEIF")
TURNS = {  # the EXIF orientation, and what puts a picture upright
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}
BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262  # tags of TIFF 6.0, section 8
WHITE_IS_ZERO = 0


@dataclass(frozen=True, eq=False)
class Image(Media):
    """A picture: path, bytes, open file, base64, PIL image, or array (H, W) or (H, W, 1 to 4), or channels first.

    Two channels are grey and alpha, four colours and alpha.

    uint8 holds 0-255, uint16 0-65535, bool black and white, floats 0-1, or 0-255 where one is 16 or above; other
    integers 0-255, or 0-65535 above that. What fits no scale or two is refused: negative or infinite numbers, 0 and 1
    in int64, 12 bits in uint16.

    Where both ends could be channels, an array has them last, a torch tensor first; a batch of one is its picture. Of
    an animation the first frame counts.
    """

    modality: ClassVar[str] = "image"

    def load(self, limits: Limits = LIMITS) -> PIL.Image.Image:
        """Decode to an RGB picture, upright, transparency laid on white.

        Raises:
            MediaError: if there is no such file, it is no picture, truncated, on no scale, or larger than `limits`.
        """
        picture = self.value
        if not isinstance(picture, PIL.Image.Image):
            payload = self.read(limits)
            if payload is None:
                pixels = self.pixels()
                check_pixels(self.name(), pixels.shape[1], pixels.shape[0], limits)
                return to_picture(pixels, white_of(self.name(), [pixels]))
            picture = open_picture(self.name(), payload)
        check_pixels(self.name(), picture.width, picture.height, limits)
        try:
            picture.load()
            return _upright(to_rgb(self.name(), picture), picture)
        except MediaError:
            raise
        except DAMAGE as error:
            raise MediaError(f"{self.name()}: the picture is damaged ({error}); replace or remove it") from None

    def pixels(self) -> np.ndarray:
        """The pixels (H, W) or (H, W, 2 to 4) of an array, on its own scale.

        Raises:
            MediaError: if its shape is not that of a picture.
        """
        array = self.array()
        shape = array.shape
        if array.ndim == 4 and shape[0] == 1:
            array = array[0]
        array = _channels_last(array, prefers_first=hasattr(self.value, "detach"))
        if array.size and (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (2, 3, 4))):
            return array
        told = {
            0: "give a path, bytes or an array of pixels",
            1: "give (H, W) or (H, W, 3); the bytes of a file go in as bytes",
            4: "give the pictures of a batch one by one, or Video(frames, rate=25)",
        }.get(len(shape), "give (H, W), (H, W, 3) or (H, W, 4)")
        kind = f"shape {shape} of {array.dtype}" if shape else f"{type(self.value).__name__}"
        told = told if array.size else "it holds no pixels"
        raise MediaError(f"{self.name()}: {kind} is not a picture; {told}")

    def numbers(self) -> np.ndarray | None:
        """The pixels whose scale their type and values alone tell; None of a file, or of a picture that states it."""
        if isinstance(self.value, PIL.Image.Image):
            return np.asarray(self.value) if _is_wide(self.value) and _stated_white(self.value) is None else None
        return None if self.is_encoded else self.pixels()

    def encoded(self) -> tuple[str, bytes]:
        """A PNG of the decoded picture where it came as an object, else the bytes as they are."""
        payload = self.read()
        if payload is None:
            buffer = io.BytesIO()
            self.load().save(buffer, format="PNG")
            return "image/png", buffer.getvalue()
        return f"image/{(open_picture(self.name(), payload).format or 'PNG').lower()}", payload


def to_picture(pixels: np.ndarray, white: float) -> PIL.Image.Image:
    """Pixels (H, W) or (H, W, 2 to 4) on a scale as an RGB picture, transparency laid on white."""
    return on_white(PIL.Image.fromarray(np.ascontiguousarray(to_levels(pixels, white))))


def _channels_last(array: np.ndarray, prefers_first: bool) -> np.ndarray:
    """A picture as (H, W) or (H, W, C), whichever end its channels stand at."""
    if array.ndim != 3:
        return array
    is_first, is_last = (array.shape[end] in (1, 3, 4) for end in (0, 2))
    if not (is_first or is_last):  # two are channels as PIL has them; (2, H, W) may as well be two pictures
        is_last = array.shape[2] == 2
    if is_first and (prefers_first or not is_last):
        array = np.moveaxis(array, 0, 2)
    return array[..., 0] if array.shape[2] == 1 else array


def _upright(rgb: PIL.Image.Image, picture: PIL.Image.Image) -> PIL.Image.Image:
    """Turn what a picture became as whoever took it held the camera; EXIF data that cannot be read tell nothing."""
    try:
        turn = TURNS.get(picture.getexif().get(PIL.ExifTags.Base.Orientation, 1))
    except DAMAGE:
        return rgb
    return rgb if turn is None else rgb.transpose(turn)


# what Pillow's parsers raise over damaged bytes
DAMAGE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    TypeError,
    IndexError,
    KeyError,
    OverflowError,
    struct.error,
    PIL.Image.DecompressionBombError,  # a later frame may be larger than the header says
)


def open_picture(name: str, payload: bytes, formats: tuple[str, ...] = FORMATS) -> PIL.Image.Image:
    """Read a picture's header; nothing is decoded yet.

    Raises:
        MediaError: if it is no picture of these formats, or its header states far too many pixels.
    """
    PIL.Image.init()
    known = tuple(format for format in formats if format in PIL.Image.OPEN)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)  # our own limit is the lower one
            return PIL.Image.open(io.BytesIO(without_extras(payload)), formats=known)
    except PIL.Image.DecompressionBombError as error:
        raise MediaError(f"{name}: {error}; shrink it") from None
    except DAMAGE as error:
        reason = "" if isinstance(error, PIL.UnidentifiedImageError) else str(error)
        raise MediaError(f"{name}: {refusal(payload, 'picture', 'PNG, JPEG or WebP', reason)}") from None


def check_pixels(name: str, width: int, height: int, limits: Limits) -> None:
    """Raise MediaError where a picture or frame has no pixels, or more than `limits.pixels`."""
    if not (width and height):
        raise MediaError(f"{name}: {width}x{height} pixels are no picture; replace or remove it")
    if width * height > limits.pixels:
        raise MediaError(f"{name}: {width}x{height} pixels, limit {limits.pixels:,}; shrink it, or raise limits.pixels")


def to_rgb(name: str, picture: PIL.Image.Image) -> PIL.Image.Image:
    """A picture of any mode as 8-bit RGB, transparency laid on white.

    Raises:
        MediaError: if its numbers are on no scale that can be told.
    """
    if _is_wide(picture):
        return _from_wide(name, picture)
    if picture.mode in ("La", "RGBa"):  # whose colours were multiplied by their alpha
        picture = picture.convert({"La": "LA", "RGBa": "RGBA"}[picture.mode])
    return on_white(picture)


def on_white(picture: PIL.Image.Image) -> PIL.Image.Image:
    """A picture of at most 8 bits as RGB, transparency laid on white."""
    if picture.has_transparency_data:
        opaque = PIL.Image.new("RGBA", picture.size, "white")
        picture = PIL.Image.alpha_composite(opaque, picture.convert("RGBA"))
    return picture if picture.mode == "RGB" else picture.convert("RGB")  # which would copy it


def _is_wide(picture: PIL.Image.Image) -> bool:
    return picture.mode in ("I", "F") or picture.mode.startswith("I;16")


def _from_wide(name: str, picture: PIL.Image.Image) -> PIL.Image.Image:
    """A grey picture of more than 8 bits, scaled: Pillow's own conversion would clip all above 255 to white."""
    grey_HW = np.asarray(picture)
    white = _stated_white(picture)
    levels_HW = to_levels(grey_HW, white_of(name, [grey_HW]) if white is None else white)
    if getattr(picture, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO and picture.mode.startswith("I;16"):
        levels_HW = 255 - levels_HW  # Pillow does so for 8 bits alone
    clear = picture.info.get("transparency")
    if isinstance(clear, int):
        levels_HW = np.where(grey_HW == clear, np.uint8(255), levels_HW)
    return PIL.Image.fromarray(levels_HW).convert("RGB")


def _stated_white(picture: PIL.Image.Image) -> float | None:
    """The number that is white by the rules of the file's format; None where only the numbers can tell."""
    if picture.format == "TIFF":
        bits = getattr(picture, "tag_v2", {}).get(BITS_PER_SAMPLE, (16,))[0]
        return float(2**bits - 1) if picture.mode.startswith("I;16") else None
    return None if picture.format is None or picture.mode == "F" else float(WORD)
