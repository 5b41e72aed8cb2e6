"""The written folder: the same bytes each time, read by every reader of the catalog, left alone once finished."""

import json
from pathlib import Path

import pytest
from oracles import perceive

from pipelines.catalog import load_catalog
from pipelines.media import decode, load
from pipelines.readers import READERS
from pipelines.sample import Item, Sample
from pipelines.world.captions import caption
from pipelines.world.dataset import write_world
from pipelines.world.scenes import draw

COUNT = 6
EXPECTED = {
    *(
        f"{pairs}{suffix}"
        for pairs in ("cc3m", "webvid", "audiocap")
        for suffix in ("", "_comprehension", "_generation")
    ),
    "alpaca_instruction",
    "mosit_instruction",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "world"
    write_world(root, count=COUNT)
    return root


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def samples(root: Path, name: str) -> list[Sample]:
    catalog = load_catalog()
    entry = catalog.datasets[name]
    rows = list(READERS[entry.reader](entry, catalog.find(root)[name]))
    assert all(isinstance(row, Sample) for row in rows), rows
    return [row for row in rows if isinstance(row, Sample)]


def test_equal_arguments_write_equal_trees_and_others_do_not(world: Path, tmp_path: Path) -> None:
    write_world(tmp_path / "again", count=COUNT)
    write_world(tmp_path / "other", count=COUNT, seed=1)
    assert tree(tmp_path / "again") == tree(world)
    assert tree(tmp_path / "other") != tree(world)


def test_a_larger_world_begins_with_the_smaller_one(world: Path, tmp_path: Path) -> None:
    write_world(tmp_path / "larger", count=COUNT + 1)
    media = {name: data for name, data in tree(world).items() if not name.endswith(".json")}
    assert media.items() <= tree(tmp_path / "larger").items()


def test_a_finished_world_is_not_written_again(world: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in world.rglob("*")}
    write_world(world, count=COUNT)
    assert {path: path.stat().st_mtime_ns for path in world.rglob("*")} == before


def test_other_files_are_not_touched(world: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files"):
        write_world(tmp_path)
    with pytest.raises(ValueError, match="holds other files"):
        write_world(world, count=COUNT + 1)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_interrupted_run_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipelines.world.dataset.write_json", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_world(tmp_path / "world", count=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("seed", "count"), [(-1, 1), (0, 0)])
def test_impossible_arguments_are_refused(tmp_path: Path, seed: int, count: int) -> None:
    with pytest.raises(ValueError, match="seed must be >= 0 and count >= 1"):
        write_world(tmp_path / "world", seed=seed, count=count)


def test_the_catalog_finds_every_dataset_of_the_world(world: Path) -> None:
    assert set(load_catalog().find(world)) == EXPECTED


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_readers_take_every_row_and_find_its_medium(world: Path, name: str) -> None:
    catalog = load_catalog()
    folder = catalog.media_folder(catalog.datasets[name], world)
    found = samples(world, name)
    assert len(found) == len({sample.key for sample in found}) == COUNT
    for item in (item for sample in found for item in sample.items() if item.name):
        assert folder is not None
        assert (folder / item.name).is_file()


@pytest.mark.parametrize("name", ["cc3m", "webvid", "audiocap"])
def test_captions_are_true_of_the_media_they_stand_beside(world: Path, name: str) -> None:
    catalog = load_catalog()
    folder = catalog.media_folder(catalog.datasets[name], world)
    assert folder is not None
    for index, sample in enumerate(samples(world, name)):
        (item,) = sample.items("user")
        seen = perceive(decode(load(folder / item.name, item.modality)))
        assert seen == draw(0, index)[item.modality]
        assert item.caption == caption(seen, index)


def test_every_dialogue_asks_for_an_image_a_video_and_a_sound(world: Path) -> None:
    for sample in samples(world, "mosit_instruction"):
        assert not list(sample.items("user"))
        assert sorted(item.modality for item in sample.items("assistant")) == ["audio", "image", "video"]
        assert all(isinstance(item, Item) and item.caption for item in sample.items("assistant"))


@pytest.mark.parametrize("dataset", ["cc3m", "webvid", "audiocap"])
@pytest.mark.parametrize("suffix", ["", "_comprehension", "_generation"])
def test_rows_have_the_fields_of_the_original(world: Path, sample_root: Path, dataset: str, suffix: str) -> None:
    path = Path("T-X_pair_data") / dataset / f"{dataset}{suffix}.json"
    ours, original = (json.loads((root / path).read_text())[0] for root in (world, sample_root))
    assert {key: type(value) for key, value in ours.items()} == {key: type(value) for key, value in original.items()}
