"""What is encoded of many shards, and where each of their embeddings lies: equal inputs are encoded once.

Each distinct item is encoded where it first stands, unless a finished shard holds its embedding. Which items go
together does not depend on what is finished: a run that goes on makes the units that it would have made.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.storage.sidecars import IDENTITY_BYTES

Identities = npt.NDArray[np.uint8]  # (num_items, IDENTITY_BYTES): a hash of each item's input
Places = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardItems:
    """How many items each sample of a shard has (num_samples,), and what each item is, as hashes."""

    counts: npt.NDArray[np.int32]
    identities: Identities

    def to_row(self) -> dict[str, Any]:
        """As plain bytes, for a row of Ray Data."""
        return {"counts": self.counts.tobytes(), "identities": self.identities.tobytes()}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "ShardItems":
        """Reads what `to_row` wrote."""
        identities = np.frombuffer(row["identities"], np.uint8).reshape(-1, IDENTITY_BYTES)
        return cls(counts=np.frombuffer(row["counts"], np.int32), identities=identities)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where the distinct embeddings of a shard lie: at which position of which file.

    `slots` (num_items,) gives each item its number among them. A file is a pack, or a finished shard whose positions
    are its items; `files` has its number among the packs, or minus one minus that of the shard.
    """

    slots: Places
    files: Places
    positions: Places


class EncodingPlan:
    """The items of shards, some of which are finished; memory is about 50 bytes an item."""

    def __init__(self, shards: Sequence[ShardItems], finished: Sequence[bool]) -> None:
        counts = np.array([len(shard.identities) for shard in shards], np.int64)
        self._ends = np.cumsum(counts)
        self._starts = self._ends - counts
        self._first = _first_places([shard.identities for shard in shards])
        is_finished = np.repeat(np.array(finished, bool), counts)
        # Of each distinct item, the first place in a finished shard.
        self._held = np.full(len(self._first), -1, np.int64)
        held = np.flatnonzero(is_finished)[::-1]
        self._held[self._first[held]] = held
        self._is_needed = np.zeros(len(self._first), bool)
        self._is_needed[self._first[~is_finished]] = True
        self._is_needed &= self._held < 0
        self._pack = np.full(len(self._first), -1, np.int32)
        self._position = np.zeros(len(self._first), np.int32)

    @property
    def total(self) -> int:
        """How many embeddings are to be made."""
        return int(self._is_needed.sum())

    def firsts(self, shard: int) -> tuple[Places, npt.NDArray[np.bool_]]:
        """The numbers of a shard's items that stand here first, and which of them are to be made."""
        start, end = self._starts[shard], self._ends[shard]
        places = np.flatnonzero(self._first[start:end] == np.arange(start, end))
        return places.astype(np.int32), self._is_needed[start + places]

    def keep(self, shard: int, places: Places, pack: int) -> int:
        """Notes that a pack holds these items of a shard, in order; returns how many of them were missing."""
        own = self._starts[shard] + places
        missing = int((self._is_needed[own] & (self._pack[own] < 0)).sum())
        self._pack[own], self._position[own] = pack, np.arange(len(own))
        return missing

    def sources(self, shard: int) -> Sources:
        """Where the embeddings of a shard lie, once all are made."""
        distinct, slots = np.unique(self._first[self._starts[shard] : self._ends[shard]], return_inverse=True)
        held, packs = self._held[distinct], self._pack[distinct]
        holders = np.searchsorted(self._ends, held, side="right")
        files, positions = np.where(held < 0, packs, -1 - holders), self._position[distinct].astype(np.int64)
        positions = np.where(held < 0, positions, held - self._starts[np.where(held < 0, 0, holders)])
        return Sources(slots=slots.astype(np.int32), files=files.astype(np.int32), positions=positions.astype(np.int32))


def _first_places(identities: Sequence[Identities]) -> npt.NDArray[np.int64]:
    """For every item of all shards, the number of the first that equals it."""
    if not sum(map(len, identities)):
        return np.zeros(0, np.int64)
    values = np.concatenate(identities).view(f"S{IDENTITY_BYTES}")[:, 0]
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    return first[inverse]
