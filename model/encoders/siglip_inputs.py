"""What a SigLIP looks at of pictures and videos, made on any CPU without torch: pixels resized as its processor does.

They stay uint8: scaling and normalising is the device's work, see `siglip_encoder.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image

from model.parts.encoder_kinds import SIGLIP2, VIDEO_FRAMES, read_encoder, read_processor
from pipelines.sample import Audio, Decoded, Image, Video

_BICUBIC, _BILINEAR = PIL.Image.Resampling.BICUBIC.value, PIL.Image.Resampling.BILINEAR.value
# How near to the largest number of patches that fits a picture is scaled; Siglip2's own.
_EPSILON = 1e-5

Size = tuple[int, int]  # height and width in pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelSettings:
    """How a SigLIP's processor makes pixels, read from the encoder's folder.

    `size` is None where pictures keep their proportions, as large as `max_num_patches` of `patch_size` allow.
    """

    size: Size | None
    resample: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    rescale_factor: float
    patch_size: int = 16
    max_num_patches: int = 256


def pixel_settings(name: str) -> PixelSettings:
    """The settings of a named encoder; raises OSError if its processor's file is missing."""
    kind, _ = read_encoder(name)
    values = read_processor(name, "image_processor")
    keeps_proportions = kind is SIGLIP2
    size = values.get("size") or {"height": 224, "width": 224}
    return PixelSettings(
        size=None if keeps_proportions else (size["height"], size["width"]),
        resample=values.get("resample", _BILINEAR if keeps_proportions else _BICUBIC),
        mean=tuple(values.get("image_mean", (0.5, 0.5, 0.5))),
        std=tuple(values.get("image_std", (0.5, 0.5, 0.5))),
        rescale_factor=values.get("rescale_factor", 1 / 255),
        patch_size=values.get("patch_size", 16),
        max_num_patches=values.get("max_num_patches", 256),
    )


class PixelInputs:
    """Makes what a SigLIP takes: uint8 (H, W, 3) of a picture, (8, H, W, 3) of a video."""

    def __init__(self, settings: PixelSettings) -> None:
        self._settings = settings

    def frame_places(self, num_frames: int, fps: float) -> list[int]:
        """Which frames of a video are all that is needed of it: the middles of 8 equal stretches."""
        return frame_places(num_frames)

    def of_frames(self, frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """These frames, each resized as a picture."""
        return np.stack([self._resized(frame) for frame in frames])

    def __call__(self, media: Sequence[Decoded]) -> list[npt.NDArray[Any]]:
        """One array a medium.

        Raises:
            ValueError: a video has no frames, or it is a sound.
        """
        return [self._one(medium) for medium in media]

    def _one(self, medium: Decoded) -> npt.NDArray[np.uint8]:
        match medium:
            case Image():
                return self._resized(medium.pixels)
            case Video():
                if not len(medium.frames):
                    raise ValueError("video: it has no frames; leave it out")
                return self.of_frames(medium.frames[frame_places(len(medium.frames))])
            case Audio():
                raise ValueError("audio: a SigLIP embeds pictures and videos; name an encoder of audio")

    def _resized(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        settings = self._settings
        height, width = settings.size or fitting_size(
            (pixels.shape[0], pixels.shape[1]), settings.patch_size, settings.max_num_patches
        )
        picture = PIL.Image.fromarray(pixels)
        return np.array(picture.resize((width, height), PIL.Image.Resampling(settings.resample)))


def frame_places(num_frames: int) -> list[int]:
    """The middles of 8 equal stretches of a video."""
    return [(2 * number + 1) * num_frames // (2 * VIDEO_FRAMES) for number in range(VIDEO_FRAMES)]


def fitting_size(size: Size, patch_size: int, max_num_patches: int) -> Size:
    """The largest size in whole patches, of a picture's own proportions, of at most `max_num_patches`."""

    def scaled(scale: float) -> Size:
        height, width = (max(patch_size, ceil(side * scale / patch_size) * patch_size) for side in size)
        return height, width

    return scaled(
        _largest(lambda scale: _num_patches(scaled(scale), patch_size) <= max_num_patches, _EPSILON / 10, 100.0)
    )


def _num_patches(size: Size, patch_size: int) -> int:
    return (size[0] // patch_size) * (size[1] // patch_size)


def _largest(fits: Callable[[float], bool], low: float, high: float) -> float:
    """The largest value that fits, to within `_EPSILON`."""
    while high - low >= _EPSILON:
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
