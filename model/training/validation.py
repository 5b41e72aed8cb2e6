"""The figures of a held-out split, and how to evaluate in the midst of a training without leaving a trace in it."""

import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from model.core.batch import Batch
from model.core.losses import FIGURES, Criterion, Losses, LossWeights, total


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluates without gradients; at the end the mode and the random state are as they were."""
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

    `model` is a DeepSpeed engine's module, of any ZeRO stage, or the engine itself. Every rank calls it with as many
    batches as the others, made of no examples where it has fewer; they lie on the model's device. `reduce` adds up
    numbers over the ranks. How the batches are spread over the ranks changes nothing.
    """
    seen = [0.0] * (2 * len(FIGURES))
    with undisturbed(model):
        for batch in batches:
            # The noise of a denoising loss is a batch's own, whichever rank it is on.
            generator = torch.Generator().manual_seed(seed + zlib.crc32("\n".join(batch.keys).encode()))
            losses = criterion(model(batch), batch, generator)
            seen = [a + b for a, b in zip(seen, losses.to_list(), strict=True)]
    losses = Losses.from_list(reduce(seen))
    return {"loss": float(total(losses, losses.counts_F, weights)), **losses.means()}
