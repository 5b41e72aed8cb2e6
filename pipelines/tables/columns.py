"""Columns of Parquet and Arrow files: their batches in order, and the bytes of one value by its place."""

import sys
import threading
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.storage.files import is_local, stamp

SUFFIXES = (".parquet", ".arrow")
# Rows decoded at once: some media each.
BATCH_ROWS = 16
# What a value may take beside its bytes: a name, offsets.
_PER_VALUE_BYTES = 4096
_FILE_MAGIC = b"ARROW1"


def quote_column(name: str) -> str:
    """A column's name as one part of a path."""
    return name.replace("%", "%25").replace("/", "%2F")


def read_bytes(path: Path, member: str, max_bytes: int) -> tuple[bytes, str]:
    """The bytes at `column/row[/step ...]` and the name they came with, empty where there is none.

    Rows read in order cost one pass over the column. A step is an index of a list or a field of a struct.

    Raises:
        ValueError: `missing file: ...`, `too large: ...`, `empty file: ...`.
        pyarrow.ArrowException, OSError: the file cannot be read.
    """
    name = f"{path.name}/{member}"
    column, *steps = member.split("/")
    if not steps or not all(step.isdecimal() for step in steps[:1]):
        raise ValueError(f"missing file: {name} is no column/row")
    value = _cursor(path, stamp(path), unquote(column)).value(int(steps[0]), max_bytes)
    for step in steps[1:]:
        value = _step(value, step)
    data, original = _embedded(value)
    if data is None or not data.is_valid:
        raise ValueError(f"missing file: {name} holds no bytes")
    size = data.as_buffer().size
    if size == 0:
        raise ValueError(f"empty file: {name}")
    if size > max_bytes:
        raise ValueError(f"too large: {name} has {size} bytes, the limit is {max_bytes}")
    return data.as_py(), original


def is_bytes(kind: pa.DataType) -> bool:
    """Whether values of a type are bytes."""
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def is_file(kind: pa.DataType) -> bool:
    """Whether values of a type are files as Hugging Face keeps them: `{"bytes", "path"}`."""
    if not pa.types.is_struct(kind):
        return False
    fields = {field.name: field.type for field in kind}
    return "bytes" in fields and fields.keys() <= {"bytes", "path"} and is_bytes(fields["bytes"])


def holds_bytes(kind: pa.DataType) -> bool:
    """Whether a type has bytes anywhere in it."""
    return is_bytes(kind) or any(holds_bytes(kind.field(index).type) for index in range(kind.num_fields))


def open_arrow(path: Path) -> pa.ipc.RecordBatchStreamReader | pa.ipc.RecordBatchFileReader:
    """A reader of an Arrow file, of both of its forms; a local file is mapped, not read."""
    source = pa.memory_map(str(path)) if is_local(path) else pa.PythonFile(path.open("rb"), mode="r")
    magic = source.read(len(_FILE_MAGIC))
    source.seek(0)
    return pa.ipc.open_file(source) if magic == _FILE_MAGIC else pa.ipc.open_stream(source)


def arrow_batches(path: Path, first: int = 0) -> Iterator[pa.RecordBatch]:
    """The batches of an Arrow file as they are stored, from number `first` on.

    Raises:
        pyarrow.ArrowException, OSError: it is damaged; the batches before that are yielded.
    """
    with open_arrow(path) as reader:
        if isinstance(reader, pa.ipc.RecordBatchFileReader):
            yield from (reader.get_batch(index) for index in range(first, reader.num_record_batches))
        else:
            yield from islice(reader, first, None)


class _Cursor:
    """One column, read forward; a value behind the current batch starts again, Parquet at the row's group."""

    def __init__(self, path: Path, column: str) -> None:
        self._path, self._column = path, column
        self._lock = threading.Lock()
        self._batches: Iterator[pa.Array] = iter(())
        self._batch: pa.Array = pa.nulls(0)
        self._start, self._stop = 0, 0

    def value(self, row: int, max_bytes: int) -> pa.Scalar:
        """The value of a row, which was checked: no offset leads out of its buffers."""
        with self._lock:
            if not self._start <= row < self._stop:
                self._open(row, max_bytes)
            while row >= self._start + len(self._batch):
                self._start += len(self._batch)
                self._batch = self._next(row)
            place = row - self._start
            self._batch.slice(place, 1).validate(full=True)
            return self._batch[place]

    def _open(self, row: int, max_bytes: int) -> None:
        self._batch, self._start, self._stop = pa.nulls(0), 0, 0
        if self._path.suffix.lower() == ".parquet":
            self._start, self._stop, self._batches = _parquet_group(self._path, self._column, row, max_bytes)
        else:
            self._batches = (_column(batch, self._column) for batch in arrow_batches(self._path))
            self._stop = sys.maxsize

    def _next(self, row: int) -> pa.Array:
        stop, self._stop = self._stop, 0  # Where this fails, the next value opens the file again.
        batch = next(self._batches, None)
        if batch is None:
            raise ValueError(f"missing file: {self._path.name} has no row {row}")
        self._stop = stop
        return batch


@lru_cache(maxsize=4)
def _cursor(path: Path, _stamp: str, column: str) -> _Cursor:
    return _Cursor(path, column)


def _parquet_group(path: Path, column: str, row: int, max_bytes: int) -> tuple[int, int, Iterator[pa.Array]]:
    """The row group a row is in: its first row, the one behind its last, and its column in small batches.

    Raises:
        ValueError: there is no such row or column, or the group is larger than all of its values may be together.
    """
    file = pq.ParquetFile(path.open("rb"))
    if column not in file.schema_arrow.names:
        raise ValueError(f"missing file: {path.name} has no column {column}")
    start = 0
    for index in range(file.num_row_groups):
        group = file.metadata.row_group(index)
        if row < start + group.num_rows:
            break
        start += group.num_rows
    else:
        raise ValueError(f"missing file: {path.name} has no row {row}")
    chunks = (group.column(number) for number in range(group.num_columns))
    size = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] == column)
    if size > (max_bytes + _PER_VALUE_BYTES) * group.num_rows:
        raise ValueError(f"too large: {path.name}/{column} unpacks to {size} bytes in {group.num_rows} rows")
    batches = file.iter_batches(BATCH_ROWS, row_groups=[index], columns=[column])
    return start, start + group.num_rows, (_column(batch, column) for batch in batches)


def _column(batch: pa.RecordBatch, name: str) -> pa.Array:
    if name not in batch.schema.names:
        raise ValueError(f"missing file: there is no column {name}")
    return batch.column(name)


def _step(value: pa.Scalar, step: str) -> pa.Scalar:
    """An element of a list or a field of a struct."""
    if value.is_valid and isinstance(value, pa.StructScalar) and step in [field.name for field in value.type]:
        return value[step]
    if value.is_valid and isinstance(value, pa.ListScalar) and step.isdecimal() and int(step) < len(value):
        return value[int(step)]
    raise ValueError(f"missing file: nothing at /{step}")


def _embedded(value: pa.Scalar) -> tuple[Any, str]:
    """The scalar that has the bytes, None where there is none, and the name they came with."""
    if is_bytes(value.type):
        return value, ""
    if not is_file(value.type) or not value.is_valid:
        return None, ""
    fields = [field.name for field in value.type]
    return value["bytes"], (value["path"].as_py() if "path" in fields else None) or ""
