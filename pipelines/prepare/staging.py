"""Rows of a source laid out in chunk files, each with a fingerprint of all that its shards will depend on.

The source is read once, in order, by one process; what is costly (media) is done later, chunk by chunk.
"""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

from pipelines.media.policy import MediaPolicy
from pipelines.prepare.known_rows import KnownRows
from pipelines.progress import Progress
from pipelines.sample import Reject, Sample, turns_from_json, turns_to_json
from pipelines.sources.entry import Entry
from pipelines.sources.readers import READERS, Reader
from pipelines.storage.files import atomic_path, is_local, remove_tree, stamp, stamps_below
from pipelines.storage.shards import hash_strings, shard_name
from pipelines.tables.containers import SUFFIXES

WORK = ".work"
# Raised when the same input would give other bytes, so that nothing old is taken for finished.
PREPROCESS_VERSION = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where one dataset's rows and media lie, how media are stored, and where the shards go."""

    entry: Entry
    path: Path
    media: Path | None
    directory: Path
    samples_per_shard: int
    policy: MediaPolicy = field(default_factory=MediaPolicy)

    @property
    def work(self) -> Path:
        """The folder of unfinished work; gone once the manifest is written."""
        return self.directory / WORK

    @property
    def settings(self) -> str:
        """A hash of all that a dataset's folder depends on beside rows and media."""
        return hash_strings([self.content_settings, self.entry.model_dump_json()])

    @property
    def content_settings(self) -> str:
        """A hash of what the samples depend on: another licence is no reason to read a million images again."""
        told = self.entry.model_dump_json(exclude={"paths", "media", "licence", "source"})
        return hash_strings([str(PREPROCESS_VERSION), str(self.samples_per_shard), told, self.policy.model_dump_json()])


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Rows laid out for preprocessing: how many, their fingerprint, and the files of their media with a hash of stamps.

    The fingerprint covers the settings, the rows and the stamps of the media they name.
    """

    rows: int
    fingerprint: str
    media: list[str]
    stamps: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """A source laid out: its chunks, and the rejects found while reading."""

    chunks: list[Chunk]
    rejects: list[Reject]


@dataclass(kw_only=True)
class Stamps:
    """The stamps of files below a media folder, which change when a file's content does; nothing is opened."""

    root: Path | None

    def of(self, files: Iterable[str]) -> str:
        """One hash for the stamps of files, in the order given."""
        return hash_strings([f"{name} {self._stamp(name)}" for name in files])

    def _stamp(self, name: str) -> str:
        if self.root is None:
            return "missing"
        if not is_local(self.root):
            return self._listing.get(name, "missing")
        try:
            status = os.stat(f"{self.root}/{name}")  # plain `os`: there may be a million
        except (OSError, ValueError):
            return "missing"
        return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"

    @cached_property
    def _listing(self) -> dict[str, str]:
        """An object store is asked once for all, not once a file."""
        assert self.root is not None
        return stamps_below(self.root)


def source_stamp(path: Path) -> str:
    """The stamp of a source's file, or of all files of its folder; nothing is opened."""
    if not path.is_dir():
        return stamp(path)
    if not is_local(path):
        return hash_strings([f"{name} {value}" for name, value in stamps_below(path).items()])
    return Stamps(root=path).of(sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()))


def stage_rows(source: Source, progress: Progress | None = None, read: Reader | None = None) -> Staged:
    """Reads the source once, in order, and lays its rows out in chunk files of `samples_per_shard` rows.

    `read` is the reader to take in place of the entry's.
    """
    read = read or READERS[source.entry.reader]
    chunks, rejects, rows, known, count = list[Chunk](), list[Reject](), list[Sample](), KnownRows(), 0
    stamps = Stamps(root=source.media)
    remove_tree(source.work / "rows")
    for row in read(source.entry, source.path):
        if isinstance(row, Sample):
            row = known.admit(row, count)
        if progress:
            progress.advance(1, rejected=int(isinstance(row, Reject)))
        if isinstance(row, Reject):
            rejects.append(row)
            continue
        count += 1
        rows.append(row)
        if len(rows) == source.samples_per_shard:
            chunks.append(_stage_chunk(source, len(chunks), rows, stamps))
            rows = []
    if rows:
        chunks.append(_stage_chunk(source, len(chunks), rows, stamps))
    return Staged(chunks=chunks, rejects=rejects)


def staged_rows(source: Source, chunk: int) -> Iterator[Sample]:
    """Reads back the rows of a chunk."""
    with _rows_path(source, chunk).open(encoding="utf-8") as file:
        for line in file:
            key, origin, turns, meta = json.loads(line)
            yield Sample(key=key, source=origin, turns=turns_from_json(turns), meta=meta)


def part_path(source: Source, part: int) -> Path:
    """The tar of a chunk's accepted samples, while the dataset is being made."""
    return source.work / "parts" / shard_name(part)


def _stage_chunk(source: Source, chunk: int, rows: list[Sample], stamps: Stamps) -> Chunk:
    lines = [
        json.dumps([row.key, row.source, turns_to_json(row.turns), dict(row.meta)], ensure_ascii=False) for row in rows
    ]
    with atomic_path(_rows_path(source, chunk)) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    media = list(dict.fromkeys(_outer(item.name) for row in rows for item in row.items() if item.name))
    stamped = stamps.of(media)
    fingerprint = hash_strings([source.content_settings, *lines, stamped])
    return Chunk(rows=len(rows), fingerprint=fingerprint, media=media, stamps=stamped)


def _outer(name: str) -> str:
    """The file a medium is in: a container where the name goes on inside of one."""
    parts = PurePosixPath(name).parts
    ends = (place for place, part in enumerate(parts[:-1], 1) if part.lower().endswith(SUFFIXES))
    return "/".join(parts[: next(ends, len(parts))])


def _rows_path(source: Source, chunk: int) -> Path:
    return source.work / "rows" / f"{chunk:05d}.jsonl"
