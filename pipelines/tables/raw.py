"""What a file parser yields: a row as its file holds it, or why it cannot be read."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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
