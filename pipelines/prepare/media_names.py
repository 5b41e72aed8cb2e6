"""Rows whose medium may have one of several names, such as a clip called by its YouTube id: which of them is there."""

import os
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import lru_cache
from glob import escape
from itertools import islice, takewhile
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.sample import Item, Part, Reject, Sample, Turn
from pipelines.sources.pairs import OTHER_NAMES
from pipelines.storage.files import read_where, stamps_below, write_many_rows
from pipelines.tables.containers import leaves_root

_MAGIC = "*?["
_FOLDERS = 64  # whose listings are kept: rows of one folder mostly stand together


LISTING_SCHEMA = pa.schema([("name", pa.string()), ("stamp", pa.string())])
_LISTED_AT_ONCE = 1 << 16


def write_listing(media: Path, path: Path) -> None:
    """Lists the files of a media folder in an object store with their stamps, by name: it is asked once for all."""
    found = ({"name": name, "stamp": value} for name, value in stamps_below(media).items())
    write_many_rows(path, found, LISTING_SCHEMA, _LISTED_AT_ONCE)


def listed_stamps(listing: Path, names: Iterable[str]) -> dict[str, str]:
    """The stamps of those of some files that are in a listing."""
    found = read_where(listing, pc.field("name").isin(list(names)))
    return dict(zip(found["name"].to_pylist(), found["stamp"].to_pylist(), strict=True))


def with_found_names(
    rows: Iterable[Sample | Reject], media: Path | None, listing: Path | None = None
) -> Iterator[Sample | Reject]:
    """Gives each row's medium the first of its names that is in the media folder; where none is, it keeps its name.

    `listing` is what `write_listing` wrote of a folder in an object store.
    """
    folder = MediaFolder(media, listing) if media else None
    for row in rows:
        patterns = row.meta.get(OTHER_NAMES) if isinstance(row, Sample) else None
        if isinstance(row, Reject) or patterns is None:
            yield row
            continue
        meta = {name: value for name, value in row.meta.items() if name != OTHER_NAMES}
        own = next(item.name for item in row.items())
        found = folder.first([escape(own), *patterns]) if folder else None
        yield replace(row, turns=tuple(_named(turn, own, found or own) for turn in row.turns), meta=meta)


class MediaFolder:
    """The names of the files in a media folder, listed a folder at a time."""

    def __init__(self, root: Path, listing: Path | None = None) -> None:
        self._root, self._listing = root, listing
        self._names = lru_cache(maxsize=_FOLDERS)(self._list)

    def first(self, patterns: Iterable[str]) -> str | None:
        """The first file, by name, that the first of these glob patterns finds; `*` is in the file's own name only."""
        return next(filter(None, map(self._find, patterns)), None)

    def _find(self, pattern: str) -> str | None:
        if leaves_root(pattern):
            return None
        folder, slash, name = pattern.rpartition("/")
        names = self._names(folder)
        fixed = name[: min((place for mark in _MAGIC if (place := name.find(mark)) >= 0), default=len(name))]
        alike = takewhile(lambda other: other.startswith(fixed), islice(names, bisect_left(names, fixed), None))
        found = next((other for other in alike if fnmatchcase(other, name)), None)
        return found and f"{folder}{slash}{found}"

    def _list(self, folder: str) -> list[str]:
        if self._listing:
            start = f"{folder}/" if folder else ""
            found = read_where(self._listing, pc.starts_with(pc.field("name"), start))["name"].to_pylist()
            return [name for path in found if "/" not in (name := path[len(start) :])]
        try:
            return sorted(os.listdir(os.path.join(self._root, folder)))
        except (OSError, ValueError):
            return []


def _named(turn: Turn, old: str, new: str) -> Turn:
    def part(value: Part) -> Part:
        return replace(value, name=new) if isinstance(value, Item) and value.name == old else value

    return replace(turn, parts=tuple(map(part, turn.parts)))
