"""Pictures: whatever their file's depth, colours and orientation, 8-bit RGB, upright, on white.

Shape letters: H W pixels.
"""

import io
import struct
import warnings
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageOps

from mmgpt.datasets.medium import LIMITS, Limits, Media, MediaError

# Others are left out: Pillow hands EPS files, which are programs, to Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO")


@dataclass(frozen=True, eq=False)
class Image(Media):
    """A picture: path, bytes, open file, base64, PIL image, or array (H, W), (H, W, 1 to 4 but 2) or channels first.

    An array is in 0-255; of uint16 in 0-65535; of bool black and white; of floats none of which is above 1, in 0-1.
    Where both ends could be channels, an array has them last, a torch tensor first. Of an animation the first frame
    counts.
    """

    modality: ClassVar[str] = "image"

    def load(self, limits: Limits = LIMITS) -> PIL.Image.Image:
        """Decode to an RGB picture, upright, transparency laid on white.

        Raises:
            MediaError: if there is no such file, it is no picture, it is truncated or larger than `limits`.
        """
        picture = self._open(limits)
        check_pixels(self.name(), picture.width, picture.height, limits)
        try:
            picture.load()
            is_upright = picture.getexif().get(PIL.ExifTags.Base.Orientation, 1) == 1
            return to_rgb(picture if is_upright else PIL.ImageOps.exif_transpose(picture))
        except DAMAGE as error:
            raise MediaError(f"{self.name()}: the picture is damaged ({error}); replace or remove it") from None

    def _open(self, limits: Limits) -> PIL.Image.Image:
        made = self.made
        if isinstance(made, PIL.Image.Image):
            return made
        payload = self.read(limits)
        return open_picture(self.name(), payload) if payload is not None else self._from_array()

    def _from_array(self) -> PIL.Image.Image:
        array = _channels_last(self.array(), prefers_first=hasattr(self.made, "detach"))
        highest = 65535 if array.dtype == np.uint16 else 255
        try:
            if array.dtype.kind == "f" and array.max() <= 1:
                array = np.round(array * 255)
            if not (array.min() >= 0 and array.max() <= highest):
                raise MediaError(
                    f"{self.name()}: values from {array.min()} to {array.max()}, which must lie in 0 to {highest}; "
                    "scale them"
                )
            return PIL.Image.fromarray(array if array.dtype in (np.uint16, np.bool_) else array.astype(np.uint8))
        except MediaError:
            raise
        except (ValueError, TypeError):
            raise MediaError(
                f"{self.name()}: shape {array.shape} of {array.dtype} is not a picture; give (H, W, 3) in 0-255"
            ) from None

    def encoded(self) -> tuple[str, bytes]:
        """A PNG of the decoded picture where it came as an object, else the bytes as they are."""
        payload = self.read()
        if payload is None:
            buffer = io.BytesIO()
            self.load().save(buffer, format="PNG")
            return "image/png", buffer.getvalue()
        return f"image/{(open_picture(self.name(), payload).format or 'PNG').lower()}", payload


def _channels_last(array: np.ndarray, prefers_first: bool) -> np.ndarray:
    """A picture as (H, W) or (H, W, C), whichever end its channels stand at."""
    if array.ndim != 3:
        return array
    is_first, is_last = (array.shape[end] in (1, 3, 4) for end in (0, 2))
    if is_first and (prefers_first or not is_last):
        array = np.moveaxis(array, 0, 2)
    return array[..., 0] if array.shape[2] == 1 else array


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
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)  # our own limit is the lower one
            return PIL.Image.open(io.BytesIO(payload), formats=formats)
    except PIL.Image.DecompressionBombError as error:
        raise MediaError(f"{name}: {error}; shrink it") from None
    except DAMAGE:
        raise MediaError(f"{name}: not a picture that can be read; give a PNG, JPEG or WebP file") from None


def check_pixels(name: str, width: int, height: int, limits: Limits) -> None:
    """Raise MediaError where a picture or frame is larger than `limits.pixels`."""
    if width * height > limits.pixels:
        raise MediaError(f"{name}: {width}x{height} pixels, limit {limits.pixels:,}; shrink it, or raise limits.pixels")


def to_rgb(picture: PIL.Image.Image) -> PIL.Image.Image:
    """A picture of any mode as 8-bit RGB, transparency laid on white.

    Raises:
        ValueError: if its numbers are on no scale that can be told.
    """
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        picture = _to_8_bits(picture)
    if picture.has_transparency_data:
        opaque = PIL.Image.new("RGBA", picture.size, "white")
        picture = PIL.Image.alpha_composite(opaque, picture.convert("RGBA"))
    return picture if picture.mode == "RGB" else picture.convert("RGB")  # which would copy it


def _to_8_bits(picture: PIL.Image.Image) -> PIL.Image.Image:
    """A grey picture of more than 8 bits, scaled: Pillow's own conversion would clip all above 255 to white."""
    grey_HW = np.asarray(picture, dtype=np.float32)
    lowest, highest = grey_HW.min(), grey_HW.max()
    top = 1.0 if picture.mode == "F" and highest <= 1 else 255.0 if picture.mode == "F" else 65535.0
    if not (lowest >= 0 and highest <= top):
        raise ValueError(f"grey values from {lowest:g} to {highest:g}, which should lie in 0 to {top:g}")
    return PIL.Image.fromarray(np.round(grey_HW * (255 / top)).astype(np.uint8))
