"""Embeds any mix of media with ImageBind.

Shape suffixes as in `model/architectures/imagebind.py`.
"""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from model.architectures.imagebind import Attention, ImageBind, load_imagebind
from model.encoders.frozen import FrozenEncoder, InputKind, encoder_id
from model.encoders.imagebind_inputs import VIDEO_CLIPS, Box, MediaInputs, boxes, image_crop, video_frames
from model.encoders.mel import AUDIO_CLIPS
from model.encoders.patches import pool_items
from model.parts.encoder_kinds import encoder_shapes, patch_bins
from model.parts.mixed_precision import Precision, use_bfloat16
from model.parts.weights import weights_hash
from pipelines.sample import Image, Modality, Video

PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
VIDEO_CROPS = 3
_MIDDLE = slice(1, 2)


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


def _video(frames_FHWC: Tensor, size: int, of_crops: slice = slice(None)) -> Tensor:
    """The clips of a video from the first and last frame of each, in all or some of the 3 crops.

    Returns float32 (5 * number of crops, 3, 2, size, size).
    """
    chosen = boxes(frames_FHWC.shape[1:], size, VIDEO_CROPS)[of_crops]
    crops = [_cut(frame, chosen, size) for frame in frames_FHWC]
    pairs = zip(crops[::2], crops[1::2], strict=True)
    clips = [torch.stack([crop[place] for crop in pair], dim=1) for pair in pairs for place in range(len(chosen))]
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


class ImageBindEncoder(FrozenEncoder):
    """Embeds any mix of images, videos and sounds with a frozen ImageBind, loaded once.

    `name` is resolved by `builtin.resolve`: a built-in part, a file such as `imagebind_huge.pth` or a directory.
    `batch_size` counts clips per forward pass (an image is 1 clip, a video 15, a sound 3). `id` is a readable name plus
    a hash of weights, sizes and preprocessing, and the precision where it is not float32: equal ids give equal
    embeddings. `dim` is the pooled embedding's width. With `patches`, an item's embedding is so many tokens
    instead: of a video, of the middle crop of each of its 5 clips; of a sound, its 3 clips follow each other in time.
    """

    def __init__(
        self,
        name: str,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        batch_size: int = 60,
        precision: Precision = "float32",
        patches: int | None = None,
    ) -> None:
        from model.parts.builtin import resolve

        model = load_imagebind(resolve(name), dtype=dtype)
        facts = [asdict(model.config), weights_hash(model.state_dict())]
        if precision == "bfloat16":
            _halve(model)
        self.dim, self._patches = model.config.embed_dim, patches
        self.model = model.to(torch.device(device))
        size = model.config.image_size
        crops = VIDEO_CROPS if patches is None else 1
        video = partial(_video, size=size, of_crops=slice(None) if patches is None else _MIDDLE)
        super().__init__(
            id=encoder_id(name, facts, patches, precision),
            shapes=encoder_shapes(name, patches),
            prepare=MediaInputs(size),
            kinds={
                (torch.uint8, 3): InputKind(finish=_image, forward=partial(self._seen, Modality.IMAGE)),
                (torch.uint8, 4): InputKind(
                    finish=video, forward=partial(self._seen, Modality.VIDEO), num_clips=VIDEO_CLIPS * crops
                ),
                (torch.float32, 4): InputKind(finish=Tensor.contiguous, forward=self._heard, num_clips=AUDIO_CLIPS),
            },
            device=torch.device(device),
            batch_size=batch_size,
        )

    def _seen(self, modality: Modality, clips: list[Tensor]) -> Tensor:
        found = self.model.vision_patches(torch.stack(clips))
        if self._patches is None:
            return found.pooled_NE
        side = self.model.config.image_size // self.model.config.patch_size
        grid_NTRCD = found.patches_NSPD.reshape(*found.patches_NSPD.shape[:2], side, side, -1)
        return pool_items(grid_NTRCD, self._bins(modality, (side, side)))

    def _heard(self, mels: list[Tensor]) -> Tensor:
        found = self.model.audio_patches(torch.stack(mels))
        if self._patches is None:
            return found.pooled_NE
        grid = self.model.config.audio_grid
        grid_NSRCD = found.patches_NSPD.reshape(*found.patches_NSPD.shape[:2], *grid, -1)
        in_time_NRCD = grid_NSRCD.transpose(1, 2).flatten(2, 3)
        return pool_items(in_time_NRCD[:, None], self._bins(Modality.AUDIO, grid))

    def _bins(self, modality: Modality, grid: tuple[int, int]) -> tuple[int, int, int]:
        assert self._patches is not None
        return patch_bins((VIDEO_CLIPS if modality is Modality.VIDEO else 1, *grid), self._patches)


def _halve(model: ImageBind) -> None:
    """Matrix products in bfloat16, all else in float32."""
    use_bfloat16(model)
    for module in model.modules():
        if isinstance(module, Attention):
            module.to(torch.bfloat16)
