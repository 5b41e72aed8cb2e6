"""What a file parser yields: a row as its file holds it, or why it cannot be read."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_WHOLE = re.compile(r"(-?\d{1,18})\.0+", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Raw:
    """One row: `source` says which of which file. With `error` there is no value, and `key` is its key if it has one.

    Without a key a row is called by its number; an empty key stands for what is no row, such as the rest of a file.
    """

    source: str
    value: Any = None
    error: str = ""
    key: str | None = None


# A file and what its rows call it: its own name, or its path below the folder that is read.
Parser = Callable[[Path, str], Iterator[Raw]]


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
