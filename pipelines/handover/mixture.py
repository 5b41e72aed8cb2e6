"""Which samples, at which step, in which micro-batch: a pure function of samples, weights, seed and step.

A global batch holds samples of like length and is cut into micro-batches before it is shared out, so that neither
depends on how many ranks there are. `Mixture` plans training, `HeldOutPlan` validation.

What is numbered here as a sample is an example: where a medium has several captions, it is one with each of them.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Pair = tuple[int, int]  # the number of a view, and of a sample in it
# Rows are places among the candidates of all views, one view after the other; int32 halves what a plan takes.
_Rows = npt.NDArray[np.int32]
# A weight of one as a whole number: sums of these do not depend on the order, as those of floats do.
_ONE = 1 << 20
# Groups, some of them several times; which time it is of each; and how often each comes in every epoch.
_Taken = tuple[_Rows, npt.NDArray[np.int64], Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidates:
    """The samples of a view that may be taken: their numbers (n,), their lengths in tokens (n,), and their weight.

    A weight of 1 takes every sample once an epoch, 2.5 takes every sample twice and half of them once more. With
    `weights` (n,), each has one of its own, times `weight`: one of 2.5 comes twice or three times.

    With `key_hashes` (n,), those next to each other with one hash stand for one another, as captions of one medium do:
    of them, an epoch takes one (or by the weight: two or three), and the next epoch the next.
    """

    samples: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int32]
    weight: float = 1.0
    key_hashes: npt.NDArray[np.uint64] | None = None
    weights: npt.NDArray[np.float64] | None = None

    @property
    def starts(self) -> npt.NDArray[np.int64]:
        """The start indices of groups of interchangeable candidates."""
        return np.arange(len(self.samples)) if self.key_hashes is None else run_starts(self.key_hashes)

    @property
    def taken(self) -> int:
        """The number of samples in an epoch."""
        shares = self.shares
        return round(len(self.starts) * self.weight) if shares is None else _rounded(int(shares.sum()))

    @property
    def shares(self) -> npt.NDArray[np.int64] | None:
        """The weight of each group, in parts of which `_ONE` make an occurrence; None where all have `weight`."""
        if self.weights is None:
            return None
        return np.rint(self.weights[self.starts] * self.weight * _ONE).astype(np.int64)

    @property
    def mean_weight(self) -> float:
        """How often an epoch takes a group, on average."""
        shares = self.shares
        return self.weight if shares is None or not len(shares) else int(shares.sum()) / _ONE / len(shares)

    def first(self) -> "Candidates":
        """The same candidates with only the first of each group."""
        starts = self.starts
        weights = None if self.weights is None else self.weights[starts]
        return Candidates(
            samples=self.samples[starts], lengths=self.lengths[starts], weight=self.weight, weights=weights
        )


def run_starts(values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """The start indices of runs of equal values."""
    return np.flatnonzero(np.concatenate([np.ones(min(1, len(values)), bool), values[1:] != values[:-1]]))


def _rounded(share: Any) -> Any:
    return (share + _ONE // 2) // _ONE


def _occurrences(shares: npt.NDArray[np.int64], generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """How often each comes: its share, rounded up or down so that the sum of all is rounded to the nearest.

    Those that are rounded up are found by systematic sampling in a random order (Madow 1949).
    """
    order = generator.permutation(len(shares))
    counts = np.empty_like(shares)
    counts[order] = np.diff(_rounded(np.cumsum(shares[order])), prepend=0)
    return counts


class _Turns:
    """Rotates among interchangeable candidates: which one is used depends only on seed, epoch and key."""

    def __init__(self, view: Candidates, key_hashes: npt.NDArray[np.uint64], seed: int) -> None:
        self._starts = view.starts
        self.sizes = np.diff(self._starts, append=len(view.samples))
        # The product's upper bits, on which all bits of a hash have had an effect.
        mixed = (key_hashes[self._starts] ^ np.uint64(seed % 2**64)) * np.uint64(0x9E3779B97F4A7C15)
        self._first = (mixed >> np.uint64(32)).astype(np.int64) % self.sizes

    def rows(self, groups: npt.NDArray[np.int32], turns: npt.NDArray[np.int64]) -> _Rows:
        """Of each of these groups, the row whose turn it is."""
        rows = self._starts[groups] + (self._first[groups] + turns) % self.sizes[groups]
        return rows.astype(np.int32)


class Plan(ABC):
    """Global batches of the samples of several views, cut into micro-batches; pickled, 8 bytes a sample.

    Where samples have weights of their own, these take 8 more.
    """

    def __init__(self, candidates: Sequence[Candidates], batch_size: int, micro_batch_size: int) -> None:
        self.batch_size, self.micro_batch_size = batch_size, micro_batch_size
        self._starts = np.cumsum([0, *(len(view.samples) for view in candidates)])
        highest = max((int(view.samples.max(initial=0)) for view in candidates), default=0)
        kind = np.int32 if highest <= np.iinfo(np.int32).max else np.int64
        self._samples = np.concatenate([np.empty(0, kind), *(view.samples for view in candidates)], dtype=kind)
        self._lengths = np.concatenate([np.empty(0, np.int32), *(view.lengths for view in candidates)], dtype=np.int32)

    @property
    @abstractmethod
    def num_steps(self) -> int:
        """The number of global batches in the plan."""

    @abstractmethod
    def _batch(self, step: int) -> _Rows:
        """The rows of the global batch at a step, by length."""

    def micro_batches(self, step: int) -> list[list[Pair]]:
        """The (view, sample) pairs of each micro-batch of a step's global batch; the last may be smaller."""
        rows, size = self._batch(step), self.micro_batch_size
        views = np.searchsorted(self._starts, rows, side="right") - 1
        pairs = list(zip(views.tolist(), self._samples[rows].tolist(), strict=True))
        return [pairs[start : start + size] for start in range(0, len(pairs), size)]

    def rank_batch(self, step: int, rank: int, world_size: int) -> list[tuple[int, int, int]]:
        """A rank's share of a step as (micro-batch, view, sample): every `world_size`-th micro-batch from `rank` on."""
        micro_batches = list(enumerate(self.micro_batches(step)))
        return [(number, *pair) for number, pairs in micro_batches[rank::world_size] for pair in pairs]

    def padding(self, num_steps: int | None = None) -> float:
        """The share of padding among the tokens of the first steps' micro-batches, by default of all steps."""
        padded = held = 0
        for step in range(self.num_steps if num_steps is None else min(num_steps, self.num_steps)):
            lengths = self._lengths[self._batch(step)]
            held += int(lengths.sum())
            for start in range(0, len(lengths), self.micro_batch_size):
                micro = lengths[start : start + self.micro_batch_size]
                padded += len(micro) * int(micro[-1])
        return (padded - held) / max(padded, 1)


class Mixture(Plan):
    """A plan of training: epochs of shuffled samples, weighed by view.

    An epoch is shuffled and cut into windows of `window` global batches; a window's samples are sorted by length and
    cut into its batches; these come in a shuffled order. One batch of an epoch may be smaller; nothing is dropped.
    `max_steps` overrides `epochs`, and may be more than they hold.
    """

    def __init__(
        self,
        candidates: Sequence[Candidates],
        *,
        batch_size: int,
        micro_batch_size: int,
        window: int,
        seed: int,
        epochs: int,
        max_steps: int | None = None,
    ) -> None:
        """Takes the candidates of each view, in the order of the views.

        Raises:
            ValueError: an epoch would be empty.
        """
        super().__init__(candidates, batch_size, micro_batch_size)
        self.epoch_samples = sum(view.taken for view in candidates)
        if not self.epoch_samples:
            raise ValueError("datasets: no sample is left to train on; name other datasets or hold fewer out")
        self.window, self.seed, self.epochs, self.max_steps = window, seed, epochs, max_steps
        self._taken = [view.taken for view in candidates]
        self._shares = [view.shares for view in candidates]
        self._turns = [None if view.key_hashes is None else _Turns(view, view.key_hashes, seed) for view in candidates]
        self._kept: tuple[int, _Rows, _Rows] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": None}  # whoever is sent the plan shuffles for himself

    @property
    def epoch_steps(self) -> int:
        """The number of global batches in an epoch."""
        return -(-self.epoch_samples // self.batch_size)

    @property
    def num_steps(self) -> int:
        """The number of global batches in the whole plan."""
        return self.max_steps or self.epoch_steps * self.epochs

    def _batch(self, step: int) -> _Rows:
        epoch, place = divmod(step, self.epoch_steps)
        rows, batches = self._epoch(epoch)
        window, number = divmod(int(batches[place]), self.window)
        size = self.window * self.batch_size
        found = rows[window * size : (window + 1) * size]
        by_length = found[np.argsort(self._lengths[found], kind="stable")]
        return by_length[number * self.batch_size : (number + 1) * self.batch_size]

    def _epoch(self, epoch: int) -> tuple[_Rows, _Rows]:
        """An epoch's shuffled rows and the order of its batches; the last requested epoch is cached."""
        if self._kept is None or self._kept[0] != epoch:
            generator = np.random.default_rng([self.seed, epoch])
            rows = np.concatenate([self._take(view, epoch, generator) for view in range(len(self._taken))])
            generator.shuffle(rows)
            self._kept = epoch, rows, generator.permutation(self.epoch_steps).astype(np.int32)
        return self._kept[1:]

    def _take(self, view: int, epoch: int, generator: np.random.Generator) -> _Rows:
        turns, shares = self._turns[view], self._shares[view]
        count = self._starts[view + 1] - self._starts[view] if turns is None else len(turns.sizes)
        groups = np.arange(count, dtype=np.int32)
        found = self._alike(view, groups, generator) if shares is None else _by_share(shares, groups, generator)
        taken, times, each = found
        if turns is not None:
            taken = turns.rows(taken, epoch * each + times)
        return taken + self._starts[view].astype(np.int32)

    def _alike(self, view: int, groups: _Rows, generator: np.random.Generator) -> _Taken:
        repeats, rest = divmod(self._taken[view], max(len(groups), 1))
        again = generator.permutation(groups)[:rest] if rest else groups[:0]
        times = np.repeat(np.arange(repeats + 1), [len(groups)] * repeats + [rest])
        return np.concatenate([np.tile(groups, repeats), again]), times, max(repeats, 1)


def _by_share(shares: npt.NDArray[np.int64], groups: _Rows, generator: np.random.Generator) -> _Taken:
    counts = _occurrences(shares, generator)
    taken = np.repeat(groups, counts)
    before = np.repeat(np.cumsum(counts) - counts, counts)
    return taken, np.arange(len(taken)) - before, np.maximum(shares // _ONE, 1)[taken]


class HeldOutPlan(Plan):
    """A plan of validation: at most `limit` samples by length, the views' shares as in training, each once."""

    def __init__(self, candidates: Sequence[Candidates], *, limit: int, batch_size: int, micro_batch_size: int) -> None:
        candidates = [view.first() for view in candidates]
        super().__init__(candidates, batch_size, micro_batch_size)
        # The n-th sample of a view comes at n / (what training takes of it); so every view has its first.
        places = [np.arange(len(view.samples)) / (len(view.samples) * view.mean_weight) for view in candidates]
        views = np.repeat(np.arange(len(candidates)), np.diff(self._starts))
        chosen = views[np.argsort(np.concatenate([np.empty(0), *places]), kind="stable")[:limit]]
        shares = np.bincount(chosen, minlength=len(candidates)).tolist()
        spread = [
            start + np.arange(share) * len(view.samples) // max(share, 1)
            for start, share, view in zip(self._starts[:-1].tolist(), shares, candidates, strict=True)
        ]
        rows = np.concatenate([np.empty(0, np.int32), *spread], dtype=np.int32)
        self._rows: _Rows = rows[np.argsort(self._lengths[rows], kind="stable")]

    @property
    def num_steps(self) -> int:
        """The number of global batches that hold all samples."""
        return -(-len(self._rows) // self.batch_size)

    def _batch(self, step: int) -> _Rows:
        return self._rows[step * self.batch_size : (step + 1) * self.batch_size]
