"""What a file parser yields: a row as its file holds it, or why it cannot be read; and where parts of files begin."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

_WHOLE = re.compile(r"(-?\d{1,18})\.0+", re.ASCII)


class Raw(NamedTuple):
    """One row: `source` says which of which file. With `error` there is no value, and `key` is its key if it has one.

    Without a key a row is called by its number; an empty key stands for what is no row, such as the rest of a file.
    """

    source: str
    value: Any = None
    error: str = ""
    key: str | None = None


# A file and what its rows call it: its own name, or its path below the folder that is read.
Parser = Callable[[Path, str], Iterator[Raw]]


class Place(NamedTuple):
    """Where a file can be read from: how many rows come before, and what the parser finds the next one by.

    `at` is a byte of a text or the number of a batch; `line` is how many lines of a CSV file come before that byte.
    """

    row: int = 0
    at: int = 0
    line: int = 0


START = Place()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Rows of one file that stand together: from a place on, `rows` of them, or all that come."""

    file: Path
    name: str
    place: Place = START
    rows: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Rows of a source, a file or folder at `path`, that stand together: `index` of its rows come before."""

    path: Path
    cuts: tuple[Cut, ...]
    index: int = 0


def one_line(error: BaseException) -> str:
    """An exception's message in one line of at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def is_missing(value: Any) -> bool:
    """Whether a value stands for none: null, or the NaN that pandas and numpy write for it."""
    return value is None or value != value


def identifier(value: Any) -> Any:
    """An id as it was before pandas made floats of a column's whole numbers, as it does where one is missing.

    `17.0`, also as the text of a CSV cell, is 17; an empty text is None; anything else stays what it is.
    """
    if isinstance(value, str) and (whole := _WHOLE.fullmatch(value)):
        return int(whole[1])
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return None if value == "" else value
