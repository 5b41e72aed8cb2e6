"""Which rows of a source are the same, and which only share a key: told by hashes, in a few dozen bytes a row."""

from array import array
from collections.abc import Hashable
from dataclasses import replace

from pipelines.sample import Sample
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
    """The rows of a source that came before, by key, by content, and by the medium where rows may share one."""

    def __init__(self) -> None:
        self._keys, self._contents, self._media = Numbers(), Numbers(), Numbers()

    def is_duplicate(self, row: Sample) -> bool:
        """Whether neither the row's key nor what it says is new."""
        return self._keys.get(row.key) is not None and self._contents.get(row.turns) is not None

    def sample_of(self, medium: str) -> int | None:
        """The number of the sample that holds a medium; None where no row named it."""
        return self._media.get(medium)

    def note(self, row: Sample, number: int) -> None:
        """Takes a row in as one of sample `number`."""
        for numbers, value in ((self._keys, row.key), (self._contents, row.turns)):
            if numbers.get(value) is None:
                numbers.put(value, number)

    def add(self, row: Sample, number: int, medium: str) -> Sample:
        """Takes a row in as sample `number`, under a key of its own; `medium` is empty where no other row shares it."""
        if self._keys.get(row.key) is not None:
            name = next((item.name for item in row.items() if item.name), "")
            keys = other_keys(row.key, row.source, name)
            row = replace(row, key=next(key for key in keys if self._keys.get(key) is None))
        self.note(row, number)
        if medium:
            self._media.put(medium, number)
        return row
