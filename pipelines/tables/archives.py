"""Tars as they lie on a disk or in a bucket, plain or packed with gzip or zstandard: their members, and one's bytes."""

import re
import tarfile
import threading
from collections.abc import Iterator
from contextlib import closing
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple, cast

import pyarrow as pa

from pipelines.storage.files import read_at, read_range, stamp
from pipelines.tables.decompression import COMPRESSIONS

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.zst")
_BLOCK = 512
_SKIP_BYTES = 1 << 20
_DIGITS = re.compile(r"([0-9]+)")
# Packings that are refused: their first bytes, and what people call them.
_REFUSED = {b"BZh": "bzip2", b"\xfd7zXZ": "xz"}


class Member(NamedTuple):
    """Where the data of a member begin in its tar, unpacked, and their length; it begins at -1 if it is no plain file.

    Plain is a regular file stored in one piece: no link, no device, not sparse. `format` is what its content was found
    to be, where somebody looked.
    """

    name: str
    offset: int
    size: int
    format: str = ""

    @property
    def is_plain(self) -> bool:
        """Whether its data can be read."""
        return self.offset >= 0


def is_tar(path: Path | PurePosixPath) -> bool:
    """Whether a file is a tar by its name."""
    return path.name.lower().endswith(SUFFIXES)


def beside(path: Path, suffix: str) -> Path:
    """The file beside a tar that bears its name with another suffix: `00000.parquet` of `00000.tar.gz`."""
    return path.with_name(stem(path.name) + suffix)


def stem(name: str) -> str:
    """A tar's name without its suffix; any other name as it is."""
    ending = max((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), key=len, default="")
    return name[: len(name) - len(ending)]


def is_packed(path: Path) -> bool:
    """Whether a tar is packed: its members are read fast in their order alone.

    Raises:
        ValueError: `unreadable: ...`, it is packed in a way that is not read.
    """
    return _codec(path, stamp(path)) is not None


def open_tar(path: Path) -> BinaryIO:
    """A tar as a file to read and seek in, unpacked; a packed one is read again from its start to go back.

    Raises:
        ValueError: `unreadable: ...`, it is packed in a way that is not read.
    """
    codec = _codec(path, stamp(path))
    return cast(BinaryIO, path.open("rb") if codec is None else _Unpacked(path, codec))


def tar_members(file: BinaryIO) -> Iterator[Member]:
    """Every member of a tar that is no folder, in order, without its data.

    Raises:
        ValueError: `unreadable: ...`, after the members before the damage: the tar is broken or has no end.
    """
    try:
        with tarfile.open(fileobj=file, mode="r:", errorlevel=0) as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # It would keep them all.
                if not member.isdir():
                    is_plain = member.isreg() and not member.issparse()
                    place = (member.offset_data, member.size) if is_plain else (-1, 0)
                    yield Member(_plain_name(member.name), *place)
            end = tar.offset
        file.seek(end)
        block = file.read(_BLOCK)
    except (tarfile.TarError, OSError, pa.ArrowException) as error:
        raise ValueError(f"unreadable: the tar breaks off ({' '.join(str(error).split())[:200]})") from None
    if len(block) < _BLOCK or block.strip(b"\0"):
        raise ValueError(f"unreadable: the tar breaks off after {end} bytes")


def read_tar_member(path: Path, member: str, max_bytes: int, name: str) -> bytes:
    """The bytes of a member; `name` is what it is called in a reason.

    Raises:
        ValueError: `missing file: ...`, `empty file: ...`, `too large: ...` or `unreadable: ...`.
    """
    found = _index(path, stamp(path)).get(member)
    if found is None:
        raise ValueError(f"missing file: {path.name} holds no {member}")
    if not found.is_plain:
        raise ValueError(f"unreadable: {name} is a link or no regular file")
    if found.size == 0:
        raise ValueError(f"empty file: {name}")
    if found.size > max_bytes:
        raise ValueError(f"too large: {name} has {found.size} bytes, the limit is {max_bytes}")
    if is_packed(path):
        data = _cursor(path, stamp(path)).read(found.offset, found.size)
    else:
        data = read_range(path, found.offset, found.size)
    if len(data) != found.size:
        raise ValueError(f"unreadable: {name} breaks off after {len(data)} of {found.size} bytes")
    return data


def natural_order(name: str) -> list[tuple[int, str]]:
    """What names are sorted by so that `0.2.jpg` comes before `0.10.jpg`."""
    return [(int(part), part) if part.isdecimal() else (-1, part) for part in _DIGITS.split(name)]


def _plain_name(name: str) -> str:
    """A name without `./` and doubled slashes; most have none."""
    return str(PurePosixPath(name)) if name.startswith("./") or "//" in name or "/./" in name else name


class _Unpacked:
    """What a packed file holds, as it streams; going back starts it again. No more is held than the codec needs."""

    def __init__(self, path: Path, codec: str) -> None:
        self._path, self._codec = path, codec
        self._start()

    def __enter__(self) -> "_Unpacked":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._stream.close()
        self._file.close()

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int) -> int:
        """Goes to a place; beyond the end it stays there."""
        if offset < self._place:
            self.close()
            self._start()
        while self._place < offset and self.read(min(_SKIP_BYTES, offset - self._place)):
            pass
        return self._place

    def read(self, size: int) -> bytes:
        """The next bytes; fewer at the end alone."""
        parts, left = [], size
        while left and (part := self._stream.read(left)):
            parts.append(part)
            left -= len(part)
        self._place += size - left
        return b"".join(parts)

    def _start(self) -> None:
        self._file = self._path.open("rb")
        self._stream = pa.CompressedInputStream(pa.PythonFile(self._file, mode="r"), self._codec)
        self._place = 0


class _Cursor:
    """A packed tar that stays open: members that are read in order cost one pass over it."""

    def __init__(self, path: Path) -> None:
        self._file = open_tar(path)
        self._lock = threading.Lock()

    def read(self, offset: int, size: int) -> bytes:
        with self._lock:
            return read_at(self._file, offset, size)


@lru_cache(maxsize=64)
def _codec(path: Path, _stamp: str) -> str | None:
    with path.open("rb") as file:
        start = file.read(max(map(len, (*COMPRESSIONS, *_REFUSED))))
    for magic, name in _REFUSED.items():
        if start.startswith(magic):
            raise ValueError(f"unreadable: {path.name} is packed with {name}; unpack it, or use gzip or zstandard")
    return next((codec for magic, codec in COMPRESSIONS.items() if start.startswith(magic)), None)


@lru_cache(maxsize=4)
def _cursor(path: Path, _stamp: str) -> _Cursor:
    return _Cursor(path)


@lru_cache(maxsize=16)
def _index(path: Path, _stamp: str) -> dict[str, Member]:
    """The members of a tar by name; of several of one name the first."""
    index: dict[str, Member] = {}
    with closing(open_tar(path)) as file:
        try:
            for member in tar_members(file):
                index.setdefault(member.name, member)
        except ValueError:  # What stands before the damage can be read; readers of rows reject the rest.
            pass
    return index
