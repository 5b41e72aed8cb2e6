"""Packs: what has been encoded of a shard, kept as it is done, so that an interrupted run goes on from there.

A shard's work is cut into numbered units, an encoder call each. `.work/00000-<hash>/000003-000007.npy` holds what units
3 to 6 gave, in their order; the hash is over all that the units depend on, so that a pack which is there, and whole, is
of use whatever else a later run does otherwise. Packs go when their sidecar is finished.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.storage.files import atomic_path, is_local
from pipelines.storage.precision import Loss, record_type
from pipelines.storage.random_access import Range, Ranges
from pipelines.storage.sidecars import NOT_ENCODED

# Raised when units or packs change, so that none of an earlier version is taken up.
VERSION = 2
_NAME = re.compile(r"(\d{6})-(\d{6})\.npy")
_HEADER_BYTES = 4096
_AT_ONCE = 64  # records read at the same time
_REASON_BYTES = 200
# What a record says beside its embedding.
_SAYS = ("length", "max_error", "min_cosine", "reason")
_Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """A file of embeddings: those of the units from `first` up to `stop`."""

    path: Path
    first: int
    stop: int


def fingerprint(of: str, dtype: str, batch_size: int, owned: npt.NDArray[np.int32]) -> str:
    """A hash of what a shard's units depend on: the dataset's shard, which of its items, and how many at once."""
    facts = json.dumps([VERSION, of, dtype, batch_size, hashlib.sha256(owned.astype("<i4").tobytes()).hexdigest()])
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


def find_packs(folder: Path) -> dict[int, Pack]:
    """The packs of a folder by their first unit; they are not opened."""
    packs = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if match := _NAME.fullmatch(path.name):
            first, stop = map(int, match.groups())
            packs[first] = Pack(path=path, first=first, stop=stop)
    return packs


def is_whole(pack: Pack) -> bool:
    """Whether a pack is as long as it says; an object store has no others."""
    if not is_local(pack.path):
        return True
    try:
        dtype, count, start = _read_header(Ranges(), pack.path)
        return pack.path.stat().st_size == start + count * dtype.itemsize
    except (OSError, ValueError):
        return False


def to_records(stored: _Array, lengths: _Array, shape: Sequence[int], dtype: str, loss: Loss) -> _Array:
    """Embeddings (N, ...) as they stand in a pack, each with its length and what storing its batch cost."""
    records = np.empty(len(stored), _record(dtype, shape))
    records["embedding"], records["length"] = stored, lengths
    records["max_error"], records["min_cosine"], records["reason"] = loss.max_error, loss.min_cosine, b""
    return records


def to_failed_records(reasons: Sequence[str], dtype: str) -> _Array:
    """Records of media that could not be encoded: they have a reason, and an embedding of no shape."""
    records = np.zeros(len(reasons), _record(dtype, ()))
    records["length"], records["min_cosine"] = NOT_ENCODED, 1.0
    records["reason"] = [reason.encode()[:_REASON_BYTES] for reason in reasons]
    return records


def write_pack(folder: Path, first: int, stop: int, records: Sequence[_Array]) -> Pack:
    """Writes what the units from `first` up to `stop` gave."""
    path = folder / f"{first:06d}-{stop:06d}.npy"
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, join_records(records), allow_pickle=False)
    return Pack(path=path, first=first, stop=stop)


def join_records(records: Sequence[_Array]) -> _Array:
    """Records one behind the other; those that failed take on the shape of the others."""
    dtypes = {array.dtype for array in records if (array["length"] != NOT_ENCODED).any()} or {records[0].dtype}
    assert len(dtypes) == 1, "an encoder gives embeddings of one shape"
    (dtype,) = dtypes
    joined = np.zeros(sum(map(len, records)), dtype)
    start = 0
    for array in records:
        part = joined[start : start + len(array)]
        for name in (*_SAYS, "embedding") if array.dtype == dtype else _SAYS:
            part[name] = array[name]
        start += len(array)
    return joined


def read_records(path: Path, positions: npt.NDArray[np.int32]) -> Iterator[_Array]:
    """Yields the records at these positions, each as an array of one."""
    ranges = Ranges()
    dtype, _, start = _read_header(ranges, path)
    size = dtype.itemsize
    for at in range(0, len(positions), _AT_ONCE):
        chosen = positions[at : at + _AT_ONCE].tolist()
        for data in ranges.read([Range(path, start + position * size, size) for position in chosen]):
            yield np.frombuffer(data, dtype)


def _record(dtype: str, shape: Sequence[int]) -> np.dtype[Any]:
    fields = [("embedding", record_type(dtype, shape)), ("length", "<i4")]
    return np.dtype([*fields, ("max_error", "<f8"), ("min_cosine", "<f8"), ("reason", f"S{_REASON_BYTES}")])


def _read_header(ranges: Ranges, path: Path) -> tuple[np.dtype[Any], int, int]:
    """The type of a pack's records, how many there are, and where they begin.

    Raises:
        ValueError: it is no pack.
    """
    (data,) = ranges.read([Range(path, 0, _HEADER_BYTES)])
    head = io.BytesIO(data)
    if np.lib.format.read_magic(head) != (1, 0):
        raise ValueError(f"{path}: not as packs are written")
    (count,), _, dtype = np.lib.format.read_array_header_1_0(head)
    return dtype, count, head.tell()
