"""Rows of text files: a JSON array, JSON lines, an object of rows by id, CSV or TSV, all read as they stream.

Which of them a file is, its content says; it may be compressed, have a byte order mark or be UTF-16.
"""

import codecs
import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from pipelines.tables.decompression import is_plain_text, open_text, plain_suffix
from pipelines.tables.delimited import csv_places, csv_rows
from pipelines.tables.lines import HEAD_BYTES, MAX_LINE_BYTES, byte_lines, row_places
from pipelines.tables.raw import START, Parser, Place, Raw, one_line

_BLOCK_BYTES = 1 << 16
_COMMA = re.compile(r"[ \t\r\n]*,[ \t\r\n]*(?=[^ \t\r\n])")
_WHITE = re.compile(r"[ \t\r\n]*")
_POSSIBLE = "rows may be a JSON array, JSON lines, an object of rows by id, CSV or TSV; also gzip or zstandard of these"
# What is no text of rows, by what it begins with.
_OTHERS = {
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself; fetch it with `git lfs pull`",
    b"<": "HTML or XML",
    b"PK\x03\x04": "a zip archive; unpack it",
    b"\xfd7zXZ\0": "compressed with xz; unpack it",
}


def text_rows(path: Path, name: str, place: Place = START) -> Iterator[Raw]:
    """The rows of a text file of any kind. Where compressed data break off, one error ends them.

    Raises:
        ValueError: it is of no kind that is known; one line says what was seen.
    """
    count = place.row
    try:
        parser = _parser(path, _head(path))
        for raw in _from(place)[parser](path, name) if place.row else parser(path, name):
            yield raw
            count += 1
    except OSError as error:
        if isinstance(error, FileNotFoundError | PermissionError):
            raise
        yield Raw(source=f"{name}#{count}", key="", error=f"unreadable: {name} breaks off ({one_line(error)})")


def text_places(path: Path) -> tuple[list[Place], int] | None:
    """Places where a text can be read from, and how many rows it has; None of one that is read as a whole.

    Raises:
        ValueError: as of `text_rows`.
    """
    if not is_plain_text(path):
        return None
    places = _PLACES.get(_parser(path, _head(path)))
    return places and places(path)


def json_array(path: Path, name: str) -> Iterator[Raw]:
    """The elements of a JSON array. Wrong UTF-8 is replaced; where the file breaks off, one error ends it.

    Raises:
        ValueError: the file is no JSON array at all.
    """
    with open_text(path) as file:
        text = _Json(file)
        if not text.take("["):
            raise ValueError(f"{path}: not a JSON array; {_POSSIBLE}")
        yield from _numbered(text.elements(), name)


def json_object(path: Path, name: str) -> Iterator[Raw]:
    """The rows of an object, each with the name it stands under as its `id` where it has none; errors as in an array.

    Raises:
        ValueError: the file is no JSON object at all.
    """
    with open_text(path) as file:
        text = _Json(file)
        if not text.take("{"):
            raise ValueError(f"{path}: not a JSON object; {_POSSIBLE}")
        rows = ({"id": key} | value if isinstance(value, dict) else value for key, value in text.members())
        yield from _numbered(rows, name)


def json_lines(path: Path, name: str, place: Place = START) -> Iterator[Raw]:
    """The JSON of each line that is not blank; a bad line costs that line."""
    count = place.row
    with open_text(path, place.at) as file:
        for line in byte_lines(file):
            if not line or line.isspace():
                continue
            yield _parsed(line, f"{name}#{count}")
            count += 1


def json_places(path: Path) -> tuple[list[Place], int]:
    """Places where a file of JSON lines can be read from, and how many rows it has."""
    with open_text(path) as file:
        *places, (_, rows) = row_places(file)
    return [Place(row, at) for at, row in places if 0 < row < rows], rows


def parse_json(data: bytes) -> Any:
    """Reads JSON, `NaN` and `Infinity` as null; wrong UTF-8 is replaced, so that it costs the field it stands in.

    Raises:
        ValueError: `bad JSON: ...`.
    """
    try:
        return json.loads(data.decode("utf-8-sig", errors="replace"), parse_constant=_null)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"bad JSON: {one_line(error)}") from None


def _from(place: Place) -> Mapping[Parser, Parser]:
    """The parsers that can begin at a place, for those that begin at the beginning."""
    return {csv_rows: partial(csv_rows, place=place), json_lines: partial(json_lines, place=place)}


# Where files can be read from, of the kinds that need not be read from their beginning.
_PLACES: Mapping[Parser, Callable[[Path], tuple[list[Place], int]]] = {csv_rows: csv_places, json_lines: json_places}


def _null(constant: str) -> None:
    """What pandas and numpy write where there is nothing."""


def _head(path: Path) -> bytes:
    """The first bytes of a text; of compressed data that break off what there is."""
    head = b""
    with open_text(path) as file:
        try:
            while len(head) < HEAD_BYTES and (data := file.read(_BLOCK_BYTES)):
                head += data
        except OSError:
            if not head:
                raise
    return head


def _parser(path: Path, head: bytes) -> Parser:
    """The parser for a text that begins like this; of an empty one its name says what it should be.

    Raises:
        ValueError: there is none.
    """
    start = head.lstrip(b" \t\r\n")
    suffix = plain_suffix(path)
    if not start:
        return csv_rows if suffix in (".csv", ".tsv") else json_lines if suffix in (".jsonl", ".ndjson") else json_array
    if start.startswith(b"["):
        return json_array
    if start.startswith(b"{"):
        return json_lines if _is_lines(start) else _object_parser(path, start)
    what = next((what for magic, what in _OTHERS.items() if start.startswith(magic)), "")
    line = start.partition(b"\n")[0]
    if not what and (b"\0" in line or (b"\0" in start[:1024] and "\ufffd" in line.decode(errors="replace"))):
        what = f"binary, it begins with {start[:8]!r}"
    if what:
        raise ValueError(f"{path}: it is {what}; {_POSSIBLE}")
    if suffix not in (".csv", ".tsv") and not re.search(rb"[,;\t]", line):
        raise ValueError(f"{path}: not a JSON array or another table; it begins with {_shown(line)}; {_POSSIBLE}")
    return csv_rows


def _is_lines(start: bytes) -> bool:
    """Whether what begins with `{` is JSON lines: a line is a row, or the line behind it begins one."""
    line, _, rest = start.partition(b"\n")
    if rest.lstrip(b" \t\r\n").startswith(b"{") and not rest.startswith((b" ", b"\t")):
        return True
    try:
        row = parse_json(line)
    except ValueError:
        return False
    return not rest.strip() and not (row and all(isinstance(value, dict) for value in row.values()))


def _object_parser(path: Path, start: bytes) -> Parser:
    """The parser for one large object, by its first value.

    Raises:
        ValueError: its values are no rows.
    """
    first = re.match(rb'\{\s*("(?:[^"\\]|\\.)*")\s*:\s*(\{\s*"(?:[^"\\]|\\.)*"\s*:|.)', start, re.DOTALL)
    key, value = first.groups() if first else (b"", b"")
    if value.startswith(b"{") and not re.match(rb'\{\s*"0"', value):
        return json_object
    if value.startswith(b"{"):
        raise ValueError(
            f"{path}: an object of columns, the first is {_shown(key)}; write rows: to_json(..., orient='records')"
        )
    if value in (b"", b"["):
        raise ValueError(f"{path}: an object without rows: its first field is {_shown(key)}; {_POSSIBLE}")
    return json_lines


def _shown(text: bytes) -> str:
    return repr(text[:60].decode("utf-8", errors="replace"))


def _numbered(values: Iterator[Any], name: str) -> Iterator[Raw]:
    count = 0
    try:
        for value in values:
            yield Raw(source=f"{name}#{count}", value=value)
            count += 1
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else one_line(error)
        yield Raw(source=f"{name}#{count}", key="", error=f"bad JSON: {reason}")


def _parsed(line: bytes, source: str) -> Raw:
    if len(line) > MAX_LINE_BYTES:
        return Raw(source=source, error=f"too long: a line of more than {MAX_LINE_BYTES} bytes")
    try:
        return Raw(source=source, value=parse_json(line))
    except ValueError as error:
        return Raw(source=source, error=str(error))


class _Json:
    """A text of JSON that is read value by value; `NaN` is null, wrong UTF-8 is replaced."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._scan = json.JSONDecoder(parse_constant=_null).raw_decode
        self._text, self._at, self._ended = "", 0, False

    def take(self, character: str) -> bool:
        """Whether this is the next character that is no white space; it is consumed then."""
        found = self._next() == character
        self._at += found
        return found

    def elements(self) -> Iterator[Any]:
        """The elements of an array whose bracket was taken; ValueError where it is no JSON."""
        if not self.take("]"):
            yield self._value()
            while self._is_next_here() or self.take(","):
                yield self._value()
            self._expect("]")
        self._end()

    def _is_next_here(self) -> bool:
        """As `take(",")`, where the comma and what is behind it were read already; that is nearly always."""
        match = _COMMA.match(self._text, self._at)
        self._at = match.end() if match else self._at
        return match is not None

    def members(self) -> Iterator[tuple[str, Any]]:
        """The names and values of an object whose brace was taken; ValueError where it is no JSON."""
        if not self.take("}"):
            yield self._member()
            while self.take(","):
                yield self._member()
            self._expect("}")
        self._end()

    def _member(self) -> tuple[str, Any]:
        if self._next() != '"':
            self._refuse()
        key = self._value()
        self._expect(":")
        return key, self._value()

    def _value(self) -> Any:
        """The next value. What cannot be read may go on in bytes not read yet: up to a limit, they are read."""
        if self._text[self._at : self._at + 1] != "{" and self._next() in "]},:":
            self._refuse()
        while True:
            ahead = len(self._text) - self._at
            try:
                value, end = self._scan(self._text, self._at)
            except json.JSONDecodeError:
                if self._ended or ahead > MAX_LINE_BYTES:
                    raise
            else:
                if end < len(self._text) or self._ended:
                    self._at = end
                    return value
            self._more(max(ahead, _BLOCK_BYTES))

    def _next(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            match = _WHITE.match(self._text, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._more(_BLOCK_BYTES)

    def _more(self, size: int) -> None:
        data = self._file.read(size)
        self._ended = not data
        self._text, self._at = self._text[self._at :] + self._decoder.decode(data, final=not data), 0

    def _expect(self, character: str) -> None:
        if not self.take(character):
            self._refuse()

    def _end(self) -> None:
        if self._next():
            raise ValueError("trailing text behind the end")

    def _refuse(self) -> NoReturn:
        raise ValueError("unallowed token at this point in JSON text" if self._next() else "it breaks off")
