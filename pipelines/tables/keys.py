"""Keys of samples: what a row calls itself, in the letters a shard allows."""

import hashlib
import re
from collections.abc import Iterator
from itertools import count
from pathlib import PurePosixPath

from pipelines.tables import columns

MAX_KEY_LENGTH = 64
_HASH_LENGTH = 8
_KEY = re.compile(r"[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?")
_OTHERS = re.compile(r"[^a-z0-9_-]+")


def make_key(raw: str) -> str:
    """Turns any text into a key of at most 64 characters of `[a-z0-9_-]`.

    A text that is a key already stays as it is; any other gets 8 hex digits of its SHA-256, so that what was told
    apart before still is (WebDataset splits names at dots and slashes, and some file systems ignore case).
    """
    if len(raw) <= MAX_KEY_LENGTH and _KEY.fullmatch(raw):
        return raw
    clean = _OTHERS.sub("-", raw.lower()).strip("-")
    digest = hashlib.sha256(raw.encode("utf-8", "surrogatepass")).hexdigest()[:_HASH_LENGTH]
    prefix = clean[: MAX_KEY_LENGTH - _HASH_LENGTH - 1].strip("-")
    return f"{prefix}-{digest}" if prefix else digest


def row_key(index: int, stem: str = "") -> str:
    """The key of the row at `index` of its file, behind the stem of its medium where it has one."""
    return make_key(f"{stem}-{index:07d}" if stem else f"{index:07d}")


def other_keys(key: str, source: str, name: str) -> Iterator[str]:
    """Keys for a row whose own is taken, from where it stands: its medium's path, its file, its place in the file.

    `source` says which row of which file it is (`00001.tar#3`), `name` is its medium's path, empty without one. They
    never end, and none but the row's place decides which they are.
    """
    if make_key(stem_of(name)) == key:
        yield make_key(name)
    yield make_key(f"{source.rpartition('#')[0]}/{key}")
    yield make_key(f"{source}/{key}")
    yield from (make_key(f"{source}/{key}/{number}") for number in count(2))


def stem_of(name: str) -> str:
    """A medium's file name without folders and suffix; empty where it has none: embedded in a table, or a data URI."""
    if name[:5].lower() == "data:":
        return ""
    if is_plain_path(name):
        last = name[name.rfind("/") + 1 :]
        dot = last.rfind(".")
        return last[:dot] if 0 < dot < len(last) - 1 else last
    path = PurePosixPath(name.replace("\\", "/"))
    return "" if any(part.lower().endswith(columns.SUFFIXES) for part in path.parts[:-1]) else path.stem


def is_plain_path(name: str) -> bool:
    """Whether a name is a path as `PurePosixPath` writes it, that leads into no table; told at a tenth of the time."""
    if not name or name[0] in "./" or name[-1] == "/" or "//" in name or "/." in name or "\\" in name:
        return False
    lower = name.lower()
    return not any(suffix in lower for suffix in columns.SUFFIXES)
