"""Shards: equal samples give equal bytes, and everyone else's tools read them."""

import io
import tarfile
from pathlib import Path

import pytest
import webdataset

from pipelines.sample import Item, Media, Modality, Sample, Turn
from pipelines.storage.files import read_range, read_rows, write_rows
from pipelines.storage.shards import (
    INDEX_SCHEMA,
    Manifest,
    TarShardWriter,
    end_of_archive,
    from_members,
    index_path,
    iterate_samples,
    json_range,
    list_datasets,
    members,
    write_manifest,
)


def pair(key: str, size: int = 700) -> Sample:
    item = Item(modality=Modality.IMAGE, name="png", caption=f"caption of {key}")
    turns = (Turn(role="user", parts=(item,)), Turn(role="assistant", parts=(item.caption,)))
    media = {"png": Media(modality=Modality.IMAGE, data=bytes(size), format="png")}
    return Sample(key=key, source=f"a.json#{key}", turns=turns, media=media, meta={"n": 1})


def write(path: Path, samples: list[Sample]) -> Path:
    index = []
    with TarShardWriter(path) as writer:
        for sample in samples:
            values = members(sample)
            offset, length = writer.write(sample.key, values)
            start, size = json_range(values, offset)
            row = {"key": sample.key, "offset": offset, "length": length, "json_offset": start, "json_length": size}
            index.append(row)
    write_rows(index_path(path), index, INDEX_SCHEMA)
    return path


def test_a_sample_survives_the_round_trip(tmp_path: Path) -> None:
    samples = [pair("a"), pair("b", 513), pair("c", 0)]
    assert list(iterate_samples(write(tmp_path / "00000.tar", samples))) == samples


def test_equal_samples_give_equal_bytes_that_carry_no_time_and_no_user(tmp_path: Path) -> None:
    first = write(tmp_path / "00000.tar", [pair("a"), pair("b")])
    second = write(tmp_path / "00001.tar", [pair("a"), pair("b")])
    assert first.read_bytes() == second.read_bytes()
    with tarfile.open(first) as tar:
        infos = tar.getmembers()
    assert [info.name for info in infos] == ["a.json", "a.png", "a.txt", "b.json", "b.png", "b.txt"]
    assert {(info.mtime, info.uid, info.gid, info.uname, info.gname) for info in infos} == {(0, 0, 0, "", "")}


@pytest.mark.parametrize("count", [1, 2, 7])
def test_the_end_of_an_archive_is_what_tarfile_writes(tmp_path: Path, count: int) -> None:
    path = write(tmp_path / "00000.tar", [pair(f"k{n}") for n in range(count)])
    size = sum(length for _, length in _ranges(path))
    assert path.read_bytes()[size:] == end_of_archive(size)


def test_the_webdataset_library_reads_a_shard(tmp_path: Path) -> None:
    path = write(tmp_path / "00000.tar", [pair("a"), pair("b")])
    rows = list(webdataset.WebDataset(str(path), shardshuffle=False))
    assert [row["__key__"] for row in rows] == ["a", "b"]
    assert from_members({"json": rows[1]["json"], "png": rows[1]["png"]}) == pair("b")


def test_the_index_finds_a_samples_json_in_the_tar(tmp_path: Path) -> None:
    samples = [pair("a"), pair("b")]
    path = write(tmp_path / "00000.tar", samples)
    row = read_rows(index_path(path))[1]
    assert read_range(path, row["json_offset"], row["json_length"]) == members(samples[1])["json"]


def test_a_folder_without_a_finished_dataset_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"run jobs/prepare\.py"):
        list_datasets(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        list_datasets(tmp_path / "absent")


def test_a_manifest_of_another_version_is_refused(tmp_path: Path) -> None:
    write_manifest(tmp_path, {"schema_version": 99})
    with pytest.raises(ValueError, match="schema version 99"):
        Manifest.read(tmp_path)


def _ranges(path: Path) -> list[tuple[int, int]]:
    with tarfile.open(fileobj=io.BytesIO(path.read_bytes())) as tar:
        infos = tar.getmembers()
    return [(info.offset, 512 + info.size + -info.size % 512) for info in infos]
