"""What Hugging Face `datasets` writes is read without it, with media in the columns or beside them."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import pytest
from PIL import Image

from pipelines.sample import Reject, Sample
from pipelines.sources.catalog import Catalog
from pipelines.sources.entry import Entry
from pipelines.tables.containers import read_member, split

ReadPath = Callable[..., list[Any]]

CATALOG = Catalog(datasets={}, views={})
COUNT = 5


def png(shade: int) -> bytes:
    data = io.BytesIO()
    Image.new("L", (4, 4), shade).save(data, "PNG")
    return data.getvalue()


def pictures(start: int = 0) -> datasets.Dataset:
    shades = range(start, start + COUNT)
    columns = {
        "image": [{"bytes": png(shade), "path": None if shade % 2 else f"/home/me/{shade}.PNG"} for shade in shades],
        "text": [f"shade {shade}" for shade in shades],
    }
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    return datasets.Dataset.from_dict(columns, features=features)


def shades(root: Path, path: Path, results: list[Sample | Reject]) -> list[int]:
    """The shades of the pictures that the samples name, each as its caption says."""
    found = []
    media = CATALOG.media_folder(Entry(name="x", reader="chats", paths=[path.name], media="none"), root, path)
    assert media is not None
    for sample in results:
        assert isinstance(sample, Sample), sample
        (item,) = sample.items()
        data, suffix = read_member(*split(media, item.name), 1000)
        assert suffix == "png"
        found.append(int(Image.open(io.BytesIO(data)).getpixel((0, 0))))  # type: ignore[arg-type]
    return found


def test_a_saved_dataset_is_read_with_its_pictures(tmp_path: Path, read_path: ReadPath) -> None:
    pictures().save_to_disk(tmp_path / "saved", num_shards=2)
    results = read_path("pairs", tmp_path / "saved", modality="image")
    assert shades(tmp_path, tmp_path / "saved", results) == list(range(COUNT))
    assert [next(sample.items()).caption for sample in results] == [f"shade {shade}" for shade in range(COUNT)]
    assert [sample.key for sample in results] == [f"{index:07d}" for index in range(COUNT)]
    assert results[3].source == "data-00001-of-00002.arrow#0"


def test_all_splits_of_a_saved_dictionary_are_read(tmp_path: Path, read_path: ReadPath) -> None:
    datasets.DatasetDict({"train": pictures(), "test": pictures(COUNT)}).save_to_disk(tmp_path / "saved")
    results = read_path("pairs", tmp_path / "saved", modality="image")
    assert shades(tmp_path, tmp_path / "saved", results) == list(range(2 * COUNT))
    assert results[0].source.startswith("train/data-00000")
    results = read_path("pairs", tmp_path / "saved" / "test", modality="image")
    assert shades(tmp_path, tmp_path / "saved" / "test", results) == list(range(COUNT, 2 * COUNT))


def test_a_folder_as_the_hub_has_it_is_read(tmp_path: Path, read_path: ReadPath) -> None:
    for shard in range(2):
        path = tmp_path / "hub" / "data" / f"train-{shard:05d}-of-00002.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pictures(shard * COUNT).to_parquet(path)
    (tmp_path / "hub" / "README.md").touch()
    results = read_path("pairs", tmp_path / "hub", modality="image")
    assert shades(tmp_path, tmp_path / "hub", results) == list(range(2 * COUNT))
    path = tmp_path / "hub" / "data" / "train-00001-of-00002.parquet"
    assert shades(tmp_path, path, read_path("pairs", path, modality="image")) == list(range(COUNT, 2 * COUNT))


@pytest.mark.parametrize("column", ["messages", "images"])
@pytest.mark.parametrize("saved", [True, False])
def test_chats_hold_their_pictures_in_their_parts_or_beside_them(
    tmp_path: Path, read_path: ReadPath, column: str, saved: bool
) -> None:
    rows = []
    for shade in range(COUNT):
        picture = {"bytes": png(shade), "path": None}
        part = {"type": "image", "text": None, "image": picture if column == "messages" else None}
        ask = {"role": "user", "content": [part, {"type": "text", "text": "What?", "image": None}]}
        answer = {"role": "assistant", "content": [{"type": "text", "text": f"{shade}", "image": None}]}
        rows.append({"messages": [ask, answer]} | ({"images": [picture]} if column == "images" else {}))
    path = tmp_path / ("saved" if saved else "rows.parquet")
    data = datasets.Dataset.from_list(rows)
    if saved:
        data.save_to_disk(path)
    else:
        data.to_parquet(path)
    results = read_path("chats", path)
    assert shades(tmp_path, path, results) == list(range(COUNT))
    assert [sample.turns[1].parts for sample in results] == [(f"{shade}",) for shade in range(COUNT)]


@pytest.mark.parametrize(("modality", "suffix"), [("audio", "wav"), ("video", "mp4")])
def test_sounds_and_videos_are_columns_too(tmp_path: Path, read_path: ReadPath, modality: str, suffix: str) -> None:
    content = b"RIFF    WAVE" if modality == "audio" else b"    ftypisom"
    rows = [
        {modality: {"bytes": content, "path": None}, "caption": "rain"},
        {modality: {"bytes": None, "path": "a.bin"}, "caption": "sun"},
    ]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    embedded, named = read_path("pairs", tmp_path / "rows.parquet", modality=modality)
    name = next(embedded.items()).name
    assert read_member(*split(tmp_path, name), 100) == (content, suffix)
    assert next(named.items()).name == "a.bin"


def test_what_a_saved_dataset_lacks_is_told(tmp_path: Path, read_path: ReadPath) -> None:
    pictures().save_to_disk(tmp_path / "saved", num_shards=2)
    (tmp_path / "saved" / "data-00000-of-00002.arrow").unlink()
    reject, *samples = read_path("pairs", tmp_path / "saved", modality="image")
    assert (reject.source, len(samples)) == ("data-00000-of-00002.arrow", 2)
    assert reject.reason.startswith("unreadable: not a readable Arrow file")


@pytest.mark.parametrize("name", ["../x.arrow", "..", "/etc/passwd", 5])
def test_a_saved_dataset_does_not_lead_out_of_its_folder(tmp_path: Path, read_path: ReadPath, name: Any) -> None:
    (tmp_path / "state.json").write_text(
        f'{{"_data_files": [{{"filename": {name if name == 5 else chr(34) + name + chr(34)}}}]}}'
    )
    with pytest.raises(ValueError, match=r"state\.json: .* is no name of a file beside it"):
        read_path("pairs", tmp_path, modality="image")
