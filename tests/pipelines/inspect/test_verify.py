"""Verification: what is whole passes, and any flipped byte, lost file or foreign sample is named."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from whole_cases import write_embeddings, write_whole

from pipelines.inspect.damage import Problem
from pipelines.inspect.verify import print_problems, verify, verify_all
from pipelines.media.codecs import encode
from pipelines.sample import Image, Item, Modality, Reject, Sample, Turn
from pipelines.storage.files import read_rows, write_rows
from pipelines.storage.shards import INDEX_SCHEMA, MANIFEST, REJECTS, STATE, Manifest, hash_file, index_path
from pipelines.storage.sidecars import SidecarManifest

KEYS = [f"s{number}" for number in range(10)]
REJECTED = [
    Reject(source="rows.json#3", key="gone", stage="media", reason="missing file: gone.png"),
    Reject(source="rows.json#4", key="s1", stage="read", reason="duplicate key"),
    Reject(source="rows.json#9", key="lost", stage="media", reason="missing file: lost.png"),
]


def pair(number: int) -> Sample:
    picture = encode(Image(pixels=np.full((8, 8, 3), number, np.uint8)))
    item = Item(modality=Modality.IMAGE, name="png", caption=f"a grey of {number}")
    turns = (Turn(role="user", parts=(item,)), Turn(role="assistant", parts=(item.caption,)))
    facts = {"media": {"png": {"file": f"{number}.png", "width": 8, "height": 8}}}
    return Sample(key=KEYS[number], source=f"rows.json#{number}", turns=turns, media={"png": picture}, meta=facts)


def write(directory: Path) -> Path:
    manifest = write_whole(directory, [pair(number) for number in range(10)], REJECTED)
    write_embeddings(directory, manifest, "numbers-1", [KEYS[:4], KEYS[4:8], KEYS[8:]])
    (directory / STATE).write_bytes(b"the memory of this machine")
    return directory


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten samples in three shards, three rejects, one sidecar; tests only read it."""
    return write(tmp_path_factory.mktemp("shards") / "greys")


@pytest.fixture
def greys(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole, tmp_path / "shards" / "greys"))


def files(dataset: Path) -> list[Path]:
    return [path for path in sorted(dataset.rglob("*")) if path.is_file() and path.name != STATE]


def flip(path: Path, place: int, change: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= change
    path.write_bytes(data)


def found(dataset: Path) -> list[tuple[str, str]]:
    """The problems as (file below the dataset, key)."""
    return [(str(problem.file.relative_to(dataset)), problem.key) for problem in verify(dataset)]


def test_nothing_is_wrong_with_what_was_just_written(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(verify_all(whole.parent)) == []
    assert print_problems(whole.parent) == 0
    assert capsys.readouterr().out == "greys: 10 samples in 3 shards, every byte as it was written\n"


# --- Flipped bytes


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_byte_of_any_file_that_is_flipped_is_found_in_that_file(whole: Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(files(whole)), label="file")
    place = data.draw(st.integers(0, path.stat().st_size - 1), label="place")
    change = data.draw(st.integers(1, 255), label="change")
    flip(path, place, change)
    try:
        assert path in {problem.file for problem in verify(whole)}
    finally:
        flip(path, place, change)
    assert list(verify(whole)) == []


@settings(max_examples=40, deadline=None)
@given(place=st.integers(0, 10239), change=st.integers(1, 255), shard=st.sampled_from([0, 1, 2]))
def test_a_flipped_byte_of_a_tar_is_found_in_the_sample_that_it_belongs_to(
    whole: Path, shard: int, place: int, change: int
) -> None:
    tar = whole / f"{shard:05d}.tar"
    rows = read_rows(index_path(tar))
    owner = [row["key"] for row in rows if row["offset"] <= place < row["offset"] + row["length"]]
    flip(tar, place, change)
    try:
        assert [problem.key for problem in verify(whole)] == (owner or [""])
    finally:
        flip(tar, place, change)


@settings(max_examples=30, deadline=None)
@given(place=st.integers(0, 4 * 1024 - 1), change=st.integers(1, 255))
def test_a_flipped_byte_of_a_sidecar_is_found_in_the_sample_that_it_belongs_to(
    whole: Path, place: int, change: int
) -> None:
    tar = whole / "embeddings" / "numbers-1" / "00001.tar"
    flip(tar, place, change)
    try:
        (problem,) = verify(whole)
    finally:
        flip(tar, place, change)
    assert problem.file == tar
    assert problem.key == KEYS[4 + place // 1024]


def test_two_damaged_samples_of_a_shard_are_both_named_also_where_one_is_only_padding(greys: Path) -> None:
    rows = read_rows(greys / "00000.parquet")
    flip(greys / "00000.tar", rows[1]["offset"] + 600)
    flip(greys / "00000.tar", rows[2]["offset"] + rows[2]["length"] - 1)
    problems = list(verify(greys))
    assert [problem.key for problem in problems] == ["s1", "s2"]
    assert f"byte {rows[3]['offset'] - 1}, in a header or padding" in problems[1].what


# --- Lost and foreign files


def lose_shard(dataset: Path) -> None:
    (dataset / "00001.tar").unlink()


def lose_index(dataset: Path) -> None:
    (dataset / "00001.parquet").unlink()


def lose_rejects(dataset: Path) -> None:
    (dataset / REJECTS).unlink()


def lose_manifest(dataset: Path) -> None:
    (dataset / MANIFEST).unlink()


def lose_sidecar_manifest(dataset: Path) -> None:
    (dataset / "embeddings" / "numbers-1" / MANIFEST).unlink()


def lose_sidecar_shard(dataset: Path) -> None:
    (dataset / "embeddings" / "numbers-1" / "00002.tar").unlink()


def add_shard(dataset: Path) -> None:
    shutil.copy(dataset / "00000.tar", dataset / "00003.tar")


def break_off(dataset: Path) -> None:
    (dataset / ".00000.tar.x1y2z3").write_bytes(b"half a shard")


def add_sidecar_shard(dataset: Path) -> None:
    shutil.copy(dataset / "00000.tar", dataset / "embeddings" / "numbers-1" / "00003.tar")


@pytest.mark.parametrize(
    ("damage", "file", "what"),
    [
        (lose_shard, "00001.tar", "missing, and 4 samples with it"),
        (lose_index, "00001.parquet", "missing"),
        (lose_rejects, REJECTS, "missing"),
        (lose_manifest, MANIFEST, "missing: this folder is not finished"),
        (lose_sidecar_manifest, f"embeddings/numbers-1/{MANIFEST}", "missing: this folder is not finished"),
        (lose_sidecar_shard, "embeddings/numbers-1/00002.tar", "missing, and 2 samples with it"),
        (add_shard, "00003.tar", "orphaned; the manifest does not name it"),
        (add_sidecar_shard, "embeddings/numbers-1/00003.tar", "orphaned; the manifest does not name it"),
        (break_off, ".00000.tar.x1y2z3", "unfinished: left by a run that broke off; the manifest does not name it"),
    ],
)
def test_what_is_lost_or_foreign_is_named(
    greys: Path, damage: Callable[[Path], None], file: str, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(greys)
    assert list(verify(greys)) == [Problem(file=greys / file, what=what)]
    assert print_problems(greys.parent) == 1
    assert capsys.readouterr().out.splitlines() == [f"{greys / file}: {what}", "greys: 1 problem"]


def test_a_shard_that_was_cut_off_loses_the_samples_behind_the_cut(greys: Path) -> None:
    rows = read_rows(greys / "00000.parquet")
    tar = greys / "00000.tar"
    tar.write_bytes(tar.read_bytes()[: rows[2]["offset"] + 100])
    assert found(greys) == [("00000.tar", ""), ("00000.tar", "s2"), ("00000.tar", "s3")]


# --- Files that are whole, but do not belong together


def rewrite(dataset: Path, shard: int, rows: list[dict[str, object]]) -> None:
    """Another index for a shard, as a manifest that knows nothing else would name it."""
    manifest, path = Manifest.read(dataset), index_path(dataset / f"{shard:05d}.tar")
    write_rows(path, rows, INDEX_SCHEMA)
    shards = list(manifest.shards)
    shards[shard] = replace(shards[shard], index_sha256=hash_file(path))
    replace(manifest, shards=shards).write(dataset)


def test_a_key_that_differs_between_index_and_tar_is_named(greys: Path) -> None:
    rows = read_rows(greys / "00000.parquet")
    rewrite(greys, 0, [row | {"key": "stranger"} if row["key"] == "s2" else row for row in rows])
    places = found(greys)
    assert ("00000.tar", "stranger") in places
    assert ("embeddings/numbers-1/00000.parquet", "s2") in places


def test_a_sample_missing_from_an_index_is_found(greys: Path) -> None:
    rows = read_rows(greys / "00000.parquet")
    rewrite(greys, 0, [row for row in rows if row["key"] != "s2"])
    places = found(greys)
    assert ("00000.parquet", "") in places
    assert ("00000.parquet", "s3") in places


def test_counts_that_do_not_add_up_are_named(greys: Path) -> None:
    manifest = Manifest.read(greys)
    replace(manifest, rows=14, rejected={"missing file": 3, "duplicate key": 1}).write(greys)
    assert [str(problem).removeprefix(f"{greys}/") for problem in verify(greys)] == [
        "rejects.parquet: has 2 rows of 'missing file', the manifest counts 3"
    ]
    replace(manifest, rows=15, samples=11, samples_per_shard=3).write(greys)
    whats = {problem.what.removeprefix("the counts do not add up: ") for problem in verify(greys)}
    assert "15 rows, but 11 samples and 3 rejected" in whats
    assert "11 samples, but 10 in its shards" in whats
    assert "4 samples in 00001.tar, but 3 a shard" in whats


def test_a_manifest_changed_by_hand_is_found(greys: Path) -> None:
    path = greys / MANIFEST
    path.write_text(path.read_text().replace('"licence": "none"', '"licence": "mine"'))
    (problem,) = verify(greys)
    assert problem.file == path
    assert "checksum" in problem.what


def test_sidecar_shards_that_were_swapped_are_found(greys: Path) -> None:
    folder = greys / "embeddings" / "numbers-1"
    for suffix in (".tar", ".parquet"):
        (folder / f"00000{suffix}").rename(folder / "x")
        (folder / f"00001{suffix}").rename(folder / f"00000{suffix}")
        (folder / "x").rename(folder / f"00001{suffix}")
    assert {file for file, _ in found(greys)} >= {f"embeddings/numbers-1/0000{n}.{s}" for n in (0, 1) for s in ("tar",)}


def test_a_sidecar_with_other_keys_or_another_order_is_found(greys: Path) -> None:
    manifest = Manifest.read(greys)
    write_embeddings(greys, manifest, "numbers-1", [KEYS[:4], ["s4", "s6", "s5", "s7"], ["s8", "stranger"]])
    assert found(greys) == [
        ("embeddings/numbers-1/00001.parquet", "s6"),
        ("embeddings/numbers-1/00002.parquet", "stranger"),
        ("embeddings/numbers-1/00002.parquet", "s9"),
    ]


def test_the_sidecar_of_shards_that_are_no_longer_there_is_orphaned(greys: Path) -> None:
    write_whole(greys, [pair(number) for number in range(6)], REJECTED)
    for name in ("00002.tar", "00002.parquet"):
        (greys / name).unlink()
    problems = {(str(problem.file.relative_to(greys)), problem.what.partition(":")[0]) for problem in verify(greys)}
    assert ("embeddings/numbers-1/00002.tar", "orphaned") in problems
    assert ("embeddings/numbers-1/00001.tar", "orphaned") in problems
    assert not any(name.startswith("embeddings/numbers-1/00000") for name, _ in problems)


def test_a_sidecar_under_the_name_of_another_encoder_is_found(greys: Path) -> None:
    (greys / "embeddings" / "numbers-1").rename(greys / "embeddings" / "numbers-2")
    assert found(greys) == [(f"embeddings/numbers-2/{MANIFEST}", "")]
    assert SidecarManifest.read(greys / "embeddings" / "numbers-2").encoder_id == "numbers-1"


def test_a_folder_without_a_dataset_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run jobs/prepare"):
        list(verify_all(tmp_path))
    with pytest.raises(FileNotFoundError, match="no such folder"):
        list(verify_all(tmp_path / "nowhere"))


def test_a_dataset_behind_a_url_is_verified_in_the_same_way(whole: Path) -> None:
    from upath import UPath

    folder = UPath("memory://verify/greys")
    for path in files(whole):
        target = folder / str(path.relative_to(whole))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    assert list(verify_all(folder.parent)) == []
    (folder / "00000.tar").write_bytes((whole / "00001.tar").read_bytes())
    assert {problem.file.name for problem in verify(folder)} == {"00000.tar"}
