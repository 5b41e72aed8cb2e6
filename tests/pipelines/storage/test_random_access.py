"""Random access: the bytes asked for, in the order asked for, whatever is kept open and wherever the files are."""

from pathlib import Path

import pytest
from dataset_cases import pair, write_dataset

from pipelines.storage import random_access
from pipelines.storage.files import read_rows, to_path
from pipelines.storage.random_access import Indexes, Range, Ranges
from pipelines.storage.shards import INDEX_SCHEMA, index_path, members, shard_name

SAMPLES = [pair(f"k{number}", shade=number) for number in range(6)]
PLACES = [(2, 1), (0, 0), (1, 1), (0, 1), (2, 0), (1, 0), (2, 1)]


@pytest.fixture
def tars(tmp_path: Path) -> list[Path]:
    """Three shards of two samples."""
    write_dataset(tmp_path / "pictures", SAMPLES, 2)
    return [tmp_path / "pictures" / shard_name(number) for number in range(3)]


def documents(tars: list[Path]) -> list[bytes]:
    indexes, ranges = Indexes("json_offset", "json_length"), Ranges()
    return ranges.read([indexes.entry(tars[shard], place).range for shard, place in PLACES])


def test_an_entry_is_what_the_index_says(tars: list[Path]) -> None:
    indexes = Indexes("json_offset", "json_length")
    for shard, place in PLACES:
        row, found = read_rows(index_path(tars[shard]))[place], indexes.entry(tars[shard], place)
        assert (found.key, found.lengths) == (row["key"], [])
        assert found.range == Range(tars[shard], row["json_offset"], row["json_length"])


@pytest.mark.parametrize(("num_bytes", "files"), [(1 << 30, 256), (1, 1)])
def test_what_is_kept_open_changes_nothing(
    tars: list[Path], num_bytes: int, files: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random_access, "INDEX_BYTES", num_bytes)
    monkeypatch.setattr(random_access, "OPEN_FILES", files)
    assert documents(tars) == [members(SAMPLES[2 * shard + place])["json"] for shard, place in PLACES]


def test_local_files_and_an_object_store_are_read_alike(tars: list[Path]) -> None:
    away = to_path("memory://random-access")
    for tar in tars[1:]:
        for path in (tar, index_path(tar)):
            (away / path.name).write_bytes(path.read_bytes())
    assert documents([tars[0], away / tars[1].name, away / tars[2].name]) == documents(tars)


def test_a_tar_that_is_gone_is_named(tars: list[Path]) -> None:
    entry = Indexes("json_offset", "json_length").entry(tars[1], 0)
    tars[1].unlink()
    with pytest.raises(FileNotFoundError, match=r"00001\.tar"):
        Ranges().read([entry.range])


def test_only_the_columns_asked_for_are_kept(tars: list[Path]) -> None:
    assert {"caption", "sha256"} <= set(INDEX_SCHEMA.names)
    indexes = Indexes("json_offset", "json_length")
    indexes.entry(tars[0], 0)
    assert indexes.num_bytes < 100
