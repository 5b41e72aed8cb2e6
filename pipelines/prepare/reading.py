"""A source read section by section, a task each: its rows lie in files then, with hashes of what other rows may share.

Which sections there are, a first pass over each file says. What reading finds counts: where a file gives other rows
than that pass saw, because it is damaged, it is read as a whole, and what stands behind it once more.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.prepare.media_names import with_found_names
from pipelines.prepare.section_files import SectionWriter, write_rejects
from pipelines.progress import Progress
from pipelines.sample import Reject
from pipelines.sources.entry import Entry
from pipelines.sources.readers import Reader
from pipelines.tables import formats
from pipelines.tables.raw import START, Cut, Place, Section

# Calls a step with each of some rows, a task each or here, and gives what it returns, in any order.
Run = Callable[[list[dict[str, Any]], Callable[[dict[str, Any]], dict[str, Any]]], Iterable[dict[str, Any]]]

SECTION_ROWS = 1 << 14
_MOST_SECTIONS = 1 << 11
_SMALL_BYTES = 1 << 21  # A source that is read sooner than tasks are started.


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What is read, and the folder for what was read."""

    entry: Entry
    path: Path
    media: Path | None
    read: Reader
    folder: Path
    listing: Path | None = None  # Of media in an object store, see `media_names`.


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What reading a section found: its rows, the samples among them, why others were rejected, if it broke off."""

    rows: int
    samples: int
    rejected: dict[str, int]
    is_broken: bool


def in_process(
    rows: list[dict[str, Any]], step: Callable[[dict[str, Any]], dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Calls a step with each of some rows, here and now."""
    return map(step, rows)


def read_source(reading: Reading, run: Run, progress: Progress | None = None) -> list[Counts]:
    """Reads all of a source; returns what was found, by section.

    Raises:
        ValueError, OSError: it cannot be read.
    """
    sections = _plan(reading, run)
    found: dict[int, tuple[Section, Counts]] = {}
    while todo := [number for number, section in enumerate(sections) if (found.get(number) or [None])[0] != section]:
        for number, counts in _read_sections(reading, sections, todo, run):
            found[number] = sections[number], counts
            if progress:
                progress.advance(counts.rows, rejected=sum(counts.rejected.values()))
        sections = _mended(sections, [found[number][1] for number in range(len(sections))])
    return [found[number][1] for number in range(len(sections))]


def _plan(reading: Reading, run: Run) -> list[Section]:
    """The sections of a source, by what its files say of themselves."""
    whole = formats.whole(reading.path, reading.entry.patterns(reading.path))
    if sum(_size(cut.file) for cut in whole.cuts) <= _SMALL_BYTES:
        return [whole]
    last = len(whole.cuts) - 1

    def survey(row: dict[str, Any]) -> dict[str, Any]:
        cut = whole.cuts[row["file"]]
        places, rows = formats.survey(cut.file, cut.name, is_counted=row["file"] < last)
        return row | {"rows": rows, "places": json.dumps(places)}

    surveys: list[tuple[list[Place], int]] = [([], 0)] * len(whole.cuts)
    for row in run([{"file": number} for number in range(len(whole.cuts))], survey):
        surveys[row["file"]] = [Place(*place) for place in json.loads(row["places"])], row["rows"]
    per_section = max(SECTION_ROWS, sum(rows for _, rows in surveys) // _MOST_SECTIONS)
    return list(_sections(whole, surveys, per_section))


def _sections(whole: Section, surveys: Sequence[tuple[list[Place], int]], per_section: int) -> Iterator[Section]:
    """Files that are cut, and between them as many others together as have rows enough for a section."""
    index, held, held_rows = 0, list[Cut](), 0
    for cut, (places, rows) in zip(whole.cuts, surveys, strict=True):
        cuts = list(formats.cuts(cut.file, cut.name, places, per_section))
        if held and (len(cuts) > 1 or held_rows + rows > per_section):
            yield replace(whole, cuts=tuple(held), index=index - held_rows)
            held, held_rows = [], 0
        if len(cuts) > 1:
            yield from (replace(whole, cuts=(one,), index=index + one.place.row) for one in cuts)
        else:
            held, held_rows = [*held, cut], held_rows + rows
        index += rows
    if held:
        yield replace(whole, cuts=tuple(held), index=index - held_rows)


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0  # It is a row with an error.


def _mended(sections: Sequence[Section], counts: Sequence[Counts]) -> list[Section]:
    """The sections as they are to be read, by what reading them found: the same where all is as it was expected.

    Where it is not, the file's first section becomes all of it, the others nothing; then it is read before those that
    stand behind it, whose rows have other numbers.
    """
    bad = {
        section.cuts[0].file
        for section, found in zip(sections, counts, strict=True)
        if section.cuts and section.cuts[0].rows is not None
        if found.is_broken or found.rows != section.cuts[0].rows
    }
    mended, index = list[Section](), 0
    for section, found in zip(sections, counts, strict=True):
        is_bad = bool(section.cuts) and section.cuts[0].file in bad
        if is_bad and section.cuts[0].place == START:
            mended.append(replace(section, cuts=(replace(section.cuts[0], rows=None),), index=index))
        elif is_bad or not section.cuts:
            mended.append(replace(section, cuts=(), index=0))
        else:
            mended.append(section if bad else replace(section, index=index))
        index += found.rows
    return mended


def _read_sections(
    reading: Reading, sections: Sequence[Section], numbers: Iterable[int], run: Run
) -> Iterator[tuple[int, Counts]]:
    def step(row: dict[str, Any]) -> dict[str, Any]:
        counts = _read_section(reading, row["section"], sections[row["section"]])
        return row | {"counts": json.dumps(asdict(counts))}

    for row in run([{"section": number} for number in numbers], step):
        yield row["section"], Counts(**json.loads(row["counts"]))


def _read_section(reading: Reading, number: int, section: Section) -> Counts:
    """Reads a section into its files: the samples' lines, their hashes, and the rejects."""
    laid, rejects, is_broken, count = SectionWriter(number), list[dict[str, Any]](), False, 0
    for count, row in enumerate(
        with_found_names(reading.read(reading.entry, section), reading.media, reading.listing), 1
    ):
        if isinstance(row, Reject):
            rejects.append({"number": count - 1, **asdict(row)})
            is_broken = is_broken or not row.key
        else:
            # A file's name may have line breaks; a line of a sample's source is a row.
            laid.add(
                replace(row, source=row.source.replace("\n", " ")) if "\n" in row.source else row,
                count - 1,
                bool(reading.entry.modality),
            )
    laid.write(reading.folder)
    write_rejects(reading.folder, number, rejects)
    reasons = Counter(str(reject["reason"]).partition(":")[0] for reject in rejects)
    return Counts(rows=count, samples=len(laid.index), rejected=dict(reasons), is_broken=is_broken)
