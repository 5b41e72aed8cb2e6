"""What the tests of all readers share."""

import io
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from pipelines.sample import Modality, Reject, Sample
from pipelines.sources.entry import Entry
from pipelines.sources.readers import READERS


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., list[Sample | Reject]]:
    """Writes rows (or the bytes of a whole file) to a file and reads it: `read("pairs", rows, modality="image")`."""

    def run(reader: str, rows: object, modality: str | None = None, name: str = "rows.json") -> list[Sample | Reject]:
        path = tmp_path / name
        path.write_bytes(rows if isinstance(rows, bytes) else json.dumps(rows).encode())
        entry = Entry(name="rows", reader=reader, paths=[name], modality=modality and Modality(modality))
        return list(READERS[reader](entry, path))

    return run


@pytest.fixture
def read_path() -> Callable[..., list[Sample | Reject]]:
    """Reads a file or folder as it is: `read_path("pairs", path, modality="image", fields={"caption": "my_text"})`."""

    def run(reader: str, path: Path, **fields: Any) -> list[Sample | Reject]:
        entry = Entry(name="rows", reader=reader, **({"paths": [path.name]} | fields))
        return list(READERS[reader](entry, path))

    return run


@pytest.fixture
def write_tar() -> Callable[..., Path]:
    """Writes a tar: `write_tar(path, {"0.jpg": b"...", "0.txt": b"..."})`; a TarInfo stands for itself."""

    def run(path: Path, members: Mapping[str, bytes | tarfile.TarInfo]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w") as tar:
            for name, content in members.items():
                info = tarfile.TarInfo(name) if isinstance(content, bytes) else content
                data = content if isinstance(content, bytes) else b""
                info.name, info.size = name, len(data)
                tar.addfile(info, io.BytesIO(data))
        return path

    return run
