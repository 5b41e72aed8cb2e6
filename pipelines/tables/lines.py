"""Lines of text files, none longer than a limit."""

from collections.abc import Iterable, Iterator
from typing import BinaryIO

# How much of a text is looked at to tell what it is.
HEAD_BYTES = 256 * 1024
MAX_LINE_BYTES = 16 * 1024 * 1024
MAX_CELL_CHARACTERS = 1024 * 1024
_BLOCK_BYTES = 1 << 16
_SURVEY_BYTES = 1 << 18
_MAX_TEXT_LINE_BYTES = 2 * MAX_CELL_CHARACTERS


def text_lines(file: BinaryIO) -> Iterator[str]:
    """The lines of a text of UTF-8 with their ends; what is wrong in it is replaced, and what is too long is cut."""
    for block in _blocks(file, _MAX_TEXT_LINE_BYTES):
        lines = block.decode("utf-8", errors="replace").split("\n")
        last = lines.pop()
        for line in lines:
            yield f"{line}\n"
        if last:
            yield last


def byte_lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file without their ends; of one that is too long no more than the limit, and a byte to show it."""
    for block in _blocks(file, MAX_LINE_BYTES):
        yield from block.removesuffix(b"\n").split(b"\n")


def row_places(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """Places in a file where a line begins, with how many lines that are not blank come before; last its end."""
    at, rows, is_begun = 0, 0, False
    while block := file.read(_SURVEY_BYTES):
        first, end, rest = block.partition(b"\n")
        is_begun = is_begun or bool(first.strip())
        if end:
            rows += is_begun
            yield at + len(first) + 1, rows
            *whole, tail = rest.split(b"\n")
            rows += sum(1 for line in whole if line and not line.isspace())
            is_begun = bool(tail.strip())
        at += len(block)
    yield at, rows + is_begun


def line_places(file: BinaryIO, numbers: Iterable[int]) -> Iterator[int]:
    """The bytes at which lines begin that have `numbers` of lines before them, in ascending order."""
    block, at, lines = b"", 0, 0
    for number in numbers:
        while number - lines > (count := block.count(b"\n")):
            at, lines = at + len(block), lines + count
            block = file.read(_BLOCK_BYTES)
            if not block:
                return
        place = 0
        for _ in range(number - lines):
            place = block.index(b"\n", place) + 1
        yield at + place


def _blocks(file: BinaryIO, limit: int) -> Iterator[bytes]:
    """A file in blocks of whole lines; of a line longer than the limit there is no more than that and one byte."""
    rest = b""
    while block := file.read(_BLOCK_BYTES):
        whole, end, tail = block.rpartition(b"\n")
        if end:
            yield _cut(rest, whole, limit) + end
            rest = tail
        else:
            rest = rest[: limit + 1] + tail if len(rest) <= limit else rest
    if rest:
        yield rest[: limit + 1]


def _cut(rest: bytes, whole: bytes, limit: int) -> bytes:
    """Lines, the first of which goes on from what was read before it; that one is cut."""
    if len(rest) + len(whole) <= limit:
        return rest + whole
    line, end, further = whole.partition(b"\n")
    return (rest + line)[: limit + 1] + end + further
