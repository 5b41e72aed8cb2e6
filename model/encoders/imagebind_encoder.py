"""Embeds any mix of media with ImageBind.

Shape suffixes as in `model/architectures/imagebind.py`.
"""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from model.architectures.imagebind import Attention, ImageBind, load_imagebind
from model.encoders.imagebind_inputs import VIDEO_CLIPS, Box, MediaInputs, boxes, image_crop, video_frames
from model.encoders.mel import AUDIO_CLIPS
from model.parts.devices import Sender, Sent
from model.parts.mixed_precision import Precision, use_bfloat16
from model.parts.weights import weights_hash
from pipelines.sample import Decoded, Image, Video

# Part of every encoder id: increment it with any change to what is made of media that affects values.
PREPROCESSING_VERSION = 1

PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
VIDEO_CROPS = 3

Arrays = Sequence[npt.NDArray[Any]]


def image_inputs(image: Image, size: int = 224) -> Tensor:
    """Resizes (bicubic, short side `size`), centre-crops and normalises; returns float32 (3, size, size)."""
    return _image(torch.from_numpy(image_crop(image, size)))


def video_inputs(video: Video, size: int = 224) -> Tensor:
    """Takes the first and last frame of 5 clips of 2 s, each in 3 crops along the long side.

    Returns float32 (15, 3, 2, size, size), with the crops of a clip adjacent. Raises ValueError as `video_frames` does.
    """
    return _video(torch.from_numpy(video_frames(video)), size)


def _image(crop_HWC: Tensor) -> Tensor:
    return _normalised(crop_HWC.permute(2, 0, 1).float())


def _video(frames_FHWC: Tensor, size: int) -> Tensor:
    """The clips of a video from the first and last frame of each: float32 (15, 3, 2, size, size)."""
    crops = [_cut(frame, boxes(frames_FHWC.shape[1:], size, VIDEO_CROPS), size) for frame in frames_FHWC]
    pairs = zip(crops[::2], crops[1::2], strict=True)
    clips = [torch.stack([crop[place] for crop in pair], dim=1) for pair in pairs for place in range(VIDEO_CROPS)]
    return _normalised(torch.stack(clips).transpose(1, 2)).transpose(1, 2).contiguous()


def _cut(frame_HWC: Tensor, boxes: Sequence[Box], size: int) -> Tensor:
    """Crops boxes of a frame and resizes them; returns float32 (len(boxes), 3, size, size) in [0, 255].

    Bilinear without antialiasing, as in ImageBind; Pillow can only antialias or truncate.
    """
    height, width = frame_HWC.shape[:2]
    to_frame = [
        [
            [(right - left) / width, 0, (right + left) / width - 1],
            [0, (bottom - top) / height, (bottom + top) / height - 1],
        ]
        for left, top, right, bottom in boxes
    ]
    corners = torch.tensor(to_frame, device=frame_HWC.device)
    grid = F.affine_grid(corners, [len(boxes), 3, size, size], align_corners=False)
    pixels = frame_HWC.permute(2, 0, 1).float().expand(len(boxes), -1, -1, -1)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _normalised(pixels: Tensor) -> Tensor:
    """Normalises (..., 3, H, W) in [0, 255] by ImageBind's mean and standard deviation."""
    mean, std = (torch.tensor(value, device=pixels.device)[:, None, None] for value in (PIXEL_MEAN, PIXEL_STD))
    return (pixels / 255 - mean) / std


class ImageBindEncoder:
    """Embeds any mix of images, videos and sounds with a frozen ImageBind, loaded once.

    `name` is resolved by `builtin.resolve`: a built-in part, a file such as `imagebind_huge.pth` or a directory.
    `batch_size` counts clips per forward pass (an image is 1 clip, a video 15, a sound 3). `id` is a readable name plus
    a hash of weights, sizes and preprocessing, and the precision where it is not float32: equal ids give equal
    embeddings. `dim` is the embedding's width.
    """

    def __init__(
        self,
        name: str,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        batch_size: int = 60,
        precision: Precision = "float32",
    ) -> None:
        from model.parts.builtin import resolve

        model = load_imagebind(resolve(name), dtype=dtype)
        self.id = _encoder_id(name, asdict(model.config), weights_hash(model.state_dict()))
        if precision == "bfloat16":
            _halve(model)
            self.id += "-bfloat16"
        self.dim = model.config.embed_dim
        self.device = torch.device(device)
        self.batch_size = batch_size
        self.model = model.to(self.device)
        size = model.config.image_size
        self._sender = Sender(self.device)
        self.prepare = MediaInputs(size)
        # Per kind of input, told by its type and axes: how the device finishes it, tower, number of clips.
        self._kinds: dict[tuple[torch.dtype, int], tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], int]]
        self._kinds = {
            (torch.uint8, 3): (_image, model.forward_vision, 1),
            (torch.uint8, 4): (partial(_video, size=size), model.forward_vision, VIDEO_CLIPS * VIDEO_CROPS),
            (torch.float32, 4): (Tensor.contiguous, model.forward_audio, AUDIO_CLIPS),
        }

    def __call__(self, items: Sequence[Decoded]) -> npt.NDArray[np.float32]:
        """Embeds items, in order; returns (len(items), dim). An item's row does not depend on the others."""
        return self.embed(self.send(self.prepare(items)))

    def send(self, inputs: Arrays) -> Sent:
        """Begins to move what `prepare` made to the device."""
        return self._sender.send(inputs)

    @torch.inference_mode()
    def embed(self, sent: Sent) -> npt.NDArray[np.float32]:
        """Embeds what was sent, in order: (N, dim)."""
        tensors = sent.take()
        embeddings_NE = torch.empty((len(tensors), self.dim), device=self.device)
        for kind, (finish, forward, num_clips) in self._kinds.items():
            rows = [row for row, tensor in enumerate(tensors) if (tensor.dtype, tensor.ndim) == kind]
            step = max(1, self.batch_size // num_clips)
            for chunk in (rows[start : start + step] for start in range(0, len(rows), step)):
                embeddings_NE[chunk] = forward(torch.stack([finish(tensors[row]) for row in chunk]))
        return embeddings_NE.cpu().numpy()


def _halve(model: ImageBind) -> None:
    """Matrix products in bfloat16, all else in float32."""
    use_bfloat16(model)
    for module in model.modules():
        if isinstance(module, Attention):
            module.to(torch.bfloat16)


def _encoder_id(name: str, config: dict[str, int], weights: str) -> str:
    readable = name.removeprefix("builtin:") if name.startswith("builtin:") else name.rstrip("/").rsplit("/", 1)[-1]
    slug = re.sub(r"[^A-Za-z0-9_]+", "-", readable.removesuffix(".pth")).strip("-") or "imagebind"
    identity = json.dumps([PREPROCESSING_VERSION, config, weights], sort_keys=True)
    return f"{slug}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
