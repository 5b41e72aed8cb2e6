"""Random access to the members of many tars: indexes and local files stay open, an object store is asked for many."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.storage.files import is_local, read_table
from pipelines.storage.shards import index_path

# A shuffled plan comes back to every shard over and over. The indexes of three million samples and one sidecar fit.
INDEX_BYTES = 256 << 20
OPEN_FILES = 256


class Range(NamedTuple):
    """Bytes of a file."""

    path: Path
    offset: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexEntry:
    """A member of a tar as its index says: its sample's key, where it stands, and a sidecar's lengths."""

    key: str
    range: Range
    lengths: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Index:
    """An index's columns; rows are taken one at a time, so strings and lists stay Arrow's."""

    keys: pa.StringArray
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    lengths: pa.ListArray | None
    num_bytes: int


class Indexes:
    """The indexes of tars, those used last kept in memory: `num_bytes` of them, at most about `INDEX_BYTES`."""

    def __init__(self, offset: str, length: str, lengths: str | None = None) -> None:
        """Takes the names of the columns that say where a member stands."""
        self._names = [name for name in ("key", offset, length, lengths) if name]
        self._kept: OrderedDict[Path, _Index] = OrderedDict()
        self.num_bytes = 0

    def entry(self, tar: Path, place: int) -> IndexEntry:
        """The member of the sample at `place` of a tar.

        Raises:
            IndexError: the index has no such row.
        """
        index = self._kept.get(tar) or self._load(tar)
        self._kept.move_to_end(tar)
        return IndexEntry(
            key=index.keys[place].as_py(),
            range=Range(tar, int(index.offsets[place]), int(index.sizes[place])),
            lengths=index.lengths[place].as_py() if index.lengths is not None else [],
        )

    def _load(self, tar: Path) -> _Index:
        table = read_table(index_path(tar), self._names).combine_chunks()
        keys, offsets, sizes, *lengths = (_array(table, name) for name in self._names)
        index = _Index(
            keys=keys,
            offsets=offsets.to_numpy(),
            sizes=sizes.to_numpy(),
            lengths=lengths[0] if lengths else None,
            num_bytes=table.nbytes,
        )
        self._kept[tar] = index
        self.num_bytes += index.num_bytes
        while self.num_bytes > INDEX_BYTES and len(self._kept) > 1:
            self.num_bytes -= self._kept.popitem(last=False)[1].num_bytes
        return index


def _array(table: pa.Table, name: str) -> Any:
    column = table[name]
    return column.chunk(0) if column.num_chunks else pa.array([], column.type)


class Ranges:
    """Reads byte ranges, keeping the local files used last open."""

    def __init__(self) -> None:
        self._open: OrderedDict[Path, pa.OSFile] = OrderedDict()

    def read(self, ranges: Sequence[Range]) -> list[bytes]:
        """The bytes of each range, in the order given; those of an object store are fetched at the same time.

        Raises:
            FileNotFoundError: there is no such file.
        """
        result = [b""] * len(ranges)
        remote: dict[Any, list[int]] = {}
        for number, (path, offset, length) in enumerate(ranges):
            if is_local(path):
                result[number] = self._file(path).read_at(length, offset)
            else:
                remote.setdefault(path.fs, []).append(number)  # type: ignore[attr-defined]
        for system, numbers in remote.items():
            for number, data in zip(numbers, _fetch(system, [ranges[number] for number in numbers]), strict=True):
                result[number] = data
        return result

    def _file(self, path: Path) -> pa.OSFile:
        file = self._open.get(path)
        if file is None:
            file = self._open[path] = pa.OSFile(str(path))
            if len(self._open) > OPEN_FILES:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(path)
        return file


def _fetch(system: Any, ranges: Sequence[Range]) -> list[bytes]:
    paths = [found.path.path for found in ranges]  # type: ignore[attr-defined]
    starts, ends = [found.offset for found in ranges], [found.offset + found.length for found in ranges]
    return list(system.cat_ranges(paths, starts, ends, on_error="raise"))
