"""Media inside container files: members of a tar, and bytes embedded in the columns of a Parquet or Arrow file.

An item's name goes on inside its container: `00000.tar/000000012.jpg`, `train.parquet/image/17`.
"""

import tarfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

import pyarrow as pa

from pipelines.storage.files import is_local, read_range, stamp
from pipelines.tables import columns
from pipelines.tables.media_formats import media_format

SUFFIXES = (".tar", *columns.SUFFIXES)
_BLOCK = 512


def split(root: Path, name: str) -> tuple[Path, str]:
    """The file a medium's name leads to below a folder, and what in it is meant: empty where it is the file itself."""
    parts = PurePosixPath(name).parts
    for count in range(1, len(parts)):
        if parts[count - 1].lower().endswith(SUFFIXES):
            outer = root.joinpath(*parts[:count])
            if not (is_local(outer) and outer.is_dir()):
                return outer, "/".join(parts[count:])
    return root / name, ""


def read_member(path: Path, member: str, max_bytes: int) -> tuple[bytes, str]:
    """The bytes of one medium in a container file and its format, a file suffix without a dot.

    `member` is a name in a tar; in a Parquet or Arrow file it is the column, the row's number in the file, and in a
    nested value the steps that lead to it (`image/17`, `images/17/0`).

    Raises:
        ValueError: `missing file: ...`, `too large: ...`, `unreadable: ...` or `path outside the root: ...`.
    """
    name = f"{path.name}/{member}"
    if leaves_root(member):
        raise ValueError(f"path outside the root: {name}")
    try:
        if path.suffix.lower() == ".tar":
            return _read_tar(path, member, max_bytes, name)
        data, original = columns.read_bytes(path, member, max_bytes)
        return data, media_format(data, original, name)
    except FileNotFoundError:
        raise ValueError(f"missing file: {name} (there is no {path.name})") from None
    except (OSError, pa.ArrowException, tarfile.TarError) as error:
        raise ValueError(f"unreadable: {name}: {' '.join(str(error).split())[:200]}") from None


def leaves_root(name: str) -> bool:
    """Whether a name is absolute or climbs."""
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or "\0" in name


def tar_members(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Every member of a tar that is no folder, in order, without its data.

    Raises:
        ValueError: `unreadable: ...`, after the members before the damage: the tar is broken or has no end.
    """
    try:
        with tarfile.open(fileobj=file, mode="r:", errorlevel=0) as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # It would keep them all.
                if not member.isdir():
                    yield member
            end = tar.offset
        file.seek(end)
        block = file.read(_BLOCK)
    except (tarfile.TarError, OSError) as error:
        raise ValueError(f"unreadable: the tar breaks off ({' '.join(str(error).split())[:200]})") from None
    if len(block) < _BLOCK or block.strip(b"\0"):
        raise ValueError(f"unreadable: the tar breaks off after {end} bytes")


def is_plain(member: tarfile.TarInfo) -> bool:
    """Whether a tar's member is a regular file stored in one piece: no link, no device, not sparse."""
    return member.isreg() and not member.issparse()


def _read_tar(path: Path, member: str, max_bytes: int, name: str) -> tuple[bytes, str]:
    place = _tar_index(path, stamp(path)).get(member)
    if place is None:
        raise ValueError(f"missing file: {path.name} holds no {member}")
    offset, size = place
    if offset < 0:
        raise ValueError(f"unreadable: {name} is a link or no regular file")
    if size == 0:
        raise ValueError(f"empty file: {name}")
    if size > max_bytes:
        raise ValueError(f"too large: {name} has {size} bytes, the limit is {max_bytes}")
    data = read_range(path, offset, size)
    if len(data) != size:
        raise ValueError(f"unreadable: {name} breaks off after {len(data)} of {size} bytes")
    return data, media_format(data, member, name)


@lru_cache(maxsize=16)
def _tar_index(path: Path, _stamp: str) -> dict[str, tuple[int, int]]:
    """Where the data of each member begin and their length; a beginning of -1 for what is no regular file."""
    index: dict[str, tuple[int, int]] = {}
    with path.open("rb") as file:
        try:
            for member in tar_members(cast(BinaryIO, file)):
                place = (member.offset_data, member.size) if is_plain(member) else (-1, 0)
                index.setdefault(str(PurePosixPath(member.name)), place)
        except ValueError:  # What stands before the damage can be read; readers of rows reject the rest.
            pass
    return index
