"""Files that appear whole or not at all: what is said where they cannot be written."""

import errno
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipelines.storage.files import atomic_path, iterate_rows, read_where, write_many_rows, write_rows


def test_a_disk_that_fills_up_names_the_file_and_leaves_nothing(tmp_path: Path) -> None:
    script = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from pipelines.storage.files import atomic_path\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        "    with atomic_path(Path(sys.argv[1])) as temporary, temporary.open('wb') as file:\n"
        "        file.write(bytes(2000))\n"
        "except OSError as error:\n"
        "    print(error.errno, error.filename)\n"
    )
    path = tmp_path / "deep" / "a.tar"
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == f"{errno.EFBIG} {path}\n"
    assert list(path.parent.iterdir()) == []


def test_an_error_of_reading_is_not_told_of_the_file_that_is_written(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, atomic_path(tmp_path / "a.tar"):
        (tmp_path / "absent").read_bytes()
    assert str(caught.value.filename) == str(tmp_path / "absent")


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file/a\.tar'$"), atomic_path(tmp_path / "file" / "a.tar"):
        pass


@pytest.mark.parametrize("count", [0, 1, 4096, 10_000])
def test_rows_written_as_they_come_are_the_bytes_of_those_written_at_once(tmp_path: Path, count: int) -> None:
    schema = pa.schema([("name", pa.string()), ("number", pa.int64())])
    rows = [{"name": f"row {number % 97}", "number": number} for number in range(count)]
    write_rows(tmp_path / "at-once.parquet", rows, schema)
    write_many_rows(tmp_path / "as-they-come.parquet", iter(rows), schema, 1 << 20)
    assert (tmp_path / "as-they-come.parquet").read_bytes() == (tmp_path / "at-once.parquet").read_bytes()


def test_many_rows_are_read_back_a_few_at_a_time_or_those_that_are_asked_for(tmp_path: Path) -> None:
    path, rows = tmp_path / "rows.parquet", [{"name": f"{number:04d}"} for number in range(1000)]
    write_many_rows(path, rows, pa.schema([("name", pa.string())]), 300)
    assert [pq.read_metadata(path).row_group(group).num_rows for group in range(4)] == [300, 300, 300, 100]
    assert list(iterate_rows(path, at_once=7)) == rows
    assert read_where(path, pc.field("name").isin(["0007", "0999", "x"]))["name"].to_pylist() == ["0007", "0999"]
