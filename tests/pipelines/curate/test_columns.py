"""Columns lie beside the shards: a row a sample, in order; what is missing, damaged or of other shards is made anew."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dataset_cases import pair, write_dataset

from pipelines.curate.columns import (
    FAILURES,
    REASON,
    ColumnsManifest,
    ColumnsWork,
    begin,
    find_columns,
    finish,
    is_current,
)
from pipelines.curate.curating import columns_work, score_row
from pipelines.curate.scorers import Content, EachSample, Scorer, Values
from pipelines.inspect.verify import verify
from pipelines.sample import Media, Modality, Sample
from pipelines.storage.files import write_rows
from pipelines.storage.shards import MANIFEST, REJECT_SCHEMA, REJECTS, Manifest


def number_of(content: Content) -> Values:
    number = int(content.sample.key[1:])
    if number == 3:
        raise RuntimeError("three is\ntoo much")
    return {"number": number, "name": None if number == 1 else content.sample.key}


def make_numbers() -> EachSample:
    return EachSample(number_of)


NUMBERS = Scorer(name="numbers", columns={"number": "int", "name": "str"}, version="1", make=make_numbers)


def score(work: ColumnsWork, shards: Iterable[int], scorer: Scorer = NUMBERS) -> None:
    for shard in shards:
        score_row({"shard": shard, "works": "[0]", "samples": 0}, [work], {scorer.name: scorer})


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "pictures", [pair(f"k{number}") for number in range(5)], 2)
    return tmp_path / "pictures"


@pytest.fixture
def work(dataset: Path) -> ColumnsWork:
    return columns_work(dataset, NUMBERS)


def test_every_sample_has_a_row_in_its_place(work: ColumnsWork) -> None:
    score(work, begin(work))
    found = [pq.read_table(work.folder / f"0000{shard}.parquet") for shard in range(3)]
    assert [table["key"].to_pylist() for table in found] == [["k0", "k1"], ["k2", "k3"], ["k4"]]
    assert [table["number"].to_pylist() for table in found] == [[0, 1], [2, None], [4]]
    assert found[0].schema.field("number").type == pa.int64()
    assert found[1][REASON].to_pylist() == [None, "RuntimeError: three is too much"]
    manifest = finish(work)
    # In = out: five rows, each with a value, without one that applies, or with a reason.
    assert (manifest.rows, manifest.values, manifest.failed) == (5, {"number": 4, "name": 3}, 1)
    assert pq.read_table(work.folder / FAILURES).to_pylist() == [
        {"shard": "00001.tar", "sample": 1, "key": "k3", "reason": "RuntimeError: three is too much"}
    ]


def test_a_rerun_does_what_is_missing_and_gives_the_same_bytes(work: ColumnsWork, tmp_path: Path) -> None:
    score(work, begin(work))
    finish(work)
    before = {path.name: path.read_bytes() for path in work.folder.iterdir()}
    assert begin(work) == []
    work.target(1).write_bytes(work.target(1).read_bytes()[:-40])
    work.target(2).unlink()
    assert begin(work) == [1, 2]
    assert not (work.folder / MANIFEST).exists()
    score(work, [2, 1])
    finish(work)
    assert {path.name: path.read_bytes() for path in work.folder.iterdir()} == before


def test_a_flipped_byte_of_a_page_is_found(work: ColumnsWork) -> None:
    score(work, begin(work))
    data = bytearray(work.target(0).read_bytes())
    data[30] ^= 1
    work.target(0).write_bytes(data)
    assert begin(work) == [0]


def test_only_the_shard_that_changed_is_scored_again(work: ColumnsWork, dataset: Path) -> None:
    score(work, begin(work))
    manifest = finish(work)
    assert is_current(manifest, Manifest.read(dataset))
    write_dataset(dataset, [*(pair(f"k{number}") for number in range(4)), pair("k7")], 2)
    assert not is_current(manifest, Manifest.read(dataset))
    changed = columns_work(dataset, NUMBERS)
    assert begin(changed) == [2]
    score(changed, [2])
    assert is_current(finish(changed), Manifest.read(dataset))
    assert pq.read_table(changed.target(2))["number"].to_pylist() == [7]


def test_a_new_version_takes_the_place_of_the_old_one(work: ColumnsWork, dataset: Path) -> None:
    score(work, begin(work))
    finish(work)
    newer = replace(NUMBERS, version="2")
    changed = columns_work(dataset, newer)
    assert changed.id != work.id
    assert begin(changed) == [0, 1, 2]
    assert work.folder.is_dir(), "until the new ones are there, the old ones are"
    score(changed, [0, 1, 2], newer)
    finish(changed)
    assert [manifest.id for manifest in find_columns(dataset).values()] == [changed.id]
    assert not work.folder.exists()


def test_shards_that_are_gone_leave_no_columns(work: ColumnsWork, dataset: Path) -> None:
    score(work, begin(work))
    finish(work)
    write_dataset(dataset, [pair(f"k{number}") for number in range(2)], 2)
    fewer = columns_work(dataset, NUMBERS)
    assert begin(fewer) == []
    assert finish(fewer).rows == 2
    assert sorted(path.name for path in fewer.folder.iterdir()) == ["00000.parquet", MANIFEST]


def test_what_is_damaged_or_of_another_version_is_told_in_one_line(work: ColumnsWork, dataset: Path) -> None:
    score(work, begin(work))
    finish(work)
    path = work.folder / MANIFEST
    path.write_text(path.read_text().replace('"rows": 5', '"rows": 6'))
    with pytest.raises(ValueError, match="does not fit its checksum"):
        ColumnsManifest.read(work.folder)


def test_a_shard_whose_tar_is_cut_is_named(work: ColumnsWork) -> None:
    tar = work.source(0)
    tar.write_bytes(tar.read_bytes()[:700])
    with pytest.raises(ValueError, match=r"00000\.tar: damaged"):
        score(work, [0])


def test_a_value_of_another_type_is_told_with_its_column(dataset: Path) -> None:
    wrong = replace(NUMBERS, columns={"number": "int", "name": "float"})
    with pytest.raises(ValueError, match="name"):
        score(columns_work(dataset, wrong), [0], wrong)


def test_columns_are_no_strays_to_verify(work: ColumnsWork, dataset: Path) -> None:
    from pipelines.storage.shards import hash_file

    write_rows(dataset / REJECTS, [], REJECT_SCHEMA)
    replace(Manifest.read(dataset), rejects_sha256=hash_file(dataset / REJECTS)).write(dataset)
    score(work, begin(work))
    finish(work)
    assert list(verify(dataset)) == []


def test_media_that_cannot_be_decoded_are_told_once_for_each_scorer(tmp_path: Path) -> None:
    from pipelines.curate import measures

    broken = Media(modality=Modality.IMAGE, data=b"nothing", format="png")
    samples: list[Sample] = [pair("k0", shade=9), replace(pair("k1"), media={"png": broken})]
    write_dataset(tmp_path / "pictures", samples, 2)
    work = columns_work(tmp_path / "pictures", measures.scorer())
    score(work, [0], measures.scorer())
    manifest = finish(work)
    assert (manifest.rows, manifest.failed, manifest.values["width"], manifest.values["caption_words"]) == (2, 1, 1, 2)
