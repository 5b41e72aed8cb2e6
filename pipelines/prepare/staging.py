"""Rows of a source laid out in chunk files, each with a fingerprint of all that its shards will depend on.

The source is read once, in order, by one process; what is costly (media) is done later, chunk by chunk.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath

from pipelines.media.folder import NO_LINKS, Links
from pipelines.media.policy import MediaPolicy
from pipelines.prepare.known_rows import KnownRows
from pipelines.prepare.media_names import with_found_names
from pipelines.progress import Progress
from pipelines.sample import Reject, Sample, Turn, turns_from_json, turns_to_json
from pipelines.sources.entry import Entry
from pipelines.sources.readers import READERS, Reader
from pipelines.sources.rows import MAX_CAPTIONS
from pipelines.storage.files import atomic_path, is_local, remove_tree, stamp, stamps_below
from pipelines.storage.shards import hash_strings, shard_name
from pipelines.tables.containers import SUFFIXES, is_inline

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
    links: Links = NO_LINKS

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
        links = ["follow links"] if self.links.follow else []
        policy = self.policy.model_dump_json()
        return hash_strings([str(PREPROCESS_VERSION), str(self.samples_per_shard), told, policy, *links])


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Samples laid out for preprocessing: how many, their fingerprint, and their media's files with a hash of stamps.

    The fingerprint covers the settings, the rows and the stamps of the media they name.
    """

    rows: int
    fingerprint: str
    media: list[str]
    stamps: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """A source laid out: its chunks, the rejects found while reading, and how many rows are further captions.

    These are no samples of their own, but part of one that an earlier row began.
    """

    chunks: list[Chunk]
    rejects: list[Reject]
    merged: int = 0

    @property
    def rows(self) -> int:
        """How many rows the source has."""
        return len(self.rejects) + self.merged + sum(chunk.rows for chunk in self.chunks)


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
            status = os.stat(os.path.join(self.root, name))  # plain `os`: there may be a million
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
    """Reads the source once, in order, and lays its rows out in chunk files of `samples_per_shard` samples.

    Rows of pairs that name one medium are one sample with all their captions, wherever they stand. Those that come
    after the medium's chunk was written are held in memory to the end, about 1 KB each, and their chunks are
    written again. `read` is the reader to take in place of the entry's.
    """
    read = read or READERS[source.entry.reader]
    remove_tree(source.work / "rows")
    stager = _Stager(source)
    for row in with_found_names(read(source.entry, source.path), source.media):
        reject = row if isinstance(row, Reject) else stager.take(row)
        if reject:
            stager.rejects.append(reject)
        if progress:
            progress.advance(1, rejected=int(reject is not None))
    return stager.finish()


class _Stager:
    """Lays rows out as they come."""

    def __init__(self, source: Source) -> None:
        self.rejects: list[Reject] = []
        self._source, self._size = source, source.samples_per_shard
        self._known, self._stamps = KnownRows(), Stamps(root=source.media)
        self._chunks: list[Chunk] = []
        self._rows: list[Sample] = []
        # By the number of a sample: its further rows, as long as its chunk is not written with them.
        self._further: dict[int, list[Sample]] = {}
        self._merged = Counter[int]()

    def take(self, row: Sample) -> Reject | None:
        """Takes a row in; returns why not where it is none of its own and adds nothing."""
        if "\n" in row.source:  # of a file whose name has line breaks; a line of a sample's source is a row
            row = replace(row, source=row.source.replace("\n", " "))
        if self._known.is_duplicate(row):
            return _rejected(row, f"duplicate key: {row.key}")
        medium = _medium(row) if self._source.entry.modality else ""
        number = self._known.sample_of(medium) if medium else None
        if number is not None:
            return self._add_captions(number, row, medium)
        if len(self._rows) == self._size:
            self._write_chunk()
        number = len(self._chunks) * self._size + len(self._rows)
        self._rows.append(self._known.add(row, number, medium))
        return None

    def finish(self) -> Staged:
        """Writes what is left."""
        if self._rows:
            self._write_chunk()
        for number in sorted({sample // self._size for sample in self._further}):
            rows = self._with_captions(number, list(staged_rows(self._source, number)))
            chunk = self._chunks[number]
            fingerprint = _write_rows(self._source, number, rows, chunk.stamps)
            self._chunks[number] = replace(chunk, fingerprint=fingerprint)
        return Staged(chunks=self._chunks, rejects=self.rejects, merged=self._merged.total())

    def _add_captions(self, number: int, row: Sample, medium: str) -> Reject | None:
        if not is_inline(medium) and _outer(medium) != medium:
            return _rejected(row, f"duplicate key: {row.key}: {medium} is there twice, and only the first can be read")
        if self._merged[number] == MAX_CAPTIONS:
            return _rejected(row, f"too many captions: {MAX_CAPTIONS} more rows than one name {medium}")
        self._known.note(row, number)
        self._merged[number] += 1
        self._further.setdefault(number, []).append(row)
        return None

    def _write_chunk(self) -> None:
        rows = self._with_captions(len(self._chunks), self._rows)
        names = (item.name for row in rows for item in row.items())
        media = list(dict.fromkeys(_outer(name) for name in names if name and not is_inline(name)))
        stamps = self._stamps.of(media)
        fingerprint = _write_rows(self._source, len(self._chunks), rows, stamps)
        self._chunks.append(Chunk(rows=len(rows), fingerprint=fingerprint, media=media, stamps=stamps))
        self._rows = []

    def _with_captions(self, chunk: int, rows: list[Sample]) -> list[Sample]:
        """The samples of a chunk with what further rows say of their media."""
        start = chunk * self._size
        return [_merged(row, self._further.pop(number, [])) for number, row in enumerate(rows, start)]


def _medium(pair: Sample) -> str:
    """The name of the one medium of a pair; empty where it has several."""
    names = [item.name for item in pair.items()]
    if len(names) != 1:
        return ""
    return names[0] if is_inline(names[0]) else str(PurePosixPath(names[0]))


def _merged(row: Sample, further: Sequence[Sample]) -> Sample:
    if not further:
        return row
    (item,) = row.items()
    captions = (caption for other in further for one in other.items() for caption in one.captions)
    told = Turn(role="user", parts=(replace(item, more_captions=(*item.more_captions, *captions)),))
    source = "\n".join(one.source for one in (row, *further))
    return replace(row, source=source, turns=(told, *row.turns[1:]))


def _rejected(row: Sample, reason: str) -> Reject:
    return Reject(source=row.source, key=row.key, stage="read", reason=reason)


def staged_rows(source: Source, chunk: int) -> Iterator[Sample]:
    """Reads back the rows of a chunk."""
    with _rows_path(source, chunk).open(encoding="utf-8") as file:
        for line in file:
            key, origin, turns, meta = json.loads(line)
            yield Sample(key=key, source=origin, turns=turns_from_json(turns), meta=meta)


def part_path(source: Source, part: int) -> Path:
    """The tar of a chunk's accepted samples, while the dataset is being made."""
    return source.work / "parts" / shard_name(part)


def _write_rows(source: Source, chunk: int, rows: Iterable[Sample], stamps: str) -> str:
    """Writes the rows of a chunk; returns its fingerprint."""
    lines = [
        json.dumps([row.key, row.source, turns_to_json(row.turns), dict(row.meta)], ensure_ascii=False) for row in rows
    ]
    with atomic_path(_rows_path(source, chunk)) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return hash_strings([source.content_settings, *lines, stamps])


def _outer(name: str) -> str:
    """The file a medium is in: a container where the name goes on inside of one."""
    parts = PurePosixPath(name).parts
    ends = (place for place, part in enumerate(parts[:-1], 1) if part.lower().endswith(SUFFIXES))
    return str(PurePosixPath(*parts[: next(ends, len(parts))]))


def _rows_path(source: Source, chunk: int) -> Path:
    return source.work / "rows" / f"{chunk:05d}.jsonl"
