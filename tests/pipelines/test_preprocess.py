"""Preparation: every row ends in a shard or among the rejects, and the bytes depend on nothing but the rows."""

import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray.data
import webdataset
from dataset_cases import picture, times, tree, write_shard
from hypothesis import given
from hypothesis import strategies as st

from pipelines.catalog import Entry
from pipelines.files import read_rows
from pipelines.media_folder import load_media
from pipelines.preprocess import STATE, Source, plan_shards, prepare, prepare_part, stage_rows
from pipelines.readers import READERS
from pipelines.sample import Modality, Sample
from pipelines.shards import MANIFEST, REJECTS, Manifest, index_path, iterate_samples

GOOD = [f"good-{number}" for number in range(9)]
ENTRY = Entry(
    name="pictures",
    reader="pairs",
    paths=["rows.json"],
    media="images",
    modality=Modality.IMAGE,
    views={"pictures_enc": {"stage": 1, "kind": "caption"}, "pictures_dec": {"stage": 2, "kind": "generate"}},
    licence="none",
)


def row(key: str, caption: str = "a grey square", name: str = "") -> dict[str, str]:
    return {"id": key, "caption": caption, "image_name": name or f"{key}.png"}


@pytest.fixture(scope="module")
def dirty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of nine good rows with a bad one of each sort between them."""
    root = tmp_path_factory.mktemp("data")
    rows = [row(key) for key in GOOD]
    for place, bad in [
        (1, row("absent")),
        (3, row("broken")),
        (5, row("silent", caption=" \n")),
        (6, row(GOOD[0], name="good-1.png")),
        (9, row("outside", name="../rows.json")),
    ]:
        rows.insert(place, bad)
    (root / "rows.json").write_text(json.dumps(rows))
    (root / "images").mkdir()
    for number, key in enumerate(GOOD):
        (root / "images" / f"{key}.png").write_bytes(picture(number).data)
    whole = picture(77, size=64).data
    (root / "images" / "broken.png").write_bytes(whole[: len(whole) // 2])
    return root


@pytest.fixture(scope="module")
def finished(local_ray: None, dirty: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards of that folder; tests only read them."""
    directory = tmp_path_factory.mktemp("shards") / "pictures"
    _, made = prepare(source(dirty, directory))
    assert made
    return directory


def source(root: Path, directory: Path, samples_per_shard: int = 4, entry: Entry = ENTRY) -> Source:
    return Source(
        entry=entry,
        path=root / "rows.json",
        media=root / "images",
        directory=directory,
        samples_per_shard=samples_per_shard,
    )


def copy(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target))


# --- The plan of shards ----------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 9), max_size=12), st.integers(1, 7))
def test_shards_are_exact_but_the_last_and_take_every_accepted_row_once_in_order(
    accepted: list[int], samples_per_shard: int
) -> None:
    shards = plan_shards(accepted, samples_per_shard)
    taken = [[(p.part, place) for p in pieces for place in range(p.start, p.stop)] for pieces in shards]
    assert list(itertools.chain(*taken)) == [
        (part, place) for part, count in enumerate(accepted) for place in range(count)
    ]
    assert all(len(shard) == samples_per_shard for shard in taken[:-1])
    assert all(0 < len(shard) <= samples_per_shard for shard in taken[-1:])


# --- The whole step --------------------------------------------------------------------------------------------------


@pytest.mark.ray
def test_every_bad_row_is_rejected_with_its_reason_and_no_other(finished: Path) -> None:
    rejects = {row["key"]: (row["stage"], row["reason"].partition(":")[0]) for row in read_rows(finished / REJECTS)}
    assert rejects == {
        "silent": ("read", "empty caption"),
        GOOD[0]: ("read", "duplicate key"),
        "absent": ("media", "missing file"),
        "broken": ("media", "unreadable"),
        "outside": ("media", "path outside the root"),
    }
    assert keys_of(finished) == GOOD


@pytest.mark.ray
def test_the_rejects_name_the_row_of_the_file(finished: Path) -> None:
    sources = {row["reason"].partition(":")[0]: row["source"] for row in read_rows(finished / REJECTS)}
    assert sources["missing file"] == "rows.json#1"
    assert sources["duplicate key"] == "rows.json#6"


@pytest.mark.ray
def test_rows_are_samples_and_rejected(finished: Path) -> None:
    manifest = Manifest.read(finished)
    assert (manifest.rows, manifest.samples, sum(manifest.rejected.values())) == (14, 9, 5)
    assert manifest.rows == manifest.samples + len(read_rows(finished / REJECTS))
    assert manifest.input_items == manifest.output_items["image"] == 9


@pytest.mark.ray
def test_a_shard_holds_exactly_as_many_samples_as_asked_for_but_the_last(finished: Path) -> None:
    assert [shard.samples for shard in Manifest.read(finished).shards] == [4, 4, 1]
    assert [len(list(iterate_samples(tar))) for tar in sorted(finished.glob("*.tar"))] == [4, 4, 1]
    assert not (finished / ".work").exists()


@pytest.mark.ray
def test_the_shards_are_those_of_the_accepted_samples_written_in_one_go(
    finished: Path, dirty: Path, tmp_path: Path
) -> None:
    """Though they were put together from parts, whose borders the rejects move."""
    rows = {
        row.key: row for row in reversed(list(READERS["pairs"](ENTRY, dirty / "rows.json"))) if isinstance(row, Sample)
    }
    samples = [load_media(rows[key], dirty / "images") for key in GOOD]
    for number, shard in enumerate(Manifest.read(finished).shards):
        plain = write_shard(tmp_path / shard.name, samples[number * 4 : number * 4 + 4])
        assert plain == shard
        assert (tmp_path / shard.name).read_bytes() == (finished / shard.name).read_bytes()
        columns = ["key", "offset", "length", "json_offset", "json_length", "sha256"]
        assert read_rows(index_path(tmp_path / shard.name), columns) == read_rows(
            index_path(finished / shard.name), columns
        )


@pytest.mark.ray
def test_a_rerun_makes_nothing_and_touches_no_file(finished: Path, dirty: Path) -> None:
    before = tree(finished), times(finished)
    manifest, made = prepare(source(dirty, finished))
    assert not made
    assert manifest == Manifest.read(finished)
    assert (tree(finished), times(finished)) == before


@pytest.mark.ray
def test_a_changed_medium_is_taken_in(finished: Path, dirty: Path, tmp_path: Path) -> None:
    root, directory = copy(dirty, tmp_path / "data"), copy(finished, tmp_path / "pictures")
    (root / "images" / "good-4.png").write_bytes(picture(200).data)
    manifest, made = prepare(source(root, directory))
    assert made
    samples = {sample.key: sample for tar in sorted(directory.glob("*.tar")) for sample in iterate_samples(tar)}
    assert samples["good-4"].media["png"] == picture(200)
    old = Manifest.read(finished).shards
    changed = [new.name for was, new in zip(old, manifest.shards, strict=True) if new.sha256 != was.sha256]
    assert changed == ["00001.tar"]


def forget_manifest(directory: Path) -> None:
    (directory / MANIFEST).unlink()


def lose_shard(directory: Path) -> None:
    (directory / MANIFEST).unlink()
    (directory / "00001.tar").unlink()


def flip_byte(directory: Path) -> None:
    data = bytearray((directory / "00000.tar").read_bytes())
    data[700] ^= 1
    (directory / "00000.tar").write_bytes(data)


def lose_index(directory: Path) -> None:
    (directory / "00002.parquet").unlink()


def be_killed(directory: Path) -> None:
    (directory / MANIFEST).unlink()
    (directory / ".00001.tar.x1y2z3").write_bytes(b"half a shard")


@pytest.mark.ray
@pytest.mark.parametrize("damage", [forget_manifest, lose_shard, flip_byte, lose_index, be_killed])
def test_what_was_lost_is_made_again_byte_for_byte(
    finished: Path, dirty: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    directory = copy(finished, tmp_path / "pictures")
    damage(directory)
    _, made = prepare(source(dirty, directory))
    assert made
    assert tree(directory) == tree(finished)


@pytest.mark.ray
def test_a_run_that_broke_off_is_finished_as_if_it_had_not(finished: Path, dirty: Path, tmp_path: Path) -> None:
    work = source(dirty, tmp_path / "pictures")
    staged = stage_rows(work)
    for part, fingerprint in enumerate(staged.fingerprints):
        prepare_part(work, part, fingerprint)
    for suffix in (".tar", ".parquet", ".json"):
        (work.work / "parts" / f"00001{suffix}").unlink()
    (work.work / "parts" / ".00001.tar.x1y2z3").write_bytes(b"half a part")
    (work.directory / "00000.tar").write_bytes(b"a shard of an older run")
    (work.directory / "00007.tar").write_bytes(b"a shard there are too few samples for")
    parts = work.work / "parts"
    before = (parts / "00000.tar").stat().st_mtime_ns
    prepare_part(work, 0, staged.fingerprints[0])
    assert (parts / "00000.tar").stat().st_mtime_ns == before, "a finished part is not made again"
    prepare(work)
    assert tree(work.directory) == tree(finished)


def test_a_part_that_was_lost_is_made_again(dirty: Path, tmp_path: Path) -> None:
    work = source(dirty, tmp_path / "pictures")
    fingerprint = stage_rows(work).fingerprints[0]
    counts = prepare_part(work, 0, fingerprint)
    (work.work / "parts" / "00000.tar").unlink()
    assert prepare_part(work, 0, fingerprint) == counts
    assert (work.work / "parts" / "00000.tar").is_file()


@pytest.mark.ray
def test_another_shard_size_leaves_nothing_of_the_old(finished: Path, dirty: Path, tmp_path: Path) -> None:
    directory = copy(finished, tmp_path / "pictures")
    manifest, _ = prepare(source(dirty, directory, samples_per_shard=100))
    assert [shard.samples for shard in manifest.shards] == [9]
    assert sorted(tree(directory)) == sorted(["00000.parquet", "00000.tar", MANIFEST, REJECTS, STATE])
    assert keys_of(directory) == GOOD


@pytest.mark.ray
def test_the_same_data_give_the_same_files_wherever_and_whenever_they_were_copied(
    finished: Path, dirty: Path, tmp_path: Path
) -> None:
    root = copy(dirty, tmp_path / "data")
    for path in root.rglob("*.png"):
        os.utime(path, (1, 1))
    prepare(source(root, tmp_path / "pictures"))
    differ = tree(tmp_path / "pictures").items() ^ tree(finished).items()
    assert {name for name, _ in differ} == {STATE}


@pytest.mark.ray
def test_others_read_the_shards(finished: Path) -> None:
    tars = [str(path) for path in sorted(finished.glob("*.tar"))]
    assert [row["__key__"] for row in webdataset.WebDataset(tars, shardshuffle=False)] == GOOD
    rows: list[dict[str, Any]] = ray.data.read_webdataset(str(finished), file_extensions=["tar"]).take_all()
    assert sorted(row["__key__"] for row in rows) == GOOD
    assert {row["json"]["source"] for row in rows} == {f"rows.json#{n}" for n in (0, 2, 4, 7, 8, 10, 11, 12, 13)}


def test_a_file_without_rows_is_a_finished_dataset_of_none(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text("[]")
    manifest, made = prepare(source(tmp_path, tmp_path / "pictures"))
    assert made
    assert (manifest.rows, manifest.shards) == (0, [])
    assert prepare(source(tmp_path, tmp_path / "pictures")) == (manifest, False)


def test_a_finished_dataset_follows_the_catalogs_views(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text("[]")
    prepare(source(tmp_path, tmp_path / "pictures"))
    entry = ENTRY.model_copy(update={"views": {"pictures_enc": ENTRY.views["pictures_enc"]}})
    manifest, _ = prepare(source(tmp_path, tmp_path / "pictures", entry=entry))
    assert list(manifest.views) == ["pictures_enc"]


def keys_of(directory: Path) -> list[str]:
    return [sample.key for tar in sorted(directory.glob("*.tar")) for sample in iterate_samples(tar)]
