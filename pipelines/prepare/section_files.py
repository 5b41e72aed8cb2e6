"""The files of a section that was read: its samples' lines, hashes of what other rows may share, and its rejects."""

import json
import re
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from json.encoder import encode_basestring_ascii
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.sample import Sample, turns_from_json, turns_to_json
from pipelines.storage.files import atomic_path, is_local, read_range, read_rows, write_rows
from pipelines.storage.shards import REJECT_SCHEMA
from pipelines.tables import archives
from pipelines.tables.containers import SUFFIXES, is_inline
from pipelines.tables.keys import is_plain_path, make_key, stem_of

Array = npt.NDArray[Any]

# Of a sample, what tells it from others: its place, and hashes of its medium (or, where it shares none, of its
# content), of its content, its key, the name that may make it another key, and its file.
INDEX = np.dtype(
    [
        ("id", "u8"),
        ("group", "u8"),
        ("content", "u8"),
        ("key", "u8"),
        ("name", "u8"),
        ("file", "u8"),
        ("flags", "u1"),
    ]
)
SHARED, CONTAINED = 1, 2  # Flags: other rows may name its medium; its medium is in a container.
NO_NAME, OWN_NAME = 0, 1  # In place of a hash in `name`: it makes no key; it makes the sample's own.
_JSON = json.JSONEncoder(ensure_ascii=False)
_MAPPED_BYTES = 1 << 20
_HASHED = re.compile(r"(^|-)[0-9a-f]{8}$")
_NUMBERED = pa.schema([("number", pa.int64()), *REJECT_SCHEMA])


class SectionWriter:
    """The samples of a section, as lines and hashes."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._lines, self._ends, self._numbers = list[bytes](), list[int](), list[int]()
        self._end = 0
        self._files: dict[str, int] = {}  # The hash of the file of the row before.
        self.index: list[tuple[int, ...]] = []

    def add(self, row: Sample, number: int, is_pair: bool) -> None:
        """Takes a sample in, which is row `number` of the section."""
        turns = turns_to_json(row.turns)
        content = _hash(turns)
        names = [item.name for item in row.items()]
        medium = _shared(names) if is_pair else ""
        group = _hash(medium, b"medium") if medium else content
        flags = SHARED * bool(medium) + CONTAINED * is_contained(medium)
        file = row.source.rpartition("#")[0]
        if file not in self._files:
            self._files = {file: _hash(file)}
        other = _other_name(row.key, next(filter(None, names), ""))
        place = (self._number << 32) + len(self._lines)
        self.index.append((place, group, content, _hash(row.key), other, self._files[file], flags))
        files = dict.fromkeys(outer_file(name) for name in names if name and not is_inline(name))
        line = f"[{', '.join(map(encode_basestring_ascii, files))}]\t{_fields(row, turns)}\n".encode()
        self._end += len(line)
        self._lines.append(line)
        self._ends.append(self._end)
        self._numbers.append(number)

    def write(self, folder: Path) -> None:
        """Writes the files of the section, those of an earlier reading included."""
        with atomic_path(_path(folder, self._number, "lines")) as temporary:
            temporary.write_bytes(b"".join(self._lines))
        write_array(_path(folder, self._number, "ends.npy"), np.array(self._ends, np.int64))
        write_array(_path(folder, self._number, "numbers.npy"), np.array(self._numbers, np.int64))
        index = np.array(self.index, INDEX)
        write_array(index_path(folder, self._number), index[np.argsort(index["group"], kind="stable")])


class Lines:
    """The samples of a section that was read, by their numbers in it, as lines or as they were."""

    def __init__(self, folder: Path, section: int) -> None:
        self._path = _path(folder, section, "lines")
        self._ends = np.concatenate([[0], read_array(_path(folder, section, "ends.npy"))])
        self.numbers = read_array(_path(folder, section, "numbers.npy"))

    def between(self, start: int, stop: int) -> list[bytes]:
        """The lines of samples `start` to `stop`."""
        begin, end = int(self._ends[start]), int(self._ends[stop])
        return read_range(self._path, begin, end - begin).split(b"\n")[:-1]

    def samples(self, numbers: Sequence[int]) -> Iterator[Sample]:
        """Some samples, in ascending order; the file is read once, from the first to the last of them."""
        if numbers:
            lines = self.between(numbers[0], numbers[-1] + 1)
            yield from (to_sample(split_line(lines[number - numbers[0]])[1]) for number in numbers)


def split_line(line: bytes) -> tuple[list[str], str]:
    """The files of a sample's media, and the sample as JSON."""
    files, _, fields = line.decode().partition("\t")
    return json.loads(files), fields


def to_sample(fields: str) -> Sample:
    """A sample from its JSON."""
    key, source, turns, meta = json.loads(fields)
    return Sample(key=key, source=source, turns=turns_from_json(turns), meta=meta)


def to_line(row: Sample) -> str:
    """A sample as JSON, without its media."""
    return _fields(row, turns_to_json(row.turns))


def _fields(row: Sample, turns: str) -> str:
    return _JSON.encode([row.key, row.source, turns, dict(row.meta)])


def write_rejects(folder: Path, section: int, rejects: list[dict[str, Any]]) -> None:
    """Writes the rejects of a section with the numbers of their rows in it; no file where there are none."""
    path = _path(folder, section, "rejects.parquet")
    if rejects:
        write_rows(path, rejects, _NUMBERED)
    else:
        path.unlink(missing_ok=True)


def read_rejects(folder: Path, section: int) -> list[dict[str, Any]]:
    """The rejects of a section, in order."""
    path = _path(folder, section, "rejects.parquet")
    return read_rows(path) if path.is_file() else []


def index_path(folder: Path, section: int) -> Path:
    """Where the hashes of a section's samples are, sorted by group."""
    return _path(folder, section, "index.npy")


def write_array(path: Path, array: Array) -> None:
    """Writes an array of numbers."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def read_array(path: Path) -> Array:
    """Reads an array; a large local one is mapped, so that what is not looked at is not read."""
    if is_local(path) and path.stat().st_size > _MAPPED_BYTES:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    with path.open("rb") as file:
        return np.load(file, allow_pickle=False)


def shared_medium(pair: Sample) -> str:
    """The name of the one medium of a pair; empty where it has several."""
    return _shared([item.name for item in pair.items()])


def _shared(names: Sequence[str]) -> str:
    if len(names) != 1:
        return ""
    return names[0] if is_inline(names[0]) or is_plain_path(names[0]) else str(PurePosixPath(names[0]))


def is_contained(medium: str) -> bool:
    """Whether a medium is in a container: of several under one name there, only the first can be read."""
    return bool(medium) and not is_inline(medium) and outer_file(medium) != medium


def outer_file(name: str) -> str:
    """The file a medium is in: a container where the name goes on inside of one."""
    if is_plain_path(name) and not any(suffix in name.lower() for suffix in archives.SUFFIXES):
        return name  # As of most, at a tenth of the time.
    parts = PurePosixPath(name).parts
    ends = (place for place, part in enumerate(parts[:-1], 1) if part.lower().endswith(SUFFIXES))
    return str(PurePosixPath(*parts[: next(ends, len(parts))]))


def hash_key(key: str) -> int:
    """The hash by which keys are told apart."""
    return _hash(key)


def _hash(text: str, kind: bytes = b"") -> int:
    data = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(data, digest_size=8, person=kind).digest(), "little")


def _other_name(key: str, name: str) -> int:
    """The hash of the name of a sample's medium, where a key made of it is one of those that the sample may get."""
    # Only a text that is no key by itself gets 8 hex digits; any other is part of the name.
    if not (key in name or _HASHED.search(key)) or make_key(stem_of(name)) != key:
        return NO_NAME
    return OWN_NAME if name == key else _hash(name)


def _path(folder: Path, section: int, suffix: str) -> Path:
    return folder / f"{section:06d}.{suffix}"
