"""Pictures, sounds and videos, each from a file of its own; what a dataset or a model needs of them stands here."""

from mmgpt.datasets.media.audio import Audio
from mmgpt.datasets.media.image import Image
from mmgpt.datasets.media.medium import LIMITS, Limits, Media, MediaError, open_zip
from mmgpt.datasets.media.video import DecodedVideo, FrameSelection, Video
from mmgpt.datasets.media.waveform import Waveform

__all__ = [
    "LIMITS",
    "MEDIA",
    "Audio",
    "DecodedVideo",
    "FrameSelection",
    "Image",
    "Limits",
    "Media",
    "MediaError",
    "Video",
    "Waveform",
    "open_zip",
]

MEDIA: dict[str, type[Media]] = {"image": Image, "audio": Audio, "video": Video}
