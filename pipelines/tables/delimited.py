"""Rows of CSV and TSV files: which delimiter they have, and whether quotes are quoting, their content says.

A field is quoted where it begins with a quote and ends with one before a delimiter or the end of a line, those inside
doubled: so csv, pandas and spreadsheets write. Any other quote is a character like others: captions begin with some.
"""

import io
import re
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pipelines.tables.decompression import open_text, plain_suffix
from pipelines.tables.lines import HEAD_BYTES, MAX_CELL_CHARACTERS, line_places, text_lines
from pipelines.tables.raw import START, Place, Raw

_DELIMITERS = (",", "\t", ";")
_NAMES_SEEN = 4  # How many, of which none is another, make a column one of names.
_ROWS_APART = 1024  # Places where a file can be cut.
_MAX_RECORD_CHARACTERS = 2 * MAX_CELL_CHARACTERS
_UNNAMED = re.compile(r"(Unnamed: \d+(_level_\d+)?)?")
_ADDRESS = re.compile(r"https?://\S+")
_MEDIUM = re.compile(r"\S+\.(jpe?g|png|webp|gif|bmp|mp4|webm|mkv|mov|avi|wav|flac|mp3|ogg|m4a)", re.IGNORECASE)
# A cell that no line break can have cut: a number, a file, an id with digits.
_NAME = re.compile(r"\S*(\d|[./\\_](?=\S))\S*")


class _Record(NamedTuple):
    """The cells that lines from `line` on hold, and how they were read.

    `is_quoted` says of a record with quotes whether they are quoting, None of any other. `is_apart`: a blank line is
    in front. `open_first`, `open_last`: no quotes are around the first or last cell, so that it may have been cut.
    """

    line: int
    cells: list[str]
    is_apart: bool = False
    is_quoted: bool | None = None
    open_first: bool = True
    open_last: bool = True


class _Dialect(NamedTuple):
    """How a file is written. Where `trusts_quotes` is False, most quotes in it are characters like others."""

    delimiter: str
    columns: int
    trusts_quotes: bool = True


def csv_rows(path: Path, name: str, place: Place = START) -> Iterator[Raw]:
    """The rows of a CSV or TSV file under the names of its first line; all cells are text.

    Columns without a name are left out. A row with another number of cells is an error that names its line, and so is
    a row next to it that an unquoted line break may have cut. CC3M's and CC12M's own files need no first line.

    Raises:
        ValueError: the first line names no columns, one twice, or is a row.
    """
    layout = _layout(path)
    with open_text(path, place.at) as file:
        records = _records(_Lines(text_lines(file), place.line), layout.dialect)
        if place.row:  # It begins with the row in front, which says whether a line break cut the next.
            yield from islice(_rows(records, layout, name, place.row - 1), 1, None)
            return
        if layout.has_header:
            next(records, None)
        yield from _rows(records, layout, name)


def csv_places(path: Path) -> tuple[list[Place], int]:
    """Places where a file can be read from, and how many rows it has; all quotes are followed, no row is made.

    Raises:
        ValueError: as of `csv_rows`.
    """
    layout, count = _layout(path), 0
    found: list[tuple[int, int]] = []  # How many rows and lines there are before a place.
    with open_text(path) as file:
        records = _records(_Lines(text_lines(file)), layout.dialect)
        if layout.has_header:
            next(records, None)
        for count, record in enumerate(records, 1):
            if count % _ROWS_APART == 0:
                found.append((count, record.line - 1))
    with open_text(path) as file:
        places = line_places(file, (line for _, line in found))
        return [Place(row, at, line) for (row, line), at in zip(found, places, strict=True)], count


class _Layout(NamedTuple):
    """What the beginning of a file says of all of it.

    `is_named`: the first or the last column holds names or numbers, so that other words in it are a piece of a caption.
    """

    dialect: "_Dialect"
    columns: list[str]
    has_header: bool
    is_named: tuple[bool, bool] = (False, False)


def _layout(path: Path) -> _Layout:
    with open_text(path) as file:
        head = file.read(HEAD_BYTES)
    lines = _complete_lines(head)
    dialect = _dialect(lines, plain_suffix(path))
    records = [record.cells for record in _records(_Lines(lines), dialect)]
    header = records[0] if records else []
    known = _known_header(header, dialect)
    if known is None:
        _check_header(path, header)
    rows = [cells for cells in records[known is None :] if len(cells) == len(header)]
    first, last = (_are_names([cells[place] for cells in rows]) for place in (0, -1))
    return _Layout(dialect, known or header, known is None, (first, last))


def _are_names(cells: list[str]) -> bool:
    """Whether a column holds names or numbers, but for a few cells."""
    names, others = {cell for cell in cells if _NAME.fullmatch(cell)}, sum(map(_may_be_cut, cells))
    return len(names) >= _NAMES_SEEN and others <= max(1, len(cells) // 50)


def _complete_lines(head: bytes) -> list[str]:
    """The lines of the beginning of a file, without one that goes on behind it."""
    lines = list(text_lines(io.BytesIO(head)))
    return lines[:-1] if len(head) == HEAD_BYTES and len(lines) > 1 else lines


def _dialect(lines: list[str], suffix: str) -> _Dialect:
    """How a file is written that begins with these lines."""
    first = {".tsv": "\t", ".tab": "\t"}.get(suffix, ",")
    candidates = [_candidate(lines, delimiter) for delimiter in sorted(_DELIMITERS, key=lambda each: each != first)]
    return max(candidates, key=lambda candidate: candidate[0])[1]


def _candidate(lines: list[str], delimiter: str) -> tuple[tuple[bool, float, int], _Dialect]:
    """How well a delimiter fits: whether it is in the first line, the share of rows of its width, the width."""
    width = len(next(_records(_Lines(lines), _Dialect(delimiter, 0)), _Record(1, [])).cells)
    dialect = _Dialect(delimiter, width)
    records = list(_records(_Lines(lines), dialect))
    fitting = sum(len(record.cells) == width for record in records) / max(1, len(records))
    evidence = sum(1 if record.is_quoted else -1 for record in records if record.is_quoted is not None)
    return (width > 1, fitting, width), dialect._replace(trusts_quotes=evidence >= 0)


def _known_header(cells: list[str], dialect: _Dialect) -> list[str] | None:
    """The names of the columns of files that are published without them: CC3M, and CC12M the other way round."""
    if dialect.delimiter != "\t" or len(cells) != 2:
        return None
    first, second = (bool(_ADDRESS.fullmatch(cell)) for cell in cells)
    return None if first == second else ["url", "caption"] if first else ["caption", "url"]


def _check_header(path: Path, header: list[str]) -> None:
    named = [cell for cell in header if not _UNNAMED.fullmatch(cell)]
    shown = ",".join(header)[:80]
    if not named or len(set(named)) < len(named):
        raise ValueError(f"{path}: its first line must name every column once; it is {shown!r}")
    if any(_ADDRESS.fullmatch(cell) or _MEDIUM.fullmatch(cell) for cell in named):
        raise ValueError(f"{path}: its first line is a row, {shown!r}; put one in front that names every column once")


def _rows(records: Iterator[_Record], layout: _Layout, name: str, first: int = 0) -> Iterator[Raw]:
    """A row of each record, with one in hand: what the next line is may show that it was cut."""
    header = layout.columns
    unnamed = [column for column in header if _UNNAMED.fullmatch(column)]
    width = len(header)
    last, was_whole, held = _Record(0, header, open_last=False), True, list[Raw]()
    for count, record in enumerate(records, first):
        cells = record.cells
        is_whole = len(cells) == width and len(cells[-1]) <= MAX_CELL_CHARACTERS
        error = "" if is_whole and was_whole else _error(record, last, width)
        if is_whole and was_whole and held and (seam := _seam(record, last, layout)):
            error, held = seam, [Raw(source=held[0].source, error=seam)]
        if error or not is_whole:
            raw = Raw(source=f"{name}#{count}", error=error)
        else:
            raw = Raw(source=f"{name}#{count}", value=dict(zip(header, cells, strict=True)))
            for column in unnamed:
                raw.value.pop(column, None)
        if was_whole and held and len(cells) < width and last.open_last and _may_be_cut(last.cells[-1]):
            held = [Raw(source=held[0].source, error=_cut(last, record, width))]
        yield from held
        last, was_whole, held = record, is_whole, [raw]
    yield from held


def _error(record: _Record, last: _Record, width: int) -> str:
    """Why a record is no row, after the one in front; empty where it is one."""
    cells = record.cells
    if _is_too_long(cells):
        return f"bad row: field larger than field limit ({MAX_CELL_CHARACTERS})"
    if len(cells) != width:
        return f"bad row: {len(cells)} cells under {width} columns (line {record.line})"
    follows_part = len(last.cells) < width and not record.is_apart and not _is_too_long(last.cells)
    if follows_part and record.open_first and last.open_last and _may_be_cut(cells[0]):
        return _cut(record, last, width)
    return ""


def _seam(record: _Record, last: _Record, layout: _Layout) -> str:
    """Why two rows, each of the right width, are none: one goes on in words where the other ended in some."""
    if not (any(layout.is_named) and last.open_last and record.open_first) or record.is_apart:
        return ""
    if not (_may_be_cut(record.cells[0]) and _may_be_cut(last.cells[-1])):
        return ""
    # Both have the right width where the caption holds a delimiter without quotes; in prose, a space follows it.
    if not any(cell.startswith(" ") for cell in (*last.cells[1:], *record.cells[1:])):
        return ""
    cell, column = (record.cells[0], 0) if layout.is_named[0] else (last.cells[-1], -1)
    what = f"{cell.strip()[:40]!r} is no {layout.columns[column]}"
    return f"bad row: lines {last.line} and {record.line} may be one that a line break without quotes cut: {what}"


def _cut(record: _Record, part: _Record, width: int) -> str:
    return (
        f"bad row: line {record.line} may be cut by a line break without quotes: line {part.line} next to it has"
        f" {len(part.cells)} cells under {width} columns"
    )


def _is_too_long(cells: list[str]) -> bool:
    return len(max(cells, key=len)) > MAX_CELL_CHARACTERS


def _may_be_cut(cell: str) -> bool:
    return bool(cell.strip()) and not _NAME.fullmatch(cell)


class _Lines:
    """Lines with the number of the one that was given last; those looked at in vain are given again."""

    def __init__(self, lines: Iterable[str], number: int = 0) -> None:
        self._lines = iter(lines)
        self._again: deque[str] = deque()
        self.number = number

    def next(self) -> str:
        """The next line with its end; empty where there is none."""
        line = self._again.popleft() if self._again else next(self._lines, "")
        self.number += bool(line)
        return line

    def give_back(self, lines: list[str]) -> None:
        """Lines that were given last, to be given again."""
        self._again.extendleft(reversed(lines))
        self.number -= len(lines)


def _records(lines: _Lines, dialect: _Dialect) -> Iterator[_Record]:
    """The records of a file; blank lines are none."""
    delimiter = dialect.delimiter
    opening = re.compile(f'(?:^|{re.escape(delimiter)})"')
    is_apart = False
    while line := lines.next():
        text = line.rstrip("\r\n")
        if not text:
            is_apart = True
        elif len(text) > _MAX_RECORD_CHARACTERS:  # What is behind that was cut: these are not its cells.
            yield _Record(lines.number, [text] * (dialect.columns + 1), is_apart)
            is_apart = False
        elif '"' not in text:
            yield _Record(lines.number, text.split(delimiter), is_apart)
            is_apart = False
        elif opening.search(text):
            yield _quoted(lines, line, dialect)._replace(is_apart=is_apart)
            is_apart = False
        else:
            yield _Record(lines.number, text.split(delimiter), is_apart, False)
            is_apart = False


def _quoted(lines: _Lines, line: str, dialect: _Dialect) -> _Record:
    """The record that begins with a line in which a field begins with a quote: with quoting, or without."""
    number, plain = lines.number, line.rstrip("\r\n").split(dialect.delimiter)
    parser = _Quoted(lines, line, dialect)
    cells = parser.cells()
    fits = cells is not None and (len(cells) == dialect.columns or not dialect.columns)
    if cells is not None and (fits or (len(plain) != dialect.columns and dialect.trusts_quotes)):
        doubts = fits and len(plain) == dialect.columns
        if not doubts or (dialect.trusts_quotes and not _are_rows([line, *parser.further], dialect)):
            is_needed = True if any('"' in cell for cell in cells) or len(plain) != len(cells) else None
            return _Record(number, cells, False, is_needed, not line.startswith('"'), not parser.ends_quoted)
    lines.give_back(parser.further)
    return _Record(number, plain, False, None if parser.is_unfinished else False)


def _are_rows(lines: list[str], dialect: _Dialect) -> bool:
    """Whether several lines, each with the right number of cells, are rows by themselves and not one quoted cell.

    So they are where in all of them the cells beside the quoted one are of the same kinds: file names, numbers.
    """
    rows = [line.rstrip("\r\n").split(dialect.delimiter) for line in lines]
    if len(rows) < 2 or any(len(row) != dialect.columns for row in rows):
        return False
    quoted = max(index for index, cell in enumerate(rows[0]) if cell.startswith('"'))
    kinds = [[_kind(cell) for index, cell in enumerate(row) if index != quoted] for row in rows]
    return all(row == kinds[0] for row in kinds) and any(kinds[0])


def _kind(cell: str) -> str:
    """The suffix of a file's name, `0` for a number, else nothing."""
    suffix = PurePosixPath(cell).suffix if " " not in cell else ""
    return "0" if cell.isdecimal() else suffix.lower() if suffix[1:].isalnum() else ""


class _Quoted:
    """A record with quoted fields, read strictly, over as many lines as its quotes span."""

    def __init__(self, lines: _Lines, line: str, dialect: _Dialect) -> None:
        self._lines, self._text, self._dialect = lines, line, dialect
        self.further: list[str] = []  # The lines behind the first that were read.
        self.is_unfinished = False  # Whether the text ended within quotes.
        self.ends_quoted = False

    def cells(self) -> list[str] | None:
        """The cells; None where quotes do not close, or not in front of a delimiter."""
        cells, place, delimiter = list[str](), 0, self._dialect.delimiter
        while True:
            self.ends_quoted = self._text.startswith('"', place)
            if self.ends_quoted:
                end = self._closing(place + 1)
                if end < 0:
                    return None
                cells.append(self._text[place + 1 : end].replace('""', '"'))
                end += 1
            else:
                end = self._text.find(delimiter, place)
                end = len(self._text.rstrip("\r\n")) if end < 0 else end
                cells.append(self._text[place:end])
            if not self._text.startswith(delimiter, end):
                return None if self._text[end:].strip("\r\n") else cells
            place = end + 1

    def _closing(self, place: int) -> int:
        """Where the quote stands that closes a field; -1 where none does."""
        while True:
            end = self._text.find('"', place)
            if end < 0:
                place = len(self._text)
                if not self._read_on():
                    return -1
            elif self._text.startswith('"', end + 1):
                place = end + 2
            else:
                return end

    def _read_on(self) -> bool:
        if not self._dialect.trusts_quotes or len(self._text) > _MAX_RECORD_CHARACTERS:
            return False
        line = self._lines.next()
        self.is_unfinished = not line
        if line:
            self.further.append(line)
            self._text += line
        return bool(line)
