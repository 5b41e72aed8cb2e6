"""What the tests of all readers share."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.catalog import Entry
from pipelines.readers import READERS
from pipelines.sample import Modality, Reject, Sample


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., list[Sample | Reject]]:
    """Writes rows (or the bytes of a whole file) to a file and reads it: `read("pairs", rows, modality="image")`."""

    def run(reader: str, rows: object, modality: str | None = None, name: str = "rows.json") -> list[Sample | Reject]:
        path = tmp_path / name
        path.write_bytes(rows if isinstance(rows, bytes) else json.dumps(rows).encode())
        entry = Entry(name="rows", reader=reader, paths=[name], modality=modality and Modality(modality))
        return list(READERS[reader](entry, path))

    return run
