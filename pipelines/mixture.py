"""Which sample, at which step, on which rank: a pure function of the datasets, their weights, the seed and the step."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """A plan of global batches over several datasets.

    `counts` and `weights` are by dataset: a weight of 1 takes every sample once an epoch, 2.5 takes every sample
    twice and half of them once more. An epoch ends with a batch that may be smaller; nothing is dropped.
    """

    counts: Sequence[int]
    weights: Sequence[float]
    batch_size: int
    epochs: int
    seed: int
    _orders: dict[int, npt.NDArray[np.int64]] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def epoch_samples(self) -> int:
        """How many samples an epoch takes."""
        return sum(round(count * weight) for count, weight in zip(self.counts, self.weights, strict=True))

    @property
    def epoch_steps(self) -> int:
        """How many global batches an epoch has."""
        return -(-self.epoch_samples // self.batch_size)

    @property
    def num_steps(self) -> int:
        """How many global batches the whole plan has."""
        return self.epoch_steps * self.epochs

    def batch(self, step: int) -> list[tuple[int, int]]:
        """The (dataset, sample) pairs of the global batch at `step`, in order."""
        epoch, place = divmod(step, self.epoch_steps)
        rows = self._order(epoch)[place * self.batch_size : (place + 1) * self.batch_size]
        return [(dataset, sample) for dataset, sample in rows.tolist()]

    def rank_batch(self, step: int, rank: int, world_size: int) -> list[tuple[int, int]]:
        """One rank's share of the global batch: every `world_size`-th sample, beginning at `rank`."""
        return self.batch(step)[rank::world_size]

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        """All (dataset, sample) pairs of an epoch, shuffled; the last epoch asked for is kept."""
        if epoch not in self._orders:
            generator = np.random.default_rng([self.seed, epoch])
            parts = [self._take(index, generator) for index in range(len(self.counts))]
            pairs = np.concatenate(parts)
            self._orders.clear()
            self._orders[epoch] = pairs[generator.permutation(len(pairs))]
        return self._orders[epoch]

    def _take(self, dataset: int, generator: np.random.Generator) -> npt.NDArray[np.int64]:
        count = self.counts[dataset]
        repeats, rest = divmod(round(count * self.weights[dataset]), max(count, 1))
        samples = np.concatenate([np.tile(np.arange(count), repeats), generator.permutation(count)[:rest]])
        return np.stack([np.full(len(samples), dataset), samples], axis=1)
