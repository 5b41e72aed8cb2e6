"""Which samples of a source are the same, share a medium, or only a key: told by hashes, a partition of them at a time.

A sample whose key and content both came before is a duplicate; a pair whose medium came before is a further caption of
it; one whose key alone came before gets another. Whether a medium or a content came before is known where all of one
hash are together, whether a key did where all of one key are; so samples are looked at twice, by medium and by key.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.prepare.reading import Counts, Run, in_process
from pipelines.prepare.rows_in_order import DUPLICATE, FURTHER, RENAMED, TOO_MANY, TWICE, KnownRows, renamed
from pipelines.prepare.section_files import (
    CONTAINED,
    INDEX,
    NO_NAME,
    OWN_NAME,
    SHARED,
    Array,
    Lines,
    hash_key,
    index_path,
    read_array,
    write_array,
)
from pipelines.sources.rows import MAX_CAPTIONS

_PARTITION_ROWS = 1 << 18
_MOST_PARTITIONS = 1 << 9
CHANGE = np.dtype([("id", "u8"), ("kind", "u1"), ("leader", "u8"), ("choice", "u4")])
_FIRST, _TOLD = 4, 8  # Flags beside those of the index: the first of its medium, its content came before.
_KEYED = np.dtype([(name, INDEX[name]) for name in ("id", "key", "name", "file", "flags")] + [("leader", "u8")])
_CLAIM = np.dtype([("key", "u8"), ("id", "u8")])


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """What becomes of the samples of each section, in numbers, and where it says of which."""

    folder: Path
    partitions: int
    # By section, 0 where none: how many are left out, how many of these are captions, and rejected for which reason.
    dropped: Counter[int]
    merged: Counter[int]
    rejected: dict[str, int]
    # The sections with a sample that is not simply one of its own.
    changed: set[int]
    rejecting: set[int]

    def changes(self, section: int) -> Array:
        """What becomes of those samples of a section, in their order, as `CHANGE`."""
        if section not in self.changed:
            return np.zeros(0, CHANGE)
        found = _changes(self.folder, self.partitions, "changes", "id", section << 32, (section + 1) << 32)
        return np.sort(found, order="id")

    def further(self, section: int, start: int, stop: int) -> Array:
        """The further captions of samples `start` to `stop` of a section, by these and in their own order."""
        if not self.changed:
            return np.zeros(0, CHANGE)
        low = section << 32
        found = _changes(self.folder, self.partitions, "further", "leader", low + start, low + stop)
        return np.sort(found, order=["leader", "id"])


def settle(folder: Path, counts: Sequence[Counts], are_pairs: bool, run: Run) -> Settled:
    """Finds what becomes of the samples of all sections that were read into a folder."""
    sections = [section for section, found in enumerate(counts) if found.samples]
    partitions = min(_MOST_PARTITIONS, -(-sum(found.samples for found in counts) // _PARTITION_ROWS)) or 1
    if partitions == 1:
        run = in_process
    everything = _Partitions(folder, sections, partitions, are_pairs)
    jobs = [{"partition": number} for number in range(partitions)]
    is_simple = all(row["is_simple"] for row in list(run(jobs, everything.by_medium)))
    found = list(run(jobs, everything.by_key)) if is_simple else []
    if is_simple and (renaming := sorted({section for row in found for section in row["renaming"]})):
        list(run([{"section": section} for section in renaming], everything.claim))
        claims = _Claims(folder, renaming, partitions)
        is_simple = all(row["is_simple"] for row in list(run(jobs, claims.check)))
    if not is_simple:
        found = list(run([{"partition": 0}], everything.in_order))
        partitions = 1
    return _settled(folder, partitions, found)


def _settled(folder: Path, partitions: int, found: Sequence[dict[str, Any]]) -> Settled:
    totals = {kind: Counter[int]() for kind in range(1, 6)}
    for row in found:
        for kind, section, count in zip(row["kinds"], row["sections"], row["counts"], strict=True):
            totals[int(kind)][int(section)] += int(count)
    dropped = Counter[int]()
    for kind in (DUPLICATE, TWICE, TOO_MANY, FURTHER):
        dropped.update(totals[kind])
    duplicates = totals[DUPLICATE].total() + totals[TWICE].total()
    reasons = {"duplicate key": duplicates, "too many captions": totals[TOO_MANY].total()}
    return Settled(
        folder=folder,
        partitions=partitions,
        dropped=dropped,
        merged=totals[FURTHER],
        rejected={reason: count for reason, count in reasons.items() if count},
        changed={section for total in totals.values() for section in total},
        rejecting={section for kind in (DUPLICATE, TWICE, TOO_MANY) for section in totals[kind]},
    )


@dataclass(frozen=True, slots=True)
class _Partitions:
    """The samples of sections, by partitions of their hashes; each method is the work of a task."""

    folder: Path
    sections: list[int]
    partitions: int
    are_pairs: bool

    def by_medium(self, row: dict[str, Any]) -> dict[str, Any]:
        """Finds the first sample of each medium, and whose content came before.

        It is not simple where a medium may have too many captions: whether it has, all of their keys decide.
        """
        paths = [index_path(self.folder, section) for section in self.sections]
        rows = _partition(paths, "group", row["partition"], self.partitions, INDEX)
        rows = rows[np.lexsort((rows["id"], rows["group"]))]
        first, start = _runs(rows["group"])
        is_shared, is_contained = rows["flags"] & SHARED > 0, rows["flags"] & CONTAINED > 0
        by_content = np.lexsort((rows["id"], rows["content"], start))
        is_again = np.zeros(len(rows), bool)
        content = rows["content"][by_content]
        is_again[by_content[1:]] = (np.diff(start[by_content]) == 0) & (content[1:] == content[:-1])
        is_told = np.where(is_contained, (rows["content"] == rows["content"][start]) & ~first, is_again)
        most = np.bincount(start[is_shared & ~is_contained]).max(initial=0)
        keyed = np.zeros(len(rows), _KEYED)
        for name in ("id", "key", "name", "file", "flags"):
            keyed[name] = rows[name]
        keyed["flags"] |= (_FIRST * first + _TOLD * is_told).astype(np.uint8)
        keyed["leader"] = rows["id"][start]
        write_array(_path(self.folder, "keyed", row["partition"]), keyed[np.argsort(keyed["key"], kind="stable")])
        return row | {"is_simple": bool(most <= MAX_CAPTIONS + 1)}

    def by_key(self, row: dict[str, Any]) -> dict[str, Any]:
        """Finds what becomes of each sample, where no key that one is given is another's."""
        paths = [_path(self.folder, "keyed", number) for number in range(self.partitions)]
        rows = _partition(paths, "key", row["partition"], self.partitions, _KEYED)
        rows = rows[np.lexsort((rows["id"], rows["key"]))]
        begins, start = _runs(rows["key"])
        first, is_told, is_shared, is_contained = (
            rows["flags"] & flag > 0 for flag in (_FIRST, _TOLD, SHARED, CONTAINED)
        )
        places = np.arange(len(rows))
        # What is twice in a container is rejected, and its key is not taken by it.
        takes = np.where(is_shared & is_contained & ~first, len(rows), places)
        taken_by = np.minimum.reduceat(takes, places[begins])[np.cumsum(begins) - 1] if len(rows) else takes
        is_taken = places > taken_by
        kinds = np.zeros(len(rows), np.uint8)
        kinds[is_shared & ~first] = FURTHER
        kinds[is_shared & ~first & is_contained] = TWICE
        kinds[(kinds == 0) & is_taken] = RENAMED
        kinds[is_taken & is_told] = DUPLICATE
        changes = np.zeros(np.count_nonzero(kinds), CHANGE)
        for name, values in (("id", rows["id"]), ("leader", rows["leader"]), ("kind", kinds)):
            changes[name] = values[kinds > 0]
        renamed = kinds == RENAMED
        changes["choice"][changes["kind"] == RENAMED] = _choices(rows[renamed], start[renamed])
        return row | _write(self.folder, row["partition"], changes)

    def claim(self, row: dict[str, Any]) -> dict[str, Any]:
        """Writes the keys that samples of a section are given."""
        low, high = row["section"] << 32, (row["section"] + 1) << 32
        changes = _changes(self.folder, self.partitions, "changes", "id", low, high)
        changes = np.sort(changes[changes["kind"] == RENAMED], order="id")
        samples = Lines(self.folder, row["section"]).samples((changes["id"] - np.uint64(low)).tolist())
        claims = [
            (hash_key(renamed(sample, choice).key), place)
            for sample, choice, place in zip(samples, changes["choice"].tolist(), changes["id"].tolist(), strict=True)
        ]
        write_array(_path(self.folder, "claims", row["section"]), np.sort(np.array(claims, _CLAIM), order="key"))
        return row

    def in_order(self, row: dict[str, Any]) -> dict[str, Any]:
        """Finds what becomes of each sample by going through all of them, one after the other."""
        known, found = KnownRows(), list[tuple[int, int, int, int]]()
        for section in self.sections:
            lines = Lines(self.folder, section)
            for place, sample in enumerate(lines.samples(range(len(lines.numbers))), section << 32):
                if change := known.take(sample, place, self.are_pairs):
                    found.append((place, *change))
        return row | _write(self.folder, row["partition"], np.array(found, CHANGE))


@dataclass(frozen=True, slots=True)
class _Claims:
    """The keys that samples are given, by partitions of their hashes."""

    folder: Path
    sections: list[int]
    partitions: int

    def check(self, row: dict[str, Any]) -> dict[str, Any]:
        """Whether no key that a sample of a partition is given is another's, before or behind it."""
        number = row["partition"]
        claims = [_path(self.folder, "claims", section) for section in self.sections]
        given = _partition(claims, "key", number, self.partitions, _CLAIM)["key"]
        keyed = [_path(self.folder, "keyed", place) for place in range(self.partitions)]
        own = _partition(keyed, "key", number, self.partitions, _KEYED)["key"]
        is_simple = len(np.unique(given)) == len(given) and not np.isin(given, own).any()
        return row | {"is_simple": bool(is_simple)}


def _choices(rows: Array, runs: Array) -> list[int]:
    """Which of its other keys each sample gets, in the order of `other_keys`: the first that none before it got."""
    choices, taken, last = list[int](), set[tuple[str, int]](), -1
    for run, name, file in zip(runs.tolist(), rows["name"].tolist(), rows["file"].tolist(), strict=True):
        if run != last:
            taken, last = set(), run
        names = [] if name == NO_NAME else [("name", name)]
        keys = [*names, ("file", file)]
        free = (place for place, key in enumerate(keys) if key not in taken and key != ("name", OWN_NAME))
        choice = next(free, len(keys))
        taken.update(keys[choice : choice + 1])
        choices.append(choice)
    return choices


def _write(folder: Path, partition: int, changes: Array) -> dict[str, Any]:
    """Writes changes by sample, and by the sample whose captions they are; returns how many there are of each kind."""
    further = changes[changes["kind"] == FURTHER]
    write_array(_path(folder, "changes", partition), np.sort(changes, order="id"))
    write_array(_path(folder, "further", partition), np.sort(further, order=["leader", "id"]))
    sections = (changes["id"] >> np.uint64(32)).astype(np.int64)
    found, counts = np.unique(np.stack([changes["kind"].astype(np.int64), sections]), axis=1, return_counts=True)
    renaming = np.unique(sections[changes["kind"] == RENAMED])
    return {
        "kinds": found[0].tolist(),
        "sections": found[1].tolist(),
        "counts": counts.tolist(),
        "renaming": renaming.tolist(),
    }


def _changes(folder: Path, partitions: int, kind: str, field: str, low: int, high: int) -> Array:
    """What `_write` wrote as `kind`, of all partitions, between two places of samples."""
    paths = (_path(folder, kind, number) for number in range(partitions))
    return _joined([_between(read_array(path), field, low, high) for path in paths if path.is_file()], CHANGE)


def _runs(sorted_: Array) -> tuple[Array, Array]:
    """Of sorted values: whether each begins a run of equal ones, and where the run that it is in begins."""
    begins = np.ones(len(sorted_), bool)
    begins[1:] = sorted_[1:] != sorted_[:-1]
    return begins, np.maximum.accumulate(np.where(begins, np.arange(len(sorted_)), 0)).astype(np.int64)


def _partition(paths: Sequence[Path], field: str, number: int, partitions: int, dtype: np.dtype[Any]) -> Array:
    """The rows of arrays that are sorted by a field of hashes, of one partition of these."""
    low, high = ((place << 64) // partitions for place in (number, number + 1))
    return _joined([_between(read_array(path), field, low, high) for path in paths], dtype)


def _between(rows: Array, field: str, low: int, high: int) -> Array:
    values = rows[field]
    start, stop = (bisect_left(values, edge, key=int) if edge >> 64 == 0 else len(rows) for edge in (low, high))
    return rows[start:stop]


def _joined(arrays: Sequence[Array], dtype: np.dtype[Any]) -> Array:
    return np.concatenate([np.zeros(0, dtype), *arrays])


def _path(folder: Path, kind: str, number: int) -> Path:
    return folder / kind / f"{number:06d}.npy"
