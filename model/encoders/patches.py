"""Averages the patch tokens of an encoder over their grid, to as many as are kept of an item."""

import torch
from torch import Tensor
from torch.nn import functional as F

from model.parts.encoder_kinds import Grid


def pool_patches(tokens_TRCD: Tensor, bins: Grid) -> Tensor:
    """Averages patches of (frames, rows, columns, D) over as many bins along each axis; returns float32 (P, D).

    Bins overlap where they do not divide an axis evenly, and a frame fills several where there are fewer than bins.
    The patches stand in row-major order.
    """
    pooled_DTRC = F.adaptive_avg_pool3d(tokens_TRCD.float().permute(3, 0, 1, 2)[None], bins)[0]
    return pooled_DTRC.flatten(1).T.contiguous()


def pool_items(tokens_NTRCD: Tensor, bins: Grid) -> Tensor:
    """As `pool_patches`, of several items: (N, P, D)."""
    return torch.stack([pool_patches(tokens_TRCD, bins) for tokens_TRCD in tokens_NTRCD])
