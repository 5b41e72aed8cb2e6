"""Rows of a source laid out in chunk files, each with a fingerprint of all that its shards will depend on.

The source is read section by section (`reading`), what is the same or shares a medium or a key is found (`known_rows`),
and the samples are laid out; what is costly (media) is done later, chunk by chunk.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.media.folder import NO_LINKS, Links
from pipelines.media.policy import MediaPolicy
from pipelines.prepare.known_rows import Settled, settle
from pipelines.prepare.media_names import listed_stamps, write_listing
from pipelines.prepare.pieces import Piece, plan_pieces
from pipelines.prepare.reading import Reading, Run, in_process, read_source
from pipelines.prepare.rows_in_order import DUPLICATE, RENAMED, TOO_MANY, TWICE, renamed
from pipelines.prepare.section_files import (
    Array,
    Lines,
    read_rejects,
    shared_medium,
    split_line,
    to_line,
    to_sample,
    write_rejects,
)
from pipelines.progress import Progress
from pipelines.sample import Reject, Sample, Turn
from pipelines.sources.entry import Entry
from pipelines.sources.readers import READERS, Reader
from pipelines.sources.rows import MAX_CAPTIONS
from pipelines.storage.files import atomic_path, is_local, read_json, remove_tree, stamp, stamps_below, write_json
from pipelines.storage.shards import hash_strings, shard_name

WORK = ".work"
# Raised when the same input would give other bytes, so that nothing old is taken for finished.
PREPROCESS_VERSION = 4
_TASK_ROWS = 1 << 14
_OPEN_SECTIONS = 16
_NUMBER = (1 << 32) - 1  # The bits of a sample's place that are its number in its section.
_REASONS = {
    DUPLICATE: "duplicate key: {key}",
    TWICE: "duplicate key: {key}: {medium} is there twice, and only the first can be read",
    TOO_MANY: f"too many captions: {MAX_CAPTIONS} more rows than one name {{medium}}",
}


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
    """Samples laid out for preprocessing: how many, their fingerprint, and a hash of the stamps of their media's files.

    The fingerprint covers the settings, the rows and the stamps of the media they name.
    """

    rows: int
    fingerprint: str
    stamps: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """A source laid out: its chunks, how many rows it has, and how many of these only add captions to an earlier one.

    `rejected` counts the rows rejected while reading by the category of the reason; which they are, files of `sections`
    sections say.
    """

    folder: Path
    chunks: list[Chunk]
    sections: int
    rows: int
    merged: int
    rejected: dict[str, int]

    def rejects(self) -> Iterator[Reject]:
        """The rows rejected while reading, in their order."""
        for section in range(self.sections):
            for fields in read_rejects(self.folder, section):
                yield Reject(**{name: value for name, value in fields.items() if name != "number"})


@dataclass(kw_only=True)
class Stamps:
    """The stamps of files below a media folder, which change when a file's content does; nothing is opened.

    `listing` is what `write_listing` wrote of one in an object store, which is else asked now.
    """

    root: Path | None
    listing: Path | None = None

    def of(self, files: Sequence[str]) -> str:
        """One hash for the stamps of files, in the order given."""
        if self.listing:
            listed = listed_stamps(self.listing, files)
            return hash_strings([f"{name} {listed.get(name, 'missing')}" for name in files])
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
        """What a rerun compares: an object store is asked once for all, not once a file."""
        assert self.root is not None
        return stamps_below(self.root)


def source_stamp(path: Path) -> str:
    """The stamp of a source's file, or of all files of its folder; nothing is opened."""
    if not path.is_dir():
        return stamp(path)
    if not is_local(path):
        return hash_strings([f"{name} {value}" for name, value in stamps_below(path).items()])
    return Stamps(root=path).of(sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()))


def stage_rows(
    source: Source, progress: Progress | None = None, read: Reader | None = None, run: Run = in_process
) -> Staged:
    """Reads the source and lays its rows out in chunk files of `samples_per_shard` samples.

    Rows of pairs that name one medium are one sample with all their captions, wherever they stand. `read` is the reader
    to take in place of the entry's; `run` makes a task of each piece of work, where there are several.
    """
    remove_staged(source)
    folder = source.work / "read"
    read = read or READERS[source.entry.reader]
    listing = _list_media(source, folder / "listing.parquet", run)
    reading = Reading(
        entry=source.entry, path=source.path, media=source.media, read=read, folder=folder, listing=listing
    )
    counts = read_source(reading, _several(run), progress)
    settled = settle(folder, counts, source.entry.modality is not None, run)
    _reject(folder, settled, _several(run))
    kept = [found.samples - settled.dropped[section] for section, found in enumerate(counts)]
    rejected = Counter(settled.rejected)
    for found in counts:
        rejected.update(found.rejected)
    return Staged(
        folder=folder,
        chunks=_lay_chunks(source, settled, listing, plan_pieces(kept, source.samples_per_shard), _several(run)),
        sections=len(counts),
        rows=sum(found.rows for found in counts),
        merged=settled.merged.total(),
        rejected=dict(rejected),
    )


def remove_staged(source: Source) -> None:
    """Removes what `stage_rows` wrote."""
    for name in ("rows", "read"):
        remove_tree(source.work / name)


def _list_media(source: Source, listing: Path, run: Run) -> Path | None:
    """Lists the media of an object store, in a task: there may be very many."""
    media = source.media
    if media is None or is_local(media):
        return None

    def step(row: dict[str, Any]) -> dict[str, Any]:
        write_listing(media, listing)
        return row

    list(run([{"listing": 0}], step))
    return listing


def _several(run: Run) -> Run:
    """Runs a single piece of work here, as several are by `run`."""
    return lambda rows, step: (run if len(rows) > 1 else in_process)(rows, step)


def _reject(folder: Path, settled: Settled, run: Run) -> None:
    """Adds to the rejects of each section those of its samples that are none of their own."""

    def step(row: dict[str, Any]) -> dict[str, Any]:
        section = row["section"]
        lines, changes = Lines(folder, section), settled.changes(section)
        rejects = read_rejects(folder, section)
        changes = changes[np.isin(changes["kind"], list(_REASONS))]
        numbers = (changes["id"] & np.uint64(_NUMBER)).tolist()
        for kind, number, sample in zip(changes["kind"].tolist(), numbers, lines.samples(numbers), strict=True):
            reason = _REASONS[kind].format(key=sample.key, medium=shared_medium(sample))
            reject = Reject(source=sample.source, key=sample.key, stage="read", reason=reason)
            rejects.append({"number": int(lines.numbers[number]), **asdict(reject)})
        write_rejects(folder, section, sorted(rejects, key=lambda reject: int(reject["number"])))
        return row

    list(run([{"section": section} for section in sorted(settled.rejecting)], step))


def _lay_chunks(
    source: Source, settled: Settled, listing: Path | None, plan: Sequence[Sequence[Piece]], run: Run
) -> list[Chunk]:
    """Lays samples out, several chunks a task."""
    several = max(1, _TASK_ROWS // source.samples_per_shard)

    def step(row: dict[str, Any]) -> dict[str, Any]:
        laying = _Laying(source, settled, listing)
        numbers = range(row["first"], min(row["first"] + several, len(plan)))
        return row | {"chunks": json.dumps([asdict(laying.chunk(number, plan[number])) for number in numbers])}

    found = {row["first"]: row["chunks"] for row in run([{"first": n} for n in range(0, len(plan), several)], step)}
    return [Chunk(**chunk) for first in sorted(found) for chunk in json.loads(found[first])]


class _Laying:
    """Lays out chunks of samples that were read."""

    def __init__(self, source: Source, settled: Settled, listing: Path | None) -> None:
        self._source, self._settled = source, settled
        self._stamps = Stamps(root=source.media, listing=listing)
        self._section = lru_cache(maxsize=_OPEN_SECTIONS)(self._open)

    def chunk(self, number: int, pieces: Iterable[Piece]) -> Chunk:
        """Writes a chunk's samples and the names of their media's files."""
        media: dict[str, None] = {}
        lines = list[str]()
        for piece in pieces:
            for files, line in self._samples(piece):
                media.update(dict.fromkeys(files))
                lines.append(line)
        stamps = self._stamps.of(list(media))
        with atomic_path(_rows_path(self._source, number)) as temporary:
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
        write_json(_media_path(self._source, number), list(media))
        fingerprint = hash_strings([self._source.content_settings, *lines, stamps])
        return Chunk(rows=len(lines), fingerprint=fingerprint, stamps=stamps)

    def _open(self, section: int) -> tuple[Lines, Array, dict[int, int]]:
        """The lines of a section, which of them are samples of their own, and the choices of those that are renamed."""
        lines, changes = Lines(self._settled.folder, section), self._settled.changes(section)
        numbers = (changes["id"] - np.uint64(section << 32)).astype(np.int64)
        is_renamed = changes["kind"] == RENAMED
        choices = dict(zip(numbers[is_renamed].tolist(), changes["choice"][is_renamed].tolist(), strict=True))
        return lines, np.delete(np.arange(len(lines.numbers)), numbers[~is_renamed]), choices

    def _samples(self, piece: Piece) -> Iterator[tuple[list[str], str]]:
        lines, own, choices = self._section(piece.part)
        taken = own[piece.start : piece.stop]
        first, stop = int(taken[0]), int(taken[-1]) + 1
        further = self._further(piece.part, first, stop)
        found = lines.between(first, stop)
        for number in taken.tolist():
            files, line = split_line(found[number - first])
            if number in choices or number in further:
                row = to_sample(line)
                row = renamed(row, choices[number]) if number in choices else row
                line = to_line(_merged(row, further.get(number, [])))
            yield files, line

    def _further(self, section: int, start: int, stop: int) -> dict[int, list[Sample]]:
        """The samples that are further captions of samples of a section, by the number of these."""
        found: dict[int, list[Sample]] = {}
        for change in self._settled.further(section, start, stop):
            lines, _, _ = self._section(int(change["id"]) >> 32)
            samples = lines.samples([int(change["id"]) & _NUMBER])
            found.setdefault(int(change["leader"]) & _NUMBER, []).extend(samples)
        return found


def _merged(row: Sample, further: Sequence[Sample]) -> Sample:
    if not further:
        return row
    (item,) = row.items()
    captions = (caption for other in further for one in other.items() for caption in one.captions)
    told = Turn(role="user", parts=(replace(item, more_captions=(*item.more_captions, *captions)),))
    source = "\n".join(one.source for one in (row, *further))
    return replace(row, source=source, turns=(told, *row.turns[1:]))


def staged_rows(source: Source, chunk: int) -> Iterator[Sample]:
    """Reads back the rows of a chunk."""
    with _rows_path(source, chunk).open(encoding="utf-8") as file:
        yield from map(to_sample, file)


def staged_media(source: Source, chunk: int) -> list[str]:
    """The files of the media of a chunk, those that its `stamps` are of."""
    names: list[str] = read_json(_media_path(source, chunk))
    return names


def part_path(source: Source, part: int) -> Path:
    """The tar of a chunk's accepted samples, while the dataset is being made."""
    return source.work / "parts" / shard_name(part)


def _rows_path(source: Source, chunk: int) -> Path:
    return source.work / "rows" / f"{chunk:05d}.jsonl"


def _media_path(source: Source, chunk: int) -> Path:
    return source.work / "rows" / f"{chunk:05d}.media.json"
