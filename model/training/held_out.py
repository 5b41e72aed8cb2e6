"""Validation during a stage: scores of the held-out samples, and sample replies to some of them."""

import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from model.core.batch import Batch
from model.core.losses import FIGURES, Criterion, Losses, LossWeights, total
from model.parts.builtin import BUILTIN
from model.parts.families import is_full_size
from model.runs.run_log import RunLog
from model.training.engine import Rank
from model.training.feed import Row
from model.training.objective import Phase
from model.training.train_settings import TrainSettings
from model.training.validation_replies import Sampler, undisturbed
from pipelines.sample import Modality


class HeldOut:
    """One rank's held-out micro-batches, as many as on every other rank, and their rows."""

    def __init__(
        self,
        engine: Any,
        phase: Phase,
        tokenizer: Any,
        *,
        settings: TrainSettings,
        rank: Rank,
        batches: Sequence[Batch],
        rows: Sequence[Row],
        reduce: Callable[[list[float]], list[float]],
    ) -> None:
        self._engine, self._phase = engine, phase
        self._settings, self._rank, self._batches, self._reduce = settings, rank, batches, reduce
        # With sharded weights (ZeRO-3) all ranks must generate together.
        self._everywhere = settings.zero == 3 and rank.world_size > 1
        self._rows = rows
        if self._everywhere:
            shared = [rows]
            dist.broadcast_object_list(shared)
            self._rows = shared[0]
        wanted = rank.rank == 0 and makes_samples(settings, rank.device)
        self.makes_samples = reduce([float(wanted)])[0] > 0
        self._sampler = None
        if self.makes_samples and (rank.rank == 0 or self._everywhere):
            self._sampler = Sampler(engine, tokenizer, renders=rank.rank == 0)

    def score(self, step: int, log: RunLog | None) -> dict[str, float]:
        """Scores all held-out samples after `step` updates; every rank calls it, and gets the global scores."""
        moved = (batch.to(self._rank.device) for batch in self._batches)
        criterion, weights = self._phase.criterion, self._phase.weights
        scores = validate(self._engine, criterion, moved, weights, self._reduce, seed=self._settings.seed)
        if log is not None:
            log.validation(step, scores)
            parts = [f"{name} {scores[name]:.3f}" for name in scores if name.endswith(("loss", "well_formed"))]
            print(f"held out, after step {step}: {', '.join(parts)}", flush=True)
        return scores

    def sample(self, step: int, log: RunLog | None) -> None:
        """Logs replies to some held-out samples; every rank calls it. May take minutes."""
        samples = self._sampler(self._rows) if self._sampler is not None else []
        if log is not None:
            for sample in samples:
                log.sample(step, sample)


def makes_samples(settings: TrainSettings, device: str) -> bool:
    """Whether to generate sample replies on a device; prints a line if the default turns them off."""
    if settings.validation.generate != "auto":
        return settings.validation.generate
    decoders = {modality: output.decoder for modality, output in settings.model.outputs.items()}
    if device.startswith("cuda") or not any(map(_is_large, decoders, decoders.values())):
        return True
    print(
        "note: no sample replies during training: full-size decoders, no GPU; validation.generate=true makes them",
        flush=True,
    )
    return False


def _is_large(modality: Modality, name: str) -> bool:
    """Whether a decoder takes minutes per medium on a CPU; assumed for one that is not available locally."""
    if not (name.startswith(BUILTIN) or Path(name).is_dir()):
        return True  # on the hub, which is not asked for this
    try:
        return is_full_size(modality, name)
    except (OSError, ValueError):
        return True


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
