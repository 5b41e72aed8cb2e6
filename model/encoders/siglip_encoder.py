"""Embeds pictures, and frames of videos, with SigLIP or SigLIP2 (Zhai et al. 2023, Tschannen et al. 2025).

Suffixes: N pictures or frames, T frames of an item, C channels or columns, H and W pixels, L patches, R rows, D width
of a patch, K pixels of one.
"""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Siglip2VisionModel, SiglipVisionModel

from model.encoders.frozen import FrozenEncoder, InputKind, encoder_id, load_frozen, products
from model.encoders.patches import pool_patches
from model.encoders.siglip_inputs import PixelInputs, PixelSettings, pixel_settings
from model.parts.encoder_kinds import SIGLIP, VIDEO_FRAMES, encoder_shapes, patch_bins, read_encoder
from model.parts.mixed_precision import Precision
from model.parts.weights import weights_hash
from pipelines.sample import Modality

# Maps pictures of one size, (N, 3, H, W), to their pooled vectors (N, D) and their patches on a grid (N, R, C, D).
Run = Callable[[Any, Tensor], tuple[Tensor, Tensor]]


class SiglipEncoder(FrozenEncoder):
    """Embeds images and videos, with a frozen SigLIP or SigLIP2, loaded once.

    Of a video, 8 frames are embedded, each as a picture: its pooled vector is their mean. `patches` are averaged over
    frames and space. `batch_size` counts pictures and frames.
    """

    def __init__(
        self,
        name: str,
        device: str = "cpu",
        batch_size: int = 60,
        precision: Precision = "float32",
        patches: int | None = None,
    ) -> None:
        kind, config = read_encoder(name)
        settings = pixel_settings(name)
        model = load_frozen(SiglipVisionModel if kind is SIGLIP else Siglip2VisionModel, name)
        facts = [config.get("vision_config", config), asdict(settings), weights_hash(model.state_dict())]
        self.model = model.to(torch.device(device))
        self._run: Run = run_siglip if kind is SIGLIP else partial(run_siglip2, settings=settings)
        self._products = products(device, precision)
        self._sizes = {m: kind.patches(config, m)[1] for m in kind.modalities}
        self._patches = patches
        finish = partial(normalised, settings=settings)
        super().__init__(
            id=encoder_id(name, facts, patches, precision),
            shapes=encoder_shapes(name, patches),
            prepare=PixelInputs(settings),
            kinds={
                (torch.uint8, 3): InputKind(finish=finish, forward=partial(self._embed, Modality.IMAGE)),
                (torch.uint8, 4): InputKind(
                    finish=finish, forward=partial(self._embed, Modality.VIDEO), num_clips=VIDEO_FRAMES
                ),
            },
            device=torch.device(device),
            batch_size=batch_size,
        )

    def _embed(self, modality: Modality, items: list[Tensor]) -> Tensor:
        """Embeds items of one modality, each (frames, 3, H, W)."""
        found: dict[int, Tensor] = {}
        for size in dict.fromkeys(item.shape for item in items):
            alike = [place for place, item in enumerate(items) if item.shape == size]
            with self._products():
                pooled_ND, grid_NRCD = self._run(self.model, torch.cat([items[place] for place in alike]))
            pooled_KTD = pooled_ND.float().reshape(len(alike), size[0], -1)
            grid_KTRCD = grid_NRCD.reshape(len(alike), size[0], *grid_NRCD.shape[1:])
            for number, place in enumerate(alike):
                pooled_D, grid_TRCD = pooled_KTD[number].mean(0), grid_KTRCD[number]
                found[place] = pooled_D if self._patches is None else self._pooled(modality, grid_TRCD)
        return torch.stack([found[place] for place in range(len(items))])

    def _pooled(self, modality: Modality, grid_TRCD: Tensor) -> Tensor:
        assert self._patches is not None
        return pool_patches(grid_TRCD, patch_bins(self._sizes[modality], self._patches))


def normalised(pixels: Tensor, settings: PixelSettings) -> Tensor:
    """Pixels (H, W, 3) or (frames, H, W, 3) as float32 (1 or frames, 3, H, W), scaled and normalised."""
    pixels_NHWC = pixels[None] if pixels.ndim == 3 else pixels
    mean, std = (torch.tensor(value, device=pixels.device)[:, None, None] for value in (settings.mean, settings.std))
    return (pixels_NHWC.permute(0, 3, 1, 2).float() * settings.rescale_factor - mean) / std


def run_siglip(model: Any, pixels_NCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Pooled vectors (N, D), and patches after the last norm (N, R, C, D)."""
    found = model(pixel_values=pixels_NCHW)
    rows, columns = (side // model.config.patch_size for side in pixels_NCHW.shape[2:])
    return found.pooler_output, found.last_hidden_state.reshape(len(pixels_NCHW), rows, columns, -1)


def run_siglip2(model: Any, pixels_NCHW: Tensor, settings: PixelSettings) -> tuple[Tensor, Tensor]:
    """As `run_siglip`, of pictures that keep their proportions, padded to as many patches as are allowed."""
    num, _, height, width = pixels_NCHW.shape
    rows, columns = height // settings.patch_size, width // settings.patch_size
    missing = settings.max_num_patches - rows * columns
    patches_NLK = F.pad(flat_patches(pixels_NCHW, settings.patch_size), (0, 0, 0, missing))
    mask_NL = F.pad(pixels_NCHW.new_ones((num, rows * columns), dtype=torch.int32), (0, missing))
    shapes = torch.tensor([[rows, columns]] * num, device=pixels_NCHW.device)
    found = model(pixel_values=patches_NLK, pixel_attention_mask=mask_NL, spatial_shapes=shapes)
    return found.pooler_output, found.last_hidden_state[:, : rows * columns].reshape(num, rows, columns, -1)


def flat_patches(pixels_NCHW: Tensor, patch_size: int) -> Tensor:
    """Cuts pictures into patches, row by row: (N, L, K), the channels of a pixel adjacent."""
    num, channels, height, width = pixels_NCHW.shape
    cut = pixels_NCHW.reshape(num, channels, height // patch_size, patch_size, width // patch_size, patch_size)
    return cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
