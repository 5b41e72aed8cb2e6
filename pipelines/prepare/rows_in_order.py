"""What becomes of the samples of a source, told by going through all of them in their order."""

from array import array
from collections import Counter
from collections.abc import Hashable, Iterator
from dataclasses import replace
from itertools import islice

from pipelines.prepare.section_files import is_contained, shared_medium
from pipelines.sample import Sample
from pipelines.sources.rows import MAX_CAPTIONS
from pipelines.tables.keys import other_keys

_SLOTS = 1 << 10
# What becomes of a sample that is not simply one of its own: it says nothing new; its medium is in a container and is
# taken; there are too many captions of its medium; it is a further caption; it gets the key at `choice` of those that
# there are for it.
DUPLICATE, TWICE, TOO_MANY, FURTHER, RENAMED = range(1, 6)


def renamed(row: Sample, choice: int) -> Sample:
    """A sample under one of the keys that there are for it."""
    return replace(row, key=next(islice(_other_keys(row), choice, None)))


def _other_keys(row: Sample) -> Iterator[str]:
    return other_keys(row.key, row.source, next((item.name for item in row.items() if item.name), ""))


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
    """The samples that came before, by key, by content, and by the medium where they may share one."""

    def __init__(self) -> None:
        self._keys, self._contents, self._media = Numbers(), Numbers(), Numbers()
        self._leaders = array("Q")
        self._merged = Counter[int]()

    def take(self, row: Sample, place: int, is_pair: bool) -> tuple[int, int, int] | None:
        """Takes a sample in; returns what becomes of it, and its leader and choice, where it is not simply its own."""
        if self._keys.get(row.key) is not None and self._contents.get(row.turns) is not None:
            return DUPLICATE, place, 0
        medium = shared_medium(row) if is_pair else ""
        number = self._media.get(medium) if medium else None
        if number is not None:
            return self._further(row, number, medium)
        choice = 0
        if is_taken := self._keys.get(row.key) is not None:
            keys = enumerate(_other_keys(row))
            choice = next(place for place, key in keys if self._keys.get(key) is None)
            row = renamed(row, choice)
        self._note(row)
        if medium:
            self._media.put(medium, len(self._leaders))
            self._leaders.append(place)
        return (RENAMED, place, choice) if is_taken else None

    def _further(self, row: Sample, number: int, medium: str) -> tuple[int, int, int]:
        leader = self._leaders[number]
        if is_contained(medium):
            return TWICE, leader, 0
        if self._merged[number] == MAX_CAPTIONS:
            return TOO_MANY, leader, 0
        self._note(row)
        self._merged[number] += 1
        return FURTHER, leader, 0

    def _note(self, row: Sample) -> None:
        for numbers, value in ((self._keys, row.key), (self._contents, row.turns)):
            if numbers.get(value) is None:
                numbers.put(value, 0)
