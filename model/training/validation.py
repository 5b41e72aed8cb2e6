"""Scores a held-out split, and evaluates during training without side effects on it."""

import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from model.core.batch import Batch
from model.core.losses import FIGURES, Criterion, Losses, LossWeights, total


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """A context for evaluation without gradients, which restores the training mode and random state."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
            yield
    finally:
        model.train(was_training)


def validate(
    model: nn.Module,
    criterion: Criterion,
    batches: Iterable[Batch],
    weights: LossWeights,
    reduce: Callable[[list[float]], list[float]],
    *,
    seed: int = 0,
) -> dict[str, float]:
    """Scores this rank's batches; returns `loss` and the figures of `Losses.means` over the batches of all ranks.

    `model` is a DeepSpeed engine, of any ZeRO stage, or its module. Every rank calls it with the same number of batches
    on the model's device, some of them empty if it has fewer. `reduce` sums numbers over ranks. The result does not
    depend on how the batches are split over ranks.
    """
    seen = [0.0] * (2 * len(FIGURES))
    with undisturbed(model):
        for batch in batches:
            # The noise of the denoising loss is seeded by the batch, independent of the rank.
            generator = torch.Generator().manual_seed(seed + zlib.crc32("\n".join(batch.keys).encode()))
            losses = criterion(model(batch), batch, generator)
            seen = [a + b for a, b in zip(seen, losses.to_list(), strict=True)]
    losses = Losses.from_list(reduce(seen))
    return {"loss": float(total(losses, losses.counts_F, weights)), **losses.means()}
