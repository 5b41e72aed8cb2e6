"""Checks single files: whether a manifest, an index or a tar is as it was written, and which sample is damaged.

An index has the hash of every sample, so that damaged samples are named by key. Damage in a tar's headers or padding
is found by writing the sample again, which gives the same bytes, and comparing.
"""

import hashlib
import io
import json
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar, cast

import pyarrow as pa

from pipelines.storage.files import COPY_BYTES, read_at, read_rows, to_json
from pipelines.storage.shards import Shard, TarShardWriter, end_of_archive, hash_file, index_path

Row = dict[str, Any]
Read = TypeVar("Read")
_BAD_TAR = (tarfile.TarError, ValueError, OSError, EOFError, OverflowError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What is wrong with a file, and the key of the sample it concerns, if any."""

    file: Path
    what: str
    key: str = ""

    def __str__(self) -> str:
        return ": ".join(filter(None, [str(self.file), self.key, self.what]))


class Extent(NamedTuple):
    """The byte range of a sample's members in a tar, and its row in the index."""

    row: Row
    offset: int
    length: int


# Says what is wrong with one sample, from its row of the index and its tar members by suffix; nothing: an empty string.
Check = Callable[[Row, dict[str, bytes]], str]


def read_checked(path: Path, read: Callable[[Path], Read]) -> tuple[Read | None, list[Problem]]:
    """Reads the manifest at `path` with `read`, which gets its folder; None and the problem if it is damaged."""

    def refused(what: str) -> tuple[None, list[Problem]]:
        return None, [Problem(file=path, what=what)]

    if not path.is_file():
        return refused("missing: this folder is not finished")
    data = path.read_bytes()
    try:
        written = to_json(json.loads(data)).encode()
    except ValueError as error:
        return refused(f"damaged: not valid JSON ({error})")
    place = first_difference(data, written)
    if place is not None:
        return refused(f"damaged: byte {place} is not as it was written")
    try:
        return read(path.parent), []
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return refused(f"damaged: {str(error).removeprefix(f'{path}: ').partition(';')[0]}")


def read_index(path: Path, sha256: str, samples: int | None, schema: pa.Schema) -> tuple[list[Row], list[Problem]]:
    """The rows of a Parquet file with this hash and number of samples; empty, with the problem, if it is damaged."""
    problem = ""
    rows: list[Row] = []
    if not path.is_file():
        problem = "missing"
    elif hash_file(path) != sha256:
        problem = "damaged: its hash is not the one in the manifest"
    else:
        try:
            rows = read_rows(path, schema.names)
        except (OSError, ValueError, pa.ArrowException) as error:
            problem = f"unreadable: {str(error).partition(chr(10))[0]}"
        if not problem and samples is not None and len(rows) != samples:
            problem = f"has {len(rows)} samples, the manifest says {samples}"
    return rows, [Problem(file=path, what=problem)] if problem else []


def repeated_keys(path: Path, rows: Iterable[Row]) -> Iterator[Problem]:
    """Reports keys that occur more than once in the index at `path`."""
    for key, count in Counter(row["key"] for row in rows).items():
        if count > 1:
            yield Problem(file=path, key=key, what=f"occurs {count} times in one index")


def check_tar(tar: Path, shard: Shard, extents: list[Extent], check: Check, *, indexed: bool) -> Iterator[Problem]:
    """Reads a tar once, hashing it and checking each sample; again only if its hash differs from the manifest's.

    `indexed` says whether its index is intact; one sample is in memory at a time.
    """
    if not tar.is_file():
        yield Problem(file=tar, what=f"missing, and {shard.samples} samples with it")
        return
    size = tar.stat().st_size
    if size != shard.bytes:
        yield Problem(file=tar, what=f"has {size} bytes, the manifest says {shard.bytes}")
    bad, digest, end = set[str](), hashlib.sha256(), 0
    with tar.open("rb") as opened:
        file = cast(BinaryIO, opened)
        for row, offset, length in extents:
            if offset != end:
                what = f"said to begin at byte {offset}, but the sample before it ends at byte {end}"
                yield Problem(file=index_path(tar), key=row["key"], what=what)
                break
            data = file.read(length)
            digest.update(data)
            end += length
            what = _check_members(row, offset, data, check)
            if what:
                bad.add(row["key"])
                yield Problem(file=tar, key=row["key"], what=what)
        while piece := file.read(COPY_BYTES):
            digest.update(piece)
        if digest.hexdigest() != shard.sha256:
            others = [extent for extent in extents if extent.row["key"] not in bad]
            found = list(_locate(tar, file, others, end)) if indexed and size == shard.bytes else []
            yield from found
            if not found and not bad and size == shard.bytes:
                left = "" if indexed else "; its index is lost, so that no sample can be named"
                yield Problem(file=tar, what=f"damaged: its hash is not the one in the manifest{left}")


def strays(folder: Path, shards: Iterable[Shard], others: set[str]) -> Iterator[Problem]:
    """Reports files in a folder that are neither shards, nor their indexes, nor among `others`."""
    tars = [folder / shard.name for shard in shards]
    expected = others | {path.name for tar in tars for path in (tar, index_path(tar))}
    for path in sorted(folder.iterdir()):
        if path.name and path.name not in expected:
            what = "unfinished: left by a run that broke off" if path.name.startswith(".") else "orphaned"
            yield Problem(file=path, what=f"{what}; the manifest does not name it")


def first_difference(left: bytes, right: bytes) -> int | None:
    """The first position at which two byte strings differ, possibly the end of the shorter one."""
    if left == right:
        return None
    pairs = enumerate(zip(left, right, strict=False))
    return next((place for place, (one, other) in pairs if one != other), min(len(left), len(right)))


def _check_members(row: Row, offset: int, data: bytes, check: Check) -> str:
    """Checks one sample's bytes in a tar: its members, their names and their content."""
    try:
        members = _members(data)
    except _BAD_TAR as error:
        return f"damaged: no tar members can be read ({error})"
    prefix = f"{row['key']}."
    strangers = [name for name in members if not name.startswith(prefix)]
    if strangers:
        return f"mismatched key: {strangers[0]!r} is in its place"
    what = check(row, {name.removeprefix(prefix): value for name, value in members.items()})
    if not what and "json_offset" in row:
        start = row["json_offset"] - offset
        if data[start : start + row["json_length"]] != members[f"{prefix}json"]:
            return "its json does not stand where the index says"
    return what


def _members(data: bytes) -> dict[str, bytes]:
    result = {}
    with tarfile.open(fileobj=io.BytesIO(data + end_of_archive(len(data))), mode="r:") as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is None:
                raise ValueError(f"{member.name!r} is not a regular file")
            result[member.name] = file.read()
    return result


def _locate(tar: Path, file: BinaryIO, extents: Iterable[Extent], end: int) -> Iterator[Problem]:
    """Which bytes around the content of samples are not as they were written: of headers, padding, the tar's end."""
    for row, offset, length in extents:
        data = read_at(file, offset, length)
        place = first_difference(data, _as_written(row["key"], _members(data), length))
        if place is not None:
            what = f"damaged: byte {offset + place}, in a header or padding, is not as it was written"
            yield Problem(file=tar, key=row["key"], what=what)
    file.seek(end)
    place = first_difference(file.read(2 * tarfile.RECORDSIZE), end_of_archive(end))
    if place is not None:
        yield Problem(file=tar, what=f"damaged: byte {end + place}, after the last sample, is not as it was written")


def _as_written(key: str, members: dict[str, bytes], length: int) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sample.tar"
        with TarShardWriter(path) as writer:
            writer.write(key, {name.removeprefix(f"{key}."): value for name, value in members.items()})
        return path.read_bytes()[:length]
