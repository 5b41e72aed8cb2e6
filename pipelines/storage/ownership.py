"""Which shard encodes what: equal inputs are encoded once in a dataset, by the first shard that holds them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

IDENTITY_BYTES = 16
_ARRAYS = ("slots", "owners", "places", "ranks")

Identities = npt.NDArray[np.uint8]  # (num_items, IDENTITY_BYTES): a hash of each item's input


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
class ShardPlan:
    """Where the embeddings of one shard's items come from; a function of the dataset alone.

    `slots` (num_items,) gives each item its number among the distinct embeddings of the shard. Of each of these,
    `owners` names the shard that encodes it, `places` the number of the item there that it is encoded for, and
    `ranks` that item's number among those its owner encodes. Owners are never later shards.
    """

    shard: int
    items: ShardItems
    slots: npt.NDArray[np.int32]
    owners: npt.NDArray[np.int32]
    places: npt.NDArray[np.int32]
    ranks: npt.NDArray[np.int32]

    @property
    def owned(self) -> npt.NDArray[np.int32]:
        """The numbers of the items that this shard encodes, in the order they stand."""
        return self.places[self.owners == self.shard]

    @property
    def borrows(self) -> bool:
        """Whether another shard encodes some of what this one holds."""
        return len(self.owned) < len(self.owners)

    def to_row(self) -> dict[str, Any]:
        """As plain bytes, for a row of Ray Data."""
        arrays = {name: getattr(self, name).tobytes() for name in _ARRAYS}
        return {"shard": self.shard, **self.items.to_row(), **arrays}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "ShardPlan":
        """Reads what `to_row` wrote."""
        arrays = {name: np.frombuffer(row[name], np.int32) for name in _ARRAYS}
        return cls(shard=row["shard"], items=ShardItems.from_row(row), **arrays)

    @classmethod
    def alone(cls, shard: int, items: ShardItems) -> "ShardPlan":
        """A plan in which every item has an embedding of its own, and nothing is shared."""
        every = np.arange(len(items.identities), dtype=np.int32)
        return cls(shard=shard, items=items, slots=every, owners=np.full_like(every, shard), places=every, ranks=every)


def assign(shards: Sequence[ShardItems]) -> list[ShardPlan]:
    """Gives every identity to the first shard, and item in it, that has it; memory is about 100 bytes an item."""
    counts = [len(shard.identities) for shard in shards]
    ends = np.cumsum(counts, dtype=np.int64)
    starts = ends - counts
    first = _first_places([shard.identities for shard in shards])
    owned = np.concatenate([[0], np.cumsum(first == np.arange(len(first)))])  # how many before each item are owned
    plans = []
    for number, items in enumerate(shards):
        distinct, slots = np.unique(first[starts[number] : ends[number]], return_inverse=True)
        owners = np.searchsorted(ends, distinct, side="right")
        plans.append(
            ShardPlan(
                shard=number,
                items=items,
                slots=slots.astype(np.int32),
                owners=owners.astype(np.int32),
                places=(distinct - starts[owners]).astype(np.int32),
                ranks=(owned[distinct] - owned[starts[owners]]).astype(np.int32),
            )
        )
    return plans


def _first_places(identities: Sequence[Identities]) -> npt.NDArray[np.int64]:
    """For every item of all shards, the number of the first that equals it."""
    if not sum(map(len, identities)):
        return np.zeros(0, np.int64)
    values = np.concatenate(identities).view(f"S{IDENTITY_BYTES}")[:, 0]
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    return first[inverse]
