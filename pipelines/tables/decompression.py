"""Files as they were before somebody compressed them (gzip, zstandard, bzip2) or wrote their text in UTF-16 or UTF-32.

What a file is, its first bytes say, not its name.
"""

import codecs
import io
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa

_BLOCK_BYTES = 1 << 16
# What compressed files begin with, and what Arrow calls them.
COMPRESSIONS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2"}
COMPRESSED_SUFFIXES = (".gz", ".zst", ".bz2")
_MARKS = {
    b"\xef\xbb\xbf": "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",  # Before UTF-16, whose mark is the beginning of this one.
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}


def open_decompressed(path: Path) -> BinaryIO:
    """The bytes of a file, decompressed where it is compressed; read forward only.

    Raises:
        OSError: it cannot be opened, or, while it is read, the compressed data are damaged or break off.
    """
    file = path.open("rb")
    start = file.read(4)
    file.seek(0)
    for magic, compression in COMPRESSIONS.items():
        if start.startswith(magic):
            return cast(BinaryIO, io.BufferedReader(_Decompressed(file, compression), _BLOCK_BYTES))
    return cast(BinaryIO, file)


def open_text(path: Path, at: int = 0) -> BinaryIO:
    """The text of a file as UTF-8 without a byte order mark, decompressed; read forward only.

    UTF-16 and UTF-32 are told by their mark, UTF-16 also by the zero byte of its first character. Bytes of UTF-8 are
    passed on as they are, right or wrong. Where the file is such bytes (`is_plain_text`), `at` says how many to leave
    out in front.

    Raises:
        OSError: as of `open_decompressed`.
    """
    file = open_decompressed(path)
    start = file.read(4)
    mark = next((mark for mark in _MARKS if start.startswith(mark)), b"")
    encoding = _MARKS[mark] if mark else _unmarked(start)
    if at:
        file.seek(len(mark) + at)
    return cast(BinaryIO, io.BufferedReader(_Utf8(file, b"" if at else start[len(mark) :], encoding), _BLOCK_BYTES))


def is_plain_text(path: Path) -> bool:
    """Whether a text can be read from any of its bytes on: it is UTF-8, and not compressed."""
    with path.open("rb") as file:
        start = file.read(4)
    mark = next((mark for mark in _MARKS if start.startswith(mark)), b"")
    is_packed = any(start.startswith(magic) for magic in COMPRESSIONS)
    return not is_packed and (_MARKS[mark] if mark else _unmarked(start)) == "utf-8"


def plain_suffix(path: Path) -> str:
    """A file's suffix in lower case, without that of its compression: `.jsonl` of `rows.jsonl.gz`."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return next((suffix for suffix in reversed(suffixes) if suffix not in COMPRESSED_SUFFIXES), "")


def _unmarked(start: bytes) -> str:
    if len(start) >= 2 and (start[0] == 0) != (start[1] == 0):
        return "utf-16-be" if start[0] == 0 else "utf-16-le"
    return "utf-8"


class _Decompressed(io.RawIOBase):
    """A compressed file, decompressed as it is read, member after member; closing it closes the file."""

    def __init__(self, file: Any, compression: str) -> None:
        self._file = file
        self._stream = pa.CompressedInputStream(pa.PythonFile(file, mode="r"), compression)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(len(buffer))
        except pa.ArrowException as error:
            raise OSError(str(error)) from None
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


class _Utf8(io.RawIOBase):
    """A text of any encoding as UTF-8; what is wrong in it is replaced, but in UTF-8, which is passed on."""

    def __init__(self, file: BinaryIO, start: bytes, encoding: str) -> None:
        self._file, self._start = file, start
        self._decoder = None if encoding == "utf-8" else codecs.getincrementaldecoder(encoding)("replace")
        self._left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._left:
            self._left = self._next()
        data, self._left = self._left[: len(buffer)], self._left[len(buffer) :]
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()

    def _next(self) -> bytes:
        """The next bytes of the text; empty at its end."""
        while True:
            data, self._start = self._start + self._file.read(_BLOCK_BYTES - len(self._start)), b""
            text = data if self._decoder is None else self._decoder.decode(data, final=not data).encode()
            if text or not data:
                return text
