"""Packs: what has been encoded, a file a unit, kept as it is made, so that an interrupted run goes on from there.

`.work/<hash>.npy` holds the embeddings of a unit's items in their order; the hash is over all that they depend on, so
that a pack which is there, and whole, is of use whatever else a later run does otherwise. Every shard of every dataset
that holds one of these items is put together from it. Packs go when all sidecars of the run are finished.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.storage.files import atomic_path, is_local
from pipelines.storage.precision import record_type, store_each
from pipelines.storage.random_access import Range, Ranges
from pipelines.storage.sidecars import NOT_ENCODED

# Raised when units or packs change, so that none of an earlier version is taken up.
VERSION = 3
_HEADER_BYTES = 4096
_AT_ONCE = 64  # records read at the same time
_REASON_BYTES = 200
_Array = npt.NDArray[Any]


def is_whole(path: Path) -> bool:
    """Whether a pack is there, and as long as it says; an object store has no others."""
    try:
        if not is_local(path):
            return path.is_file()
        dtype, count, start = _read_header(Ranges(), path)
        return path.stat().st_size == start + count * dtype.itemsize
    except (OSError, ValueError):
        return False


def write_pack(
    path: Path,
    size: int,
    embeddings: npt.NDArray[np.float32] | None,
    lengths: npt.NDArray[np.int32],
    failed: Mapping[int, str],
    dtype: str,
    name: str,
) -> None:
    """Writes a unit of `size` items: embeddings of those that did not fail, in order, stored as `dtype`.

    Raises:
        ValueError: some are not finite in this type; `name` is their encoder's.
    """
    records = np.zeros(size, _record(dtype, () if embeddings is None else embeddings.shape[1:]))
    records["min_cosine"] = 1.0
    if embeddings is not None:
        made = [number for number in range(size) if number not in failed]
        records["embedding"][made], records["max_error"][made], records["min_cosine"][made] = store_each(
            embeddings + np.float32(0),  # a zero has no sign, be it stored or left out
            dtype,
            name,
        )
        records["length"][made] = lengths
    for number, reason in failed.items():
        records["length"][number], records["reason"][number] = NOT_ENCODED, reason.encode()[:_REASON_BYTES]
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, records, allow_pickle=False)


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
