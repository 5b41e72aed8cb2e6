"""Rows of Parquet and Arrow files. Embedded media stay where they are: a row gets their names inside the file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.storage.files import is_local
from pipelines.tables.columns import BATCH_ROWS, arrow_batches, holds_bytes, is_bytes, is_file, open_arrow, quote_column
from pipelines.tables.raw import START, Place, Raw, one_line

_TEXT_BATCH_ROWS = 1024


def parquet_rows(path: Path, name: str, place: Place = START) -> Iterator[Raw]:
    """The rows of a Parquet file, in small batches.

    Raises:
        ValueError: it is no Parquet file.
    """
    with path.open("rb") as handle:
        try:
            file = pq.ParquetFile(handle)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path}: not a readable Parquet file ({one_line(error)})") from None
        embedded = _always_embedded(file)
        leaves = [file.metadata.schema.column(index).path for index in range(len(file.metadata.schema))]
        wanted = [leaf for leaf in leaves if leaf.removesuffix(".bytes") not in embedded]
        known = [column for column in file.schema_arrow.names if column in embedded] if wanted else []
        media = any(holds_bytes(field.type) for field in file.schema_arrow if field.name not in known)
        size = BATCH_ROWS if media else _TEXT_BATCH_ROWS
        groups, skipped = _groups_from(file, place.row)
        batches = file.iter_batches(size, row_groups=groups, columns=wanted if known else None)
        yield from _rows(_without(batches, skipped), name, known, place.row)


def parquet_places(path: Path) -> tuple[list[Place], int]:
    """Places where a Parquet file can be read from, and how many rows it has, as it says itself.

    Raises:
        ValueError: it is no Parquet file.
    """
    with path.open("rb") as file:
        try:
            rows = pq.read_metadata(file).num_rows
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path}: not a readable Parquet file ({one_line(error)})") from None
    return [Place(row) for row in range(_TEXT_BATCH_ROWS, rows, _TEXT_BATCH_ROWS)], rows


def arrow_rows(path: Path, name: str, place: Place = START) -> Iterator[Raw]:
    """The rows of an Arrow file, as a stream (what Hugging Face `datasets` saves) or with random access.

    Raises:
        ValueError: it is no Arrow file.
    """
    try:
        with open_arrow(path):
            pass
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a readable Arrow file ({one_line(error)})") from None
    yield from _rows(arrow_batches(path, place.at), name, [], place.row)


def arrow_places(path: Path) -> tuple[list[Place], int] | None:
    """Places where an Arrow file can be read from, and how many rows it has; None of one that is read as a whole.

    Where it is damaged, the damage counts as a row.

    Raises:
        ValueError: it is no Arrow file.
    """
    if not is_local(path):
        return None  # Its batches are found by reading all that is in front.
    places, rows = list[Place](), 0
    try:
        for at, batch in enumerate(arrow_batches(path)):
            if rows - (places[-1].row if places else 0) >= _TEXT_BATCH_ROWS:
                places.append(Place(rows, at))
            rows += batch.num_rows
    except (pa.ArrowException, OSError):
        rows += 1
    return places, rows


def embeds_media(path: Path) -> bool:
    """Whether a Parquet or Arrow file has a column with bytes; False where it cannot be read."""
    try:
        if path.suffix.lower() == ".arrow":
            with open_arrow(path) as reader:
                return any(holds_bytes(field.type) for field in reader.schema)
        with path.open("rb") as file:
            return any(holds_bytes(field.type) for field in pq.read_schema(file))
    except (pa.ArrowException, OSError):
        return False


def _always_embedded(file: pq.ParquetFile) -> set[str]:
    """Columns of media that have bytes in every row, by the file's own statistics: they need not be read."""
    kinds = {field.name: field.type for field in file.schema_arrow if is_bytes(field.type) or is_file(field.type)}
    nulls = dict.fromkeys(kinds, 0)
    for index in range(file.num_row_groups):
        group = file.metadata.row_group(index)
        for number in range(group.num_columns):
            chunk = group.column(number)
            column = chunk.path_in_schema.removesuffix(".bytes")
            if column in nulls:
                known = chunk.is_stats_set and chunk.statistics.has_null_count
                nulls[column] += chunk.statistics.null_count if known else 1
    return {column for column, count in nulls.items() if count == 0}


def _groups_from(file: pq.ParquetFile, row: int) -> tuple[list[int], int]:
    """The row groups from that of a row on, and how many rows stand in front of it in its group."""
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if row < rows:
            return list(range(group, file.num_row_groups)), row
        row -= rows
    return [], 0


def _without(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """Batches without the first of their rows."""
    for batch in batches:
        left = max(0, rows - batch.num_rows)
        if rows < batch.num_rows:
            yield batch.slice(rows)
        rows = left


def _rows(batches: Iterator[pa.RecordBatch], name: str, known: list[str], first: int) -> Iterator[Raw]:
    count = first
    while True:
        try:
            batch = next(batches, None)
        except (pa.ArrowException, OSError) as error:
            yield Raw(source=f"{name}#{count}", key="", error=f"unreadable: {name} breaks off ({one_line(error)})")
            return
        if batch is None:
            return
        for row in _values(batch, name, count):
            value = None if isinstance(row, str) else row | {key: _place(name, key, count) for key in known}
            yield Raw(source=f"{name}#{count}", value=value, error=row if isinstance(row, str) else "")
            count += 1


def _values(batch: pa.RecordBatch, name: str, start: int) -> Iterator[dict[str, Any] | str]:
    """Each row, or why it cannot be read: offsets and texts are checked before they are followed."""
    try:
        batch.validate(full=True)
        columns = [_column(batch.column(index), name, key, start) for index, key in enumerate(batch.schema.names)]
    except (pa.ArrowException, ValueError) as error:
        if batch.num_rows == 1:
            text = "utf" in str(error).lower()
            yield f"damaged text: not valid UTF-8 ({one_line(error)})" if text else f"unreadable: {one_line(error)}"
            return
        for row in range(batch.num_rows):
            yield from _values(batch.slice(row, 1), name, start + row)
        return
    for row in range(batch.num_rows):
        yield {key: column[row] for key, column in zip(batch.schema.names, columns, strict=True)}


def _column(column: pa.Array, name: str, key: str, start: int) -> list[Any]:
    if not holds_bytes(column.type):
        return column.to_pylist()
    return [_named(value, _place(name, key, start + row)) for row, value in enumerate(column)]


def _named(value: pa.Scalar, place: str) -> Any:
    """A value in which every medium is its name: its place in this file, or its own path where it has no bytes."""
    if not value.is_valid:
        return None
    if is_bytes(value.type):
        return place
    if is_file(value.type):
        if value["bytes"].is_valid:
            return place
        return value["path"].as_py() if "path" in [field.name for field in value.type] else None
    if isinstance(value, pa.StructScalar):
        return {field.name: _named(value[field.name], f"{place}/{field.name}") for field in value.type}
    if isinstance(value, pa.ListScalar) and not isinstance(value, pa.MapScalar):
        return [_named(element, f"{place}/{index}") for index, element in enumerate(value)]
    return value.as_py()


def _place(name: str, column: str, row: int) -> str:
    return f"{name}/{quote_column(column)}/{row}"
