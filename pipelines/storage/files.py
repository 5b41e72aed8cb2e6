"""Files that appear whole or not at all, on a local disk or in any object store that fsspec knows.

A path is a `pathlib.Path`, or for a URL (`s3://`, `gs://`, `memory://` ...) a `upath.UPath`, which is used in the same
way and passes for one here. What a local disk alone can do (renaming, links, change times) is hidden in this module.
"""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

COPY_BYTES = 1 << 20
# What goes wrong in writing alone: whoever writes a file may read others meanwhile.
_OF_WRITING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
# Indexes are small; and Arrow's threads, when a short process ends, have been seen to end it with an abort.
_ONE_THREAD: dict[str, Any] = {"use_threads": False, "pre_buffer": False}


def to_path(value: str | Path) -> Path:
    """The absolute path of a local file or folder, or the path of a URL.

    Raises:
        ValueError: nothing that is installed can open such a URL; the message names it.
    """
    if not isinstance(value, str):
        return value.expanduser().resolve() if is_local(value) else value
    if value.startswith("file://") or "://" not in value:
        return Path(value.removeprefix("file://")).expanduser().resolve()
    from upath import UPath  # late: few runs need it

    try:
        path = UPath(value, use_listings_cache=False)  # others may write to it while we look
        path.fs  # noqa: B018 - makes the file system, and so finds what is not installed
    except (ImportError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{value}: cannot be opened: {reason} (extras: nextgpt-ray[s3], nextgpt-ray[gcs])") from None
    return cast(Path, path)


def is_local(path: Path) -> bool:
    """Whether a path is on a disk of this machine."""
    return isinstance(path, Path)


def arrow_filesystem(path: Path) -> Any:
    """The file system of a path that is not local, as Arrow, and so Ray, takes it."""
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    return PyFileSystem(FSSpecHandler(path.fs))  # type: ignore[attr-defined]


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a local temporary path; on success it takes the place of `path` at once, on error it is removed.

    On a local disk it lies beside `path`, is synced and renamed; an object store shows an upload once it is whole.

    Raises:
        OSError: the folder cannot be written to, or the disk is full; it names `path`.
    """
    local = is_local(path)
    with _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent if local else None, prefix=f".{path.name}.")
        os.close(handle)
    temporary = Path(name)
    try:
        with _naming(path, only=_OF_WRITING):
            yield temporary
        with _naming(path):
            _move(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _move(temporary: Path, path: Path) -> None:
    """Puts a finished local file in the place of `path`."""
    if is_local(path):
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    else:
        with temporary.open("rb") as source, path.open("wb") as target:
            shutil.copyfileobj(source, target, COPY_BYTES)
        temporary.unlink()


@contextmanager
def _naming(path: Path, only: Container[int | None] | None = None) -> Iterator[None]:
    """Lets errors of the system name the file that cannot be written, those of the numbers in `only` where given."""
    try:
        yield
    except OSError as error:
        if only is not None and error.errno not in only:
            raise
        reason = os.strerror(error.errno) if error.errno else " ".join(str(error).split())
        raise OSError(error.errno or errno.EIO, reason, str(path)) from error


def stamp(path: Path) -> str:
    """What changes when a file's content does, without opening it; `missing` where it is no file.

    Locally its size, and the times of its content and of its inode (the second cannot be set back); in an object store
    its size and tag.
    """
    try:
        if is_local(path):
            status = path.stat()
            return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
        return _stamp_of(path.fs.info(path.path))  # type: ignore[attr-defined]
    except (OSError, ValueError):
        return "missing"


def stamps_below(folder: Path) -> dict[str, str]:
    """The stamps of all files below a folder of an object store, by their path below it, from its listing alone."""
    assert not is_local(folder)
    files = folder.fs.find(folder.path, detail=True)  # type: ignore[attr-defined]
    start = len(folder.path.rstrip("/")) + 1  # type: ignore[attr-defined]
    return {name[start:]: _stamp_of(info) for name, info in sorted(files.items())}


def _stamp_of(info: dict[str, Any]) -> str:
    return " ".join(str(info.get(name, "")) for name in ("size", "ETag", "etag", "LastModified", "mtime", "created"))


def to_json(value: Any, *, sort_keys: bool = True) -> str:
    """A value as the text of a JSON file; equal values give equal text."""
    return json.dumps(value, indent=1, sort_keys=sort_keys, ensure_ascii=False) + "\n"


def write_json(path: Path, value: Any, *, sort_keys: bool = True) -> None:
    """Writes JSON atomically; `sort_keys=False` keeps the order of mappings where it has a meaning."""
    write_text(path, to_json(value, sort_keys=sort_keys))


def write_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path) -> Any:
    """Reads JSON; a file that is no JSON is a ValueError naming it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); mend or delete it and run the job again") from error


def read_json_lines(path: Path) -> list[Any]:
    """The values of a JSON-lines file without an incomplete last line; none where there is no such file."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []
    return [json.loads(line) for line in lines]


def write_rows(path: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    """Writes rows of a fixed schema as Parquet, atomically."""
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), temporary, write_page_checksum=True)


def share_file(path: Path, target: Path) -> None:
    """Puts a file at a second place too, atomically: by a hard link where the disk has them, else by a copy."""
    temporary = target.with_name(f".{target.name}.link")
    try:
        temporary.unlink(missing_ok=True)
        os.link(path, temporary)
    except OSError:  # no such links here, or none across disks
        with atomic_path(target) as copy:
            shutil.copyfile(path, copy)
    else:
        temporary.replace(target)


def is_sound(path: Path) -> bool:
    """Whether a Parquet file is there and all of its pages have the checksums they were written with."""
    try:
        with path.open("rb") as file:
            pq.read_table(file, page_checksum_verification=True, **_ONE_THREAD)
    except (OSError, pa.ArrowException):
        return False
    return True


def read_metadata(path: Path) -> dict[str, str]:
    """The key-value metadata of a Parquet file's schema."""
    with path.open("rb") as file:
        return {key.decode(): value.decode() for key, value in (pq.read_schema(file).metadata or {}).items()}


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Reads a Parquet file as a table."""
    with path.open("rb") as file:
        return pq.read_table(file, columns=columns, **_ONE_THREAD)


def read_rows(path: Path, columns: list[str] | None = None) -> list[dict[str, Any]]:
    """Reads a Parquet file as dictionaries."""
    return read_table(path, columns).to_pylist()


def read_range(path: Path, offset: int, length: int) -> bytes:
    """Reads a byte range of a file."""
    with path.open("rb") as file:
        return read_at(cast(BinaryIO, file), offset, length)


def read_at(file: BinaryIO, offset: int, length: int) -> bytes:
    """Reads a byte range of an open file; may be shorter at its end."""
    file.seek(offset)
    return file.read(length)


def remove_tree(path: Path) -> None:
    """Removes a folder if it is there."""
    if not path.exists():
        return
    if is_local(path):
        shutil.rmtree(path)
    else:
        path.fs.rm(path.path, recursive=True)  # type: ignore[attr-defined]
