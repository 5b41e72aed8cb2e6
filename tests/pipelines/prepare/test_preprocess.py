"""Preparation: every row ends in a shard or among the rejects, and the bytes depend on nothing but the rows."""

import itertools
import json
import os
import shutil
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
import ray.data
import webdataset
from dataset_cases import picture, times, tree, write_shard
from hypothesis import given
from hypothesis import strategies as st

from pipelines.inspect.census import take_census
from pipelines.inspect.lineage import find
from pipelines.inspect.verify import verify
from pipelines.media.codecs import decode
from pipelines.media.folder import Links, load_rows
from pipelines.prepare import state
from pipelines.prepare.ledger import TooManyRejected
from pipelines.prepare.part_tars import assemble_shard, prepare_part
from pipelines.prepare.pieces import plan_pieces
from pipelines.prepare.preprocess import Prepared, prepare
from pipelines.prepare.staging import Source, Stamps, stage_rows
from pipelines.sample import Modality, Sample
from pipelines.sources.entry import Entry, View
from pipelines.sources.readers import READERS
from pipelines.storage.files import read_rows
from pipelines.storage.shards import MANIFEST, REJECTS, STATE, Manifest, index_path, iterate_samples

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
    assert prepare(source(dirty, directory)).shards == 3
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
    shards = plan_pieces(accepted, samples_per_shard)
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
    work = source(dirty, tmp_path)
    loaded = load_rows([rows[key] for key in GOOD], work.media, work.policy)
    samples = [row for row in loaded if isinstance(row, Sample)]
    for number, shard in enumerate(Manifest.read(finished).shards):
        plain = write_shard(tmp_path / shard.name, samples[number * 4 : number * 4 + 4])
        assert (plain.samples, plain.sha256) == (shard.samples, shard.sha256)
        assert (tmp_path / shard.name).read_bytes() == (finished / shard.name).read_bytes()
        columns = ["key", "offset", "length", "json_offset", "json_length", "media", "sha256"]
        assert read_rows(index_path(tmp_path / shard.name), columns) == read_rows(
            index_path(finished / shard.name), columns
        )


@pytest.mark.ray
def test_a_rerun_makes_nothing_and_touches_no_file(finished: Path, dirty: Path) -> None:
    before = tree(finished), times(finished)
    again = prepare(source(dirty, finished))
    assert (again.shards, again.rows) == (0, 0)
    assert again.manifest == Manifest.read(finished)
    assert (tree(finished), times(finished)) == before


@pytest.mark.ray
def test_a_changed_medium_is_taken_in(finished: Path, dirty: Path, tmp_path: Path) -> None:
    root, directory = copy(dirty, tmp_path / "data"), copy(finished, tmp_path / "pictures")
    prepare(source(root, directory))
    old = Manifest.read(directory).shards
    changed = root / "images" / "good-4.png"
    size, time = changed.stat().st_size, changed.stat().st_mtime_ns
    other = next(shade for shade in range(100, 256) if len(picture(shade).data) == size)
    changed.write_bytes(picture(other).data)
    os.utime(changed, ns=(time, time))  # neither its size nor its time gives it away
    new = prepare(source(root, directory))
    assert (new.shards, new.rows) == (2, 4), "one chunk is read again, and the two shards are written that it is in"
    samples = {sample.key: sample for tar in sorted(directory.glob("*.tar")) for sample in iterate_samples(tar)}
    assert decode(next(iter(samples["good-4"].media.values()))).pixels.mean() == other
    differ = [now.name for was, now in zip(old, new.manifest.shards, strict=True) if now.sha256 != was.sha256]
    assert differ == ["00001.tar"]


@pytest.mark.ray
def test_another_licence_changes_the_manifest_and_reads_no_media(finished: Path, dirty: Path, tmp_path: Path) -> None:
    directory = copy(finished, tmp_path / "pictures")
    entry = ENTRY.model_copy(update={"licence": "CC0"})
    made = prepare(source(dirty, directory, entry=entry))
    assert (made.rows, made.shards, made.manifest.licence) == (0, 0, "CC0")
    assert {**tree(directory), MANIFEST: "", STATE: ""} == {**tree(finished), MANIFEST: "", STATE: ""}


@pytest.mark.ray
def test_rejected_rows_are_tried_again_on_request(finished: Path, dirty: Path, tmp_path: Path) -> None:
    directory = copy(finished, tmp_path / "pictures")
    assert prepare(source(dirty, directory), retry_rejected=True).rows == 8, "the two chunks with a rejected medium"
    assert content(directory) == content(finished)
    root = copy(dirty, tmp_path / "data")
    (root / "images" / "broken.png").write_bytes(picture(77).data)
    assert prepare(source(root, directory)).manifest.samples == 10


@pytest.mark.ray
def test_a_run_with_too_many_rejects_fails_with_the_commonest_reasons(dirty: Path, tmp_path: Path) -> None:
    work = source(dirty, tmp_path / "pictures")
    with pytest.raises(TooManyRejected) as error:
        prepare(work, max_rejected=0.1)
    assert str(error.value).startswith(
        "pictures: 5 of 14 rows rejected, --max-rejected allows 10%; most for: "
        "1 duplicate key, 1 empty caption, 1 missing file"
    )
    assert not (work.directory / MANIFEST).exists()
    assert len(read_rows(work.directory / REJECTS)) == 5
    parts = times(work.work / "parts")
    prepare(work, max_rejected=0.5)
    assert parts, "what was done is not done again"
    with pytest.raises(TooManyRejected):
        prepare(work, max_rejected=0.3)


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


def lose_rejects(directory: Path) -> None:
    (directory / REJECTS).unlink()


def change_manifest(directory: Path) -> None:
    text = (directory / MANIFEST).read_text()
    (directory / MANIFEST).write_text(text.replace('"samples": 9', '"samples": 8'))


def forget_state(directory: Path) -> None:
    (directory / STATE).unlink()


DAMAGE = {  # what is done to the files, and which shards are to be written for it
    forget_manifest: set[str](),
    lose_shard: {"00001"},
    flip_byte: {"00000"},
    lose_index: {"00002"},
    lose_rejects: set[str](),
    change_manifest: set[str](),
    be_killed: set[str](),
    forget_state: {"00000", "00001", "00002"},
}


@pytest.mark.ray
@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_what_was_lost_is_made_again_byte_for_byte(
    finished: Path, dirty: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    directory = copy(finished, tmp_path / "pictures")
    damage(directory)
    before = times(directory)
    prepare(source(dirty, directory))
    assert content(directory) == content(finished)
    after = times(directory)
    written = {Path(name).stem for name in after if name[:5].isdigit() and after[name] != before.get(name)}
    assert written == DAMAGE[damage]


@pytest.mark.ray
def test_a_run_that_broke_off_is_finished_as_if_it_had_not(finished: Path, dirty: Path, tmp_path: Path) -> None:
    work = source(dirty, tmp_path / "pictures")
    staged = stage_rows(work)
    for part, chunk in enumerate(staged.chunks):
        prepare_part(work, part, chunk.fingerprint)
    for suffix in (".tar", ".parquet", ".json"):
        (work.work / "parts" / f"00001{suffix}").unlink()
    (work.work / "parts" / ".00001.tar.x1y2z3").write_bytes(b"half a part")
    (work.directory / "00000.tar").write_bytes(b"a shard of an older run")
    (work.directory / "00007.tar").write_bytes(b"a shard there are too few samples for")
    parts = work.work / "parts"
    before = (parts / "00000.tar").stat().st_mtime_ns
    prepare_part(work, 0, staged.chunks[0].fingerprint)
    assert (parts / "00000.tar").stat().st_mtime_ns == before, "a finished part is not made again"
    prepare(work)
    assert content(work.directory) == content(finished)


def test_a_part_that_was_lost_is_made_again(dirty: Path, tmp_path: Path) -> None:
    work = source(dirty, tmp_path / "pictures")
    fingerprint = stage_rows(work).chunks[0].fingerprint
    counts = prepare_part(work, 0, fingerprint)
    (work.work / "parts" / "00000.tar").unlink()
    assert prepare_part(work, 0, fingerprint) == counts
    assert (work.work / "parts" / "00000.tar").is_file()


@pytest.mark.ray
def test_another_shard_size_leaves_nothing_of_the_old(finished: Path, dirty: Path, tmp_path: Path) -> None:
    directory = copy(finished, tmp_path / "pictures")
    manifest = prepare(source(dirty, directory, samples_per_shard=100)).manifest
    assert [shard.samples for shard in manifest.shards] == [9]
    assert set(content(directory)) == {"00000.parquet", "00000.tar", MANIFEST, REJECTS}
    assert keys_of(directory) == GOOD


@pytest.mark.ray
def test_the_same_data_give_the_same_files_wherever_and_whenever_they_were_copied(
    finished: Path, dirty: Path, tmp_path: Path
) -> None:
    root = copy(dirty, tmp_path / "data")
    for path in root.rglob("*.png"):
        os.utime(path, (1, 1))
    prepare(source(root, tmp_path / "pictures"))
    assert content(tmp_path / "pictures") == content(finished)


@pytest.mark.ray
def test_others_read_the_shards(finished: Path) -> None:
    tars = [str(path) for path in sorted(finished.glob("*.tar"))]
    assert [row["__key__"] for row in webdataset.WebDataset(tars, shardshuffle=False)] == GOOD
    rows: list[dict[str, Any]] = ray.data.read_webdataset(str(finished), file_extensions=["tar"]).take_all()
    assert sorted(row["__key__"] for row in rows) == GOOD
    assert {row["json"]["source"] for row in rows} == {f"rows.json#{n}" for n in (0, 2, 4, 7, 8, 10, 11, 12, 13)}
    names = []
    for path in tars:
        with tarfile.open(path) as tar:
            assert all(member.isreg() for member in tar)
            names += tar.getnames()
    assert [name for name in names if name.endswith(".json")] == [f"{key}.json" for key in GOOD]


def test_a_file_without_rows_is_a_finished_dataset_of_none(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text("[]")
    manifest = prepare(source(tmp_path, tmp_path / "pictures")).manifest
    assert (manifest.rows, manifest.shards) == (0, [])
    assert prepare(source(tmp_path, tmp_path / "pictures")).manifest == manifest


def test_a_finished_dataset_follows_the_catalogs_views(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text("[]")
    prepare(source(tmp_path, tmp_path / "pictures"))
    entry = ENTRY.model_copy(update={"views": {"pictures_enc": ENTRY.views["pictures_enc"]}})
    manifest = prepare(source(tmp_path, tmp_path / "pictures", entry=entry)).manifest
    assert list(manifest.views) == ["pictures_enc"]


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Does what tasks would do in this process."""
    monkeypatch.setattr("pipelines.prepare.preprocess.map_rows", lambda rows, work: map(work, rows))
    monkeypatch.setattr("pipelines.prepare.preprocess.count", lambda *args, **kwargs: None)
    monkeypatch.setattr(
        "pipelines.prepare.preprocess.assemble_shards",
        lambda source, plan: [assemble_shard(source, index, pieces) for index, pieces in plan.items()],
    )


def test_rows_of_one_medium_are_counted_as_rows_and_found_by_each(no_ray: None, tmp_path: Path) -> None:
    rows = [{"image_name": f"{number}.png", "caption": f"{n} of {number}"} for n in range(5) for number in range(3)]
    rows += [rows[4], {"image_name": "3.png", "caption": "missing"}, {"image_name": "3.png", "caption": "gone"}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "images").mkdir()
    for number in range(3):
        (tmp_path / "images" / f"{number}.png").write_bytes(picture(number).data)
    views = {"pictures_dec": {"stage": 2, "kind": "generate", "captions": "one"}}
    entry = Entry.model_validate(ENTRY.model_dump() | {"views": views})
    work = source(tmp_path, tmp_path / "shards" / "pictures", samples_per_shard=2, entry=entry)
    manifest = prepare(work).manifest
    assert (manifest.rows, manifest.taken, manifest.samples) == (18, 15, 3)
    assert (manifest.captions, manifest.most_captions) == (15, 5)
    assert manifest.rejected == {"duplicate key": 1, "missing file": 2}
    assert (manifest.output_items, manifest.one_caption) == ({"image": 15}, ["pictures_dec"])
    assert prepare(work) == Prepared(manifest=manifest, shards=0, rows=0, bytes=0, seconds=ANY)
    assert list(verify(work.directory)) == []
    found = find(tmp_path / "shards", [f"rows.json#{number}" for number in range(18)])
    assert [[origin.key for origin in found[f"rows.json#{number}"]] for number in range(18)] == [
        *([str(number % 3)] for number in range(15)),
        *(["1"], ["3"], ["3"]),
    ]
    assert found["rows.json#7"][0].caption == " / ".join(f"{n} of 1" for n in range(5))
    lines = str(found["rows.json#7"][0]).splitlines()
    assert lines[0].endswith("from rows.json#1, rows.json#4, rows.json#7, rows.json#10, rows.json#13")
    census = take_census(work.directory, manifest)
    assert (census.captions.seen, len(census.histograms["words"])) == (15, 15)


def test_a_setting_that_is_usual_leaves_what_a_dataset_is_made_of_as_it_was(tmp_path: Path) -> None:
    told = source(tmp_path, tmp_path, entry=ENTRY).entry.model_dump()["views"]["pictures_enc"]
    assert told == {"stage": 1, "kind": "caption"}
    views = {"pictures_enc": View(stage=1, kind="caption", captions="one")}
    assert ENTRY.model_copy(update={"views": views}).model_dump()["views"]["pictures_enc"]["captions"] == "one"


def keys_of(directory: Path) -> list[str]:
    return [sample.key for tar in sorted(directory.glob("*.tar")) for sample in iterate_samples(tar)]


def content(directory: Path) -> dict[str, str]:
    """The hashes of a dataset's files; what this machine remembers of them is no part of the data."""
    return {name: digest for name, digest in tree(directory).items() if name != STATE}


OPENED: list[str] | None = None


def _note_opened(event: str, arguments: tuple[Any, ...]) -> None:
    if OPENED is not None and event == "open":
        OPENED.append(str(arguments[0]))


sys.addaudithook(_note_opened)


@pytest.mark.ray
def test_a_rerun_with_nothing_to_do_opens_no_medium_no_shard_and_no_source(finished: Path, dirty: Path) -> None:
    global OPENED
    prepare(source(dirty, finished))
    OPENED = []
    assert state.finished(source(dirty, finished)) is not None
    opened, OPENED = {Path(name).name for name in OPENED}, None
    assert opened <= {STATE, MANIFEST}
    assert opened


def test_a_medium_named_by_its_absolute_path_is_watched_too(dirty: Path, tmp_path: Path) -> None:
    images = copy(dirty / "images", tmp_path / "images")
    names = [str(images / f"{GOOD[0]}.png")]
    before = Stamps(root=images).of(names)
    assert Stamps(root=images).of(names) == before
    (images / f"{GOOD[0]}.png").write_bytes(picture(50, size=16).data)
    assert Stamps(root=images).of(names) != before


def test_rows_whose_links_were_not_followed_are_tried_again_once_links_are_followed(
    dirty: Path, tmp_path: Path
) -> None:
    plain = source(dirty, tmp_path / "out")
    followed = replace(plain, links=Links(follow=True))
    elsewhere = replace(plain, links=Links(roots=(tmp_path,)))
    assert followed.settings != plain.settings == elsewhere.settings
    fingerprints = [[chunk.fingerprint for chunk in stage_rows(which).chunks] for which in (plain, followed, elsewhere)]
    assert not set(fingerprints[0]) & set(fingerprints[1])
    assert fingerprints[0] == fingerprints[2]
