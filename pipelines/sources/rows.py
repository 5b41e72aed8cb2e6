"""What every reader shares: the rows of a source, the checks of their fields, and rows that become samples."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.sample import Reject, Sample, Turn
from pipelines.sources.entry import Entry
from pipelines.tables import formats
from pipelines.tables.containers import inline_name
from pipelines.tables.keys import row_key
from pipelines.tables.raw import Parser, Raw, Section, is_missing
from pipelines.tables.tars import lacking

Row = Mapping[str, Any]


class Dialogue(NamedTuple):
    """What a row says, and what is to be known about it beside that."""

    turns: tuple[Turn, ...]
    meta: Mapping[str, Any] = {}


ToKey = Callable[[Row, int], str]
ToDialogue = Callable[[Row], Dialogue]

MAX_NAME_BYTES = 1024
MAX_CAPTION_BYTES = 8 * 1024
MAX_TEXT_BYTES = 32 * 1024
MAX_CAPTIONS = 1000
_REPLACEMENT = "\ufffd"
_NUMBER = re.compile(r"[_. ]?(\d{1,4})")
_URL = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)


def read(
    entry: Entry,
    source: Path | Section,
    to_key: ToKey,
    to_dialogue: ToDialogue,
    parsers: Mapping[str, Parser] | None = None,
) -> Iterator[Sample | Reject]:
    """Yields a sample for every good row of a file, a folder or a section, and a reject for every bad one, in order.

    The entry's column names are translated first. `to_key` and `to_dialogue` raise ValueError with the reason to reject
    a row. Where a file breaks off, what was readable is followed by one reject. `parsers` read further file suffixes.

    Raises:
        ValueError: the file is not of its format, or the folder holds no rows.
    """
    section = source if isinstance(source, Section) else formats.whole(source, entry.patterns(source))
    raws = enumerate(formats.read(section, parsers or {}), section.index)
    return (_sample(entry, raw, index, to_key, to_dialogue) for index, raw in raws)


def field(row: Row, *spellings: str) -> Any:
    """The value under the first spelling that is there and neither null nor NaN.

    Raises:
        ValueError: `missing field: ...`.
    """
    value = optional(row, *spellings)
    if value is None:
        raise ValueError(f"missing field: {' or '.join(spellings)}")
    return value


def optional(row: Row, *spellings: str) -> Any:
    """As `field`, but None where no spelling is there."""
    for spelling in spellings:
        value = row.get(spelling)
        if not is_missing(value):
            return value
    return None


def listed(row: Row, *spellings: str) -> list[Any]:
    """A field that holds one value or a list of them, as a list; empty where it is missing."""
    value = optional(row, *spellings)
    return value if isinstance(value, list) else [] if value is None else [value]


def name(value: Any, what: str) -> str:
    """The name of a medium's file; a medium in base64 is its own, as a data URI.

    Raises:
        ValueError: it is not a string, empty, a URL, over 1 KB, or damaged.
    """
    text = _text(value, what)
    if not text.strip():
        raise ValueError(f"empty {what}")
    if inline := inline_name(text):
        return inline
    if url := _URL.match(text):
        raise ValueError(f"missing file: {what} is a {url[1]} URL, and nothing is downloaded")
    return _sound(text, what, MAX_NAME_BYTES)


def caption(value: Any, what: str = "caption") -> str:
    """A caption in one line: white space is normalised.

    Raises:
        ValueError: it is not a string, empty, over 8 KB, or damaged.
    """
    text = " ".join(_text(value, what).split())
    if not text:
        raise ValueError(f"empty {what}")
    return _sound(text, what, MAX_CAPTION_BYTES)


def captions(row: Row, *spellings: str) -> list[str]:
    """All captions of a row under the first spelling that is there, at least one.

    They are one text; a list of texts or of objects (`{"caption"}`, `{"raw"}`), which a table without lists writes as
    JSON; or several fields, `caption_1`, `caption_2`, ... Blank ones among several are left out.

    Raises:
        ValueError: `missing field: ...`, there are over 1000, or one is what `caption` refuses.
    """
    values = next(filter(None, (_captions(row, spelling) for spelling in spellings)), None)
    if values is None:
        raise ValueError("missing field: caption")
    if len(values) > MAX_CAPTIONS:
        raise ValueError(f"too many captions: {len(values)}, the limit is {MAX_CAPTIONS}")
    return [caption(text) for text in map(_worded, values) if not _is_blank(text)] or [caption("")]


def prose(value: Any, what: str) -> str:
    """A speaker's text: its lines and inner spaces stay, line ends become `\\n`; it may be empty.

    Raises:
        ValueError: it is not a string, over 32 KB, or damaged.
    """
    text = _text(value, what).replace("\r\n", "\n").replace("\r", "\n").strip()
    return _sound(text, what, MAX_TEXT_BYTES)


def _captions(row: Row, spelling: str) -> list[Any]:
    """What stands under a spelling and its numbered ones, in order; empty where there is none."""
    value = _unpacked(row.get(spelling))
    values = value or [""] if isinstance(value, list) else [] if value is None else [value]
    numbered = [name for name in row if name[-1:].isdecimal() and name.startswith(spelling)]
    places = {int(m[1]): name for name in numbered if (m := _NUMBER.fullmatch(name.removeprefix(spelling)))}
    further = (row[places[place]] for place in sorted(places))
    return [*values, *(one for one in further if one is not None)]


def _unpacked(value: Any) -> Any:
    """A list of texts that a table without lists holds as JSON."""
    if not isinstance(value, str) or not (value.startswith('["') and value.endswith('"]')):
        return value
    try:
        found = json.loads(value)
    except ValueError:
        return value
    return found if all(isinstance(text, str) for text in found) else value


def _worded(value: Any) -> Any:
    """A caption's text, of an object too."""
    return optional(value, "caption", "raw", "text") if isinstance(value, dict) else value


def _is_blank(text: Any) -> bool:
    return text is None or (isinstance(text, str) and not text.strip())


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"bad field: {what} must be a string")
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


def _sample(entry: Entry, raw: Raw, index: int, to_key: ToKey, to_dialogue: ToDialogue) -> Sample | Reject:
    key = row_key(index) if raw.key is None else raw.key
    try:
        if raw.error:
            raise ValueError(raw.error)
        if not isinstance(raw.value, dict):
            raise ValueError("bad row: not an object")
        row = _translated(entry, raw.value)
        key = to_key(row, index)
        turns, meta = to_dialogue(row)
        return Sample(key=key, source=raw.source, turns=turns, meta=meta)
    except ValueError as error:
        reason = lacking(str(error), raw.value) if isinstance(raw.value, dict) else str(error)
        return Reject(source=raw.source, key=key, stage="read", reason=reason)


def _translated(entry: Entry, row: Row) -> Row:
    """The row with its columns under the names that readers know; the columns' own names stay too."""
    if not entry.fields:
        return row
    return {**row, **{name: optional(row, *columns) for name, columns in entry.fields.items()}}
