"""What every reader shares: a JSON array read row by row, the checks of its fields, and rows that become samples."""

import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ijson

from pipelines.readers.keys import row_key
from pipelines.sample import Reject, Sample, Turn

Row = Mapping[str, Any]
ToKey = Callable[[Row, int], str]
ToTurns = Callable[[Row], tuple[Turn, ...]]

MAX_NAME_BYTES = 1024
MAX_CAPTION_BYTES = 8 * 1024
MAX_TEXT_BYTES = 32 * 1024
_REPLACEMENT = "\ufffd"


def read(path: Path, to_key: ToKey, to_turns: ToTurns) -> Iterator[Sample | Reject]:
    """Yields a sample for every good row of a JSON array and a reject for every bad one.

    `to_key` and `to_turns` raise ValueError with the reason to reject a row. Where the file breaks off, what was
    readable is followed by one reject.

    Raises:
        ValueError: the file is no JSON array at all.
    """
    count = 0
    try:
        for result in samples(path, _array(path), to_key, to_turns):
            count += 1
            yield result
    except ijson.JSONError as error:
        reason = f"bad JSON: {str(error).partition(chr(10))[0].removeprefix('parse error: ')}"
        yield Reject(source=f"{path.name}#{count}", key="", stage="read", reason=reason)


def samples(path: Path, rows: Iterable[Any], to_key: ToKey, to_turns: ToTurns) -> Iterator[Sample | Reject]:
    """As `read`, for rows that are parsed already."""
    return (_sample(path, row, index, to_key, to_turns) for index, row in enumerate(rows))


def field(row: Row, *spellings: str) -> Any:
    """The value under the first spelling that is there and not null.

    Raises:
        ValueError: `missing field: ...`.
    """
    value = optional(row, *spellings)
    if value is None:
        raise ValueError(f"missing field: {' or '.join(spellings)}")
    return value


def optional(row: Row, *spellings: str) -> Any:
    """As `field`, but None where no spelling is there."""
    return next((row[spelling] for spelling in spellings if row.get(spelling) is not None), None)


def listed(row: Row, *spellings: str) -> list[Any]:
    """A field that holds one value or a list of them, as a list; empty where it is missing."""
    value = optional(row, *spellings)
    return value if isinstance(value, list) else [] if value is None else [value]


def name(value: Any, what: str) -> str:
    """The name of a medium's file.

    Raises:
        ValueError: it is no text, empty, over 1 KB, or damaged.
    """
    text = _text(value, what)
    if not text.strip():
        raise ValueError(f"empty {what}")
    return _sound(text, what, MAX_NAME_BYTES)


def caption(value: Any, what: str = "caption") -> str:
    """A caption in one line: white space is normalised.

    Raises:
        ValueError: it is no text, empty, over 8 KB, or damaged.
    """
    text = " ".join(_text(value, what).split())
    if not text:
        raise ValueError(f"empty {what}")
    return _sound(text, what, MAX_CAPTION_BYTES)


def prose(value: Any, what: str) -> str:
    """A speaker's text: its lines and inner spaces stay, line ends become `\\n`; it may be empty.

    Raises:
        ValueError: it is no text, over 32 KB, or damaged.
    """
    text = _text(value, what).replace("\r\n", "\n").replace("\r", "\n").strip()
    return _sound(text, what, MAX_TEXT_BYTES)


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"bad field: {what} is no text")
    return value


def _sound(text: str, what: str, limit: int) -> str:
    if _REPLACEMENT in text:
        raise ValueError(f"damaged text: {what} is not valid UTF-8")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise ValueError(f"damaged text: {what} holds half of a surrogate pair") from None
    if size > limit:
        raise ValueError(f"too long {what}: {size} bytes, the limit is {limit}")
    return text


def _sample(path: Path, row: Any, index: int, to_key: ToKey, to_turns: ToTurns) -> Sample | Reject:
    source, key = f"{path.name}#{index}", row_key(index)
    try:
        if not isinstance(row, dict):
            raise ValueError("bad row: not an object")
        key = to_key(row, index)
        return Sample(key=key, source=source, turns=to_turns(row))
    except ValueError as error:
        return Reject(source=source, key=key, stage="read", reason=str(error))


def _array(path: Path) -> Iterator[Any]:
    with path.open("rb") as file:
        stream = _Utf8(file)
        if stream.first() != b"[":
            raise ValueError(f"{path}: not a JSON array; expected a file that begins with '['")
        yield from ijson.items(stream, "item")


class _Utf8:
    """A file without byte order mark and white space in front, whose wrong bytes are replaced.

    So one row with wrong bytes costs that row and not the rest of the file.
    """

    def __init__(self, file: io.BufferedReader) -> None:
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
