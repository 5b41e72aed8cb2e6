"""Rows of text files: a JSON array, JSON lines, CSV and TSV, all read as they stream."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

import ijson

from pipelines.tables.raw import Raw, one_line

MAX_LINE_BYTES = 16 * 1024 * 1024
MAX_CELL_CHARACTERS = 1024 * 1024
MAX_TEXT_LINE_BYTES = 2 * MAX_CELL_CHARACTERS


def json_array(path: Path, name: str) -> Iterator[Raw]:
    """The elements of a JSON array. Wrong UTF-8 is replaced; where the file breaks off, one error ends it.

    Raises:
        ValueError: the file is no JSON array at all.
    """
    count = 0
    try:
        for value in _elements(path):
            yield Raw(source=f"{name}#{count}", value=value)
            count += 1
    except ijson.JSONError as error:
        reason = f"bad JSON: {str(error).partition(chr(10))[0].removeprefix('parse error: ')}"
        yield Raw(source=f"{name}#{count}", key="", error=reason)


def json_lines(path: Path, name: str) -> Iterator[Raw]:
    """The JSON of each line that is not blank; a bad line costs that line."""
    count = 0
    with path.open("rb") as file:
        for line in _lines(cast(BinaryIO, file), MAX_LINE_BYTES):
            if not line.strip(b" \t\r\n\xef\xbb\xbf"):
                continue
            yield _parsed(line, f"{name}#{count}")
            count += 1


def csv_rows(path: Path, name: str) -> Iterator[Raw]:
    """The rows of a CSV file (TSV by its suffix) under the names of its first line; all cells are text.

    Raises:
        ValueError: the first line names no columns, or one twice.
    """
    csv.field_size_limit(MAX_CELL_CHARACTERS)
    with path.open("rb") as file:
        cells = csv.reader(text_lines(cast(BinaryIO, file)), delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        try:
            header = next(cells, [])
        except csv.Error as error:
            raise ValueError(f"{path}: not a CSV file ({one_line(error)})") from None
        if not header or not all(header) or len(set(header)) < len(header):
            raise ValueError(f"{path}: its first line must name every column once; it is {','.join(header)[:80]!r}")
        yield from _records(cells, header, name)


def _records(cells: Iterator[list[str]], header: list[str], name: str) -> Iterator[Raw]:
    count = -1
    while True:
        try:
            row = next(cells, None)
        except csv.Error as error:
            count += 1
            yield Raw(source=f"{name}#{count}", error=f"bad row: {one_line(error)}")
            continue
        if row is None:
            return
        if not row:  # A blank line.
            continue
        count += 1
        if len(row) == len(header):
            yield Raw(source=f"{name}#{count}", value=dict(zip(header, row, strict=True)))
        else:
            reason = f"bad row: {len(row)} cells under {len(header)} columns"
            yield Raw(source=f"{name}#{count}", error=reason)


def text_lines(file: BinaryIO) -> Iterator[str]:
    """The lines of a file with their ends; wrong UTF-8 is replaced, and what is too long is cut."""
    for index, line in enumerate(_lines(file, MAX_TEXT_LINE_BYTES)):
        yield line.decode("utf-8" if index else "utf-8-sig", errors="replace")


def _lines(file: BinaryIO, limit: int) -> Iterator[bytes]:
    """Lines of a file; of one that is too long no more than the limit is kept, and one byte to show it."""
    while line := file.readline(limit + 1):
        yield line
        while len(line) > limit and not line.endswith(b"\n"):
            line = file.readline(limit + 1)


def _parsed(line: bytes, source: str) -> Raw:
    if len(line) > MAX_LINE_BYTES:
        return Raw(source=source, error=f"too long: a line of more than {MAX_LINE_BYTES} bytes")
    try:
        return Raw(source=source, value=parse_json(line))
    except ValueError as error:
        return Raw(source=source, error=str(error))


def parse_json(data: bytes) -> Any:
    """Reads JSON; wrong UTF-8 is replaced, so that it costs the field it stands in.

    Raises:
        ValueError: `bad JSON: ...`.
    """
    try:
        return json.loads(data.decode("utf-8-sig", errors="replace"), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"bad JSON: {one_line(error)}") from None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _elements(path: Path) -> Iterator[Any]:
    with path.open("rb") as file:
        stream = _Utf8(cast(BinaryIO, file))
        if stream.first() != b"[":
            raise ValueError(
                f"{path}: not a JSON array; expected a file that begins with '[' (JSON lines end in .jsonl)"
            )
        yield from ijson.items(stream, "item")


class _Utf8:
    """A file without byte order mark and white space in front, whose wrong bytes are replaced.

    So one row with wrong bytes costs that row and not the rest of the file.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="replace", newline="")
        self._ahead = b""

    def first(self) -> bytes:
        """The first character that is no white space, not consumed; empty at the end."""
        while not self._ahead and (text := self._text.read(1)):
            self._ahead = text.lstrip().encode()
        return self._ahead

    def read(self, size: int = -1) -> bytes:
        """At least one byte, unless the end is reached; more or fewer than `size`."""
        if size == 0:
            return b""
        data, self._ahead = self._ahead + self._text.read(size).encode(), b""
        return data
