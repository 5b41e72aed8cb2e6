"""What ImageBind looks at of a medium, made on any CPU, without torch but for sounds, in as few bytes as are exact.

Pictures and frames stay uint8: cropping frames and normalising is the device's work, see `imagebind_encoder.py`.
"""

import json
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image

from model.encoders.clips import CLIP_SECONDS, clip_starts
from model.parts.encoder_kinds import IMAGEBIND_CLIPS
from pipelines.sample import Audio, Decoded, Image, Video

VIDEO_CLIPS = IMAGEBIND_CLIPS
HUGE_SIZE = 224  # of the released model, whose file does not say it

Box = tuple[float, float, float, float]


class MediaInputs:
    """Makes what an ImageBind takes of media: see `image_crop`, `video_frames` and `mel.audio_inputs`."""

    def __init__(self, size: int) -> None:
        self._size = size

    def frame_places(self, num_frames: int, fps: float) -> list[int]:
        """Which frames of a video are all that is needed of it."""
        return frame_places(num_frames, fps)

    def of_frames(self, frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """These frames as they are: cropping them is the device's work."""
        return frames

    def __call__(self, media: Sequence[Decoded]) -> list[npt.NDArray[Any]]:
        """One array a medium, whose type and number of axes tell what it is of.

        Raises:
            ValueError: a video has no frames, or a sound no samples.
        """
        return [self._one(medium) for medium in media]

    def _one(self, medium: Decoded) -> npt.NDArray[Any]:
        match medium:
            case Image():
                return image_crop(medium, self._size)
            case Video():
                return video_frames(medium)
            case Audio():
                from model.encoders.mel import audio_inputs  # late: it takes torch

                return audio_inputs(medium).numpy()


def image_size(path: str) -> int:
    """The side of the pictures that the ImageBind at a path takes; its weights are not read."""
    config = Path(path) / "config.json"
    return int(json.loads(config.read_text()).get("image_size", HUGE_SIZE)) if config.is_file() else HUGE_SIZE


def image_crop(image: Image, size: int) -> npt.NDArray[np.uint8]:
    """Resizes (bicubic, short side `size`) and centre-crops: uint8 (size, size, 3)."""
    [box] = boxes(image.pixels.shape, size, num_crops=1)
    crop = PIL.Image.fromarray(image.pixels).resize((size, size), PIL.Image.Resampling.BICUBIC, box=box)
    return np.array(crop)


def video_frames(video: Video) -> npt.NDArray[np.uint8]:
    """The first and last frame of 5 clips of 2 s, uint8 (10, H, W, 3).

    If the video is shorter than a clip, every clip is the whole video. Raises ValueError for a video without frames or
    without a frame rate.
    """
    num_frames = len(video.frames)
    if not num_frames or not video.fps > 0:
        raise ValueError(f"video: {num_frames} frames at {video.fps} frames per second; leave it out")
    return video.frames[frame_places(num_frames, video.fps)]


def frame_places(num_frames: int, fps: float) -> list[int]:
    """Which of a video's frames ImageBind looks at: first and last of each clip, in turn."""
    places = []
    for start in clip_starts(num_frames / fps, VIDEO_CLIPS):
        first = min(ceil(start * fps), num_frames - 1)
        last = min(ceil((start + CLIP_SECONDS) * fps), num_frames) - 1
        places += [first, max(first, last)]
    return places


def boxes(shape: Sequence[int], size: int, num_crops: int) -> list[Box]:
    """Square crops of an (H, W, ...) picture that are `size` wide once its short side is resized to `size`.

    A single crop is the centre; three lie along the long side, at both ends and the centre. Each box is left, top,
    right and bottom in original pixels, so that only cropped pixels are computed: a 2 x 20,000 picture costs no more
    than any other.
    """
    height, width = shape[:2]
    short = min(height, width)
    scaled_height, scaled_width = size * height // short, size * width // short
    y, x = height / scaled_height, width / scaled_width
    # If the margin is odd, torchvision rounds half to even for images, ImageBind's video crops round up.
    places, whole = ((0.5,), round) if num_crops == 1 else ((0.0, 0.5, 1.0), ceil)
    corners = [(whole((scaled_width - size) * place), whole((scaled_height - size) * place)) for place in places]
    return [(left * x, top * y, (left + size) * x, (top + size) * y) for left, top in corners]
