"""Which rows of a source are the same, and which only share a key: told by hashes, in a few dozen bytes a row."""

from array import array
from collections.abc import Hashable, Iterator
from dataclasses import replace

from pipelines.sample import Reject, Sample
from pipelines.tables.keys import other_keys

_SLOTS = 1 << 10


class Numbers:
    """A number for each of many values, which are known by their hashes alone: 18 to 36 bytes a value."""

    def __init__(self) -> None:
        self._count = 0
        self._allocate(_SLOTS)

    def get(self, value: Hashable) -> int | None:
        """The number of a value; None of one that is not known."""
        number = self._numbers[self._slot(hash(value))]
        return None if number < 0 else number

    def put(self, value: Hashable, number: int) -> None:
        """Gives a new value its number, from 0 on."""
        self._insert(hash(value), number)
        self._count += 1
        if 3 * self._count > 2 * len(self._hashes):
            hashes, numbers = self._hashes, self._numbers
            self._allocate(2 * len(hashes))
            for found, kept in zip(hashes, numbers, strict=True):
                if kept >= 0:
                    self._insert(found, kept)

    def _allocate(self, slots: int) -> None:
        self._hashes, self._numbers = array("q", [0]) * slots, array("i", [-1]) * slots

    def _insert(self, hashed: int, number: int) -> None:
        slot = self._slot(hashed)
        self._hashes[slot], self._numbers[slot] = hashed, number

    def _slot(self, hashed: int) -> int:
        """Where a hash stands, or the free slot where it belongs."""
        hashes, numbers, mask = self._hashes, self._numbers, len(self._hashes) - 1
        slot = hashed & mask
        while numbers[slot] >= 0 and hashes[slot] != hashed:
            slot = (slot + 1) & mask
        return slot


class KnownRows:
    """The rows of a source that came before, by key and by content."""

    def __init__(self) -> None:
        self._keys, self._contents = Numbers(), Numbers()

    def admit(self, row: Sample, number: int) -> Sample | Reject:
        """The row as sample `number`, under a key of its own; a reject where neither its key nor its content is new."""
        is_taken, is_known = self._keys.get(row.key) is not None, self._contents.get(row.turns) is not None
        if is_taken and is_known:
            return Reject(source=row.source, key=row.key, stage="read", reason=f"duplicate key: {row.key}")
        if is_taken:
            row = replace(row, key=next(key for key in _places(row) if self._keys.get(key) is None))
        self._keys.put(row.key, number)
        if not is_known:
            self._contents.put(row.turns, number)
        return row


def _places(row: Sample) -> Iterator[str]:
    return other_keys(row.key, row.source, next((item.name for item in row.items() if item.name), ""))
