"""A row's key is unique because its place is, rows of one medium are one sample, and only what says nothing new is
a duplicate."""

import io
import json
import re
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import pandas as pd  # type: ignore[import-untyped]
import pytest
from dataset_cases import picture
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipelines.media.codecs import decode
from pipelines.prepare.part_tars import prepare_part
from pipelines.prepare.rows_in_order import Numbers
from pipelines.prepare.staging import Source, part_path, stage_rows, staged_rows
from pipelines.sample import Modality, Reject, Sample
from pipelines.sources.entry import Entry
from pipelines.storage.shards import iterate_samples
from pipelines.tables.keys import other_keys

WriteTar = Callable[..., Path]


def source_of(tmp_path: Path, path: Path, media: Path | None = None, samples_per_shard: int = 4) -> Source:
    entry = Entry(name="pictures", reader="pairs", paths=[path.name], modality=Modality.IMAGE)
    folder = media or (path if path.is_dir() else path.parent)
    return Source(entry=entry, path=path, media=folder, directory=tmp_path / "out", samples_per_shard=samples_per_shard)


def staged(source: Source) -> tuple[list[Sample], list[Reject]]:
    found = stage_rows(source)
    return [row for chunk in range(len(found.chunks)) for row in staged_rows(source, chunk)], list(found.rejects())


def keys_and_captions(source: Source) -> dict[str, str]:
    samples, rejects = staged(source)
    assert rejects == []
    return {sample.key: next(sample.items()).caption for sample in samples}


def shades(source: Source) -> list[float]:
    """The mean of each stored picture, by the parts that a run would make of the rows."""
    found = stage_rows(source)
    for part, chunk in enumerate(found.chunks):
        assert prepare_part(source, part, chunk.fingerprint).rejects == []
    samples = (one for part in range(len(found.chunks)) for one in iterate_samples(part_path(source, part)))
    return [float(decode(next(iter(sample.media.values()))).pixels.mean()) for sample in samples]  # type: ignore[union-attr]


def write_json(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(rows))
    return path


def test_files_of_one_name_in_several_folders_are_several_samples(tmp_path: Path) -> None:
    root = tmp_path / "imgs"
    names = [f"{folder}/{number:04d}.png" for folder in ("cat", "dog", "owl") for number in range(2)]
    for shade, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture(40 * shade).data)
    pd.DataFrame({"file_name": names, "text": [f"a {name}" for name in names]}).to_csv(
        root / "metadata.csv", index=False
    )
    found = keys_and_captions(source_of(tmp_path, root))
    assert list(found.values()) == [f"a {name}" for name in names]
    # The first of a name keeps it, as ever; the others are called by their paths.
    assert list(found)[:2] == ["0000", "0001"]
    fronts = ["dog-0000-png", "dog-0001-png", "owl-0000-png", "owl-0001-png"]
    assert [re.sub(r"-[0-9a-f]{8}$", "", key) for key in list(found)[2:]] == fronts
    assert shades(source_of(tmp_path, root)) == pytest.approx([0, 40, 80, 120, 160, 200], abs=1)


def test_files_of_one_stem_and_several_suffixes_are_several_samples(tmp_path: Path) -> None:
    rows = [{"image_name": f"0.{suffix}", "caption": suffix} for suffix in ("jpg", "png", "webp")]
    found = keys_and_captions(source_of(tmp_path, write_json(tmp_path / "rows.json", rows)))
    assert [re.sub(r"-[0-9a-f]{8}$", "", key) for key in found] == ["0", "0-png", "0-webp"]
    assert list(found.values()) == ["jpg", "png", "webp"]


def test_keys_that_begin_anew_in_each_tar_are_told_apart_by_the_tar(tmp_path: Path, write_tar: WriteTar) -> None:
    root = tmp_path / "wds"
    for shard in range(3):
        members: dict[str, bytes] = {}
        for number in range(2):
            members[f"{number:06d}.png"] = picture(80 * shard + 40 * number).data
            members[f"{number:06d}.txt"] = f"number {number} of {shard}".encode()
        write_tar(root / f"{shard:05d}.tar", members)
    found = keys_and_captions(source_of(tmp_path, root))
    assert list(found.values()) == [f"number {number} of {shard}" for shard in range(3) for number in range(2)]
    assert list(found)[:2] == ["000000", "000001"]
    assert [key.rpartition("-")[0] for key in list(found)[2:]] == [
        f"0000{shard}-tar-00000{number}-png" for shard in (1, 2) for number in range(2)
    ]
    assert shades(source_of(tmp_path, root)) == pytest.approx([0, 40, 80, 120, 160, 200], abs=1)


def png(shade: int) -> bytes:
    data = io.BytesIO()
    Image.new("L", (8, 8), shade).save(data, "PNG")
    return data.getvalue()


def test_ids_that_begin_anew_in_each_split_are_told_apart_by_the_split(tmp_path: Path) -> None:
    def split(start: int) -> Any:
        rows = [
            {"id": number, "image": {"bytes": png(start + 40 * number), "path": None}, "text": f"{start} {number}"}
            for number in range(2)
        ]
        return datasets.Dataset.from_list(rows)

    datasets.DatasetDict({"train": split(0), "test": split(80)}).save_to_disk(tmp_path / "saved")
    found = keys_and_captions(source_of(tmp_path, tmp_path / "saved"))
    assert list(found.values()) == ["0 0", "0 1", "80 0", "80 1"]
    assert list(found)[:2] == ["0", "1"]
    assert all(key.startswith("test-data-00000-of-00001-arrow-") for key in list(found)[2:])
    assert shades(source_of(tmp_path, tmp_path / "saved")) == pytest.approx([0, 40, 80, 120], abs=1)


def test_only_a_row_whose_key_and_content_came_before_is_a_duplicate(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "image_name": "0.png", "caption": "grey"},
        {"id": "a", "image_name": "0.png", "caption": "grey"},
        {"id": "a", "image_name": "1.png", "caption": "grey"},
        {"id": "a", "image_name": "1.png", "caption": "grey"},
        {"id": "b", "image_name": "2.png", "caption": "grey"},
    ]
    samples, rejects = staged(source_of(tmp_path, write_json(tmp_path / "rows.json", rows)))
    assert [next(sample.items()).name for sample in samples] == ["0.png", "1.png", "2.png"]
    assert [sample.key[:2] for sample in samples] == ["a", "ro", "b"]
    assert [(reject.source, reject.reason) for reject in rejects] == [
        ("rows.json#1", "duplicate key: a"),
        ("rows.json#3", "duplicate key: a"),
    ]


def test_a_key_that_another_row_was_given_is_taken(tmp_path: Path) -> None:
    rows = [{"id": "a", "image_name": f"{number}.png", "caption": "grey"} for number in range(4)]
    path = write_json(tmp_path / "rows.json", rows[:2])
    given = staged(source_of(tmp_path, path))[0][1].key
    rows.insert(0, {"id": given, "image_name": "9.png", "caption": "grey"})
    samples, rejects = staged(source_of(tmp_path, write_json(path, rows)))
    assert rejects == []
    assert len({sample.key for sample in samples}) == len(rows)


@given(st.text(), st.text(), st.text())
def test_there_are_always_more_keys_to_take(key: str, source: str, name: str) -> None:
    keys = other_keys(key, source, name)
    found = [next(keys) for _ in range(8)]
    assert len(set(found)) >= 7  # a medium may be called as its file is
    assert all(re.fullmatch(r"[a-z0-9_-]{1,64}", key) for key in found)


@given(st.lists(st.text() | st.tuples(st.text(), st.integers()), unique=True, max_size=3000))
def test_numbers_are_those_that_were_given(values: list[Any]) -> None:
    numbers = Numbers()
    for number, value in enumerate(values):
        assert numbers.get(value) is None
        numbers.put(value, number)
    assert [numbers.get(value) for value in values] == list(range(len(values)))


def test_a_hundred_thousand_numbers_are_all_found() -> None:
    numbers = Numbers()
    for number in range(100_000):
        numbers.put(f"{number:09d}", number)
    assert [numbers.get(f"{number:09d}") for number in range(100_000)] == list(range(100_000))
    assert numbers.get("100000000") is None


# --- Rows that name one medium ---------------------------------------------------------------------------------------


def captions_of(samples: list[Sample]) -> dict[str, tuple[str, ...]]:
    return {item.name: item.captions for sample in samples for item in sample.items()}


def caption_rows(*places: tuple[int, int]) -> list[dict[str, str]]:
    return [{"image": f"{number}.png", "caption": f"{place} of {number}"} for number, place in places]


def test_rows_that_name_one_medium_are_one_sample_with_all_their_captions(tmp_path: Path) -> None:
    rows = caption_rows(*((number, place) for number in range(5) for place in range(4)))
    samples, rejects = staged(source_of(tmp_path, write_json(tmp_path / "rows.json", rows), samples_per_shard=2))
    assert rejects == []
    assert [sample.key for sample in samples] == ["0", "1", "2", "3", "4"]
    assert captions_of(samples) == {
        f"{number}.png": tuple(f"{place} of {number}" for place in range(4)) for number in range(5)
    }
    assert samples[1].source.split("\n") == ["rows.json#4", "rows.json#5", "rows.json#6", "rows.json#7"]


def test_rows_of_one_medium_may_stand_apart_and_have_ids_of_their_own(tmp_path: Path) -> None:
    rows = [
        {"id": place, "image": f"{number % 7}.png", "caption": f"{place}"} for place, number in enumerate(range(21))
    ]
    source = source_of(tmp_path, write_json(tmp_path / "rows.json", rows), samples_per_shard=2)
    found = stage_rows(source)
    samples = [row for chunk in range(len(found.chunks)) for row in staged_rows(source, chunk)]
    assert (found.rows, found.merged, [chunk.rows for chunk in found.chunks]) == (21, 14, [2, 2, 2, 1])
    assert [sample.key for sample in samples] == [str(number) for number in range(7)]
    assert captions_of(samples) == {f"{n}.png": (f"{n}", f"{n + 7}", f"{n + 14}") for n in range(7)}
    assert samples[3].source == "rows.json#3\nrows.json#10\nrows.json#17"


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), max_size=30), st.integers(1, 4))
def test_every_row_is_a_caption_in_order_or_a_duplicate(places: list[tuple[int, int]], samples_per_shard: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write_json(Path(folder) / "rows.json", caption_rows(*places))
        samples, rejects = staged(source_of(Path(folder), path, samples_per_shard=samples_per_shard))
    first = dict.fromkeys(places)
    assert captions_of(samples) == {
        f"{number}.png": tuple(f"{place} of {number}" for one, place in first if one == number)
        for number in dict(places)
    }
    assert len(rejects) == len(places) - len(first)
    assert all(reject.reason.startswith("duplicate key: ") for reject in rejects)


def test_what_came_apart_changes_what_its_chunk_is_made_of(tmp_path: Path) -> None:
    def fingerprints(*places: tuple[int, int]) -> list[str]:
        path = write_json(tmp_path / "rows.json", caption_rows(*places))
        return [chunk.fingerprint for chunk in stage_rows(source_of(tmp_path, path, samples_per_shard=1)).chunks]

    one, other = fingerprints((0, 0), (1, 0))
    assert fingerprints((0, 0), (1, 0), (0, 1)) != [one, other]
    assert fingerprints((0, 0), (1, 0), (0, 1))[1] == other


def test_each_row_of_a_medium_that_is_missing_is_a_reject(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(picture(7).data)
    rows = caption_rows((0, 0), (1, 0), (0, 1), (1, 1), (0, 2))
    source = source_of(tmp_path, write_json(tmp_path / "rows.json", rows))
    (chunk,) = stage_rows(source).chunks
    outcome = prepare_part(source, 0, chunk.fingerprint)
    assert [(reject.source, reject.reason) for reject in outcome.rejects] == [
        (f"rows.json#{row}", "missing file: 0.png") for row in (0, 2, 4)
    ]
    (sample,) = iterate_samples(part_path(source, 0))
    assert next(sample.items()).captions == ("0 of 1", "1 of 1")
    with tarfile.open(part_path(source, 0)) as tar:
        text = tar.extractfile("1.txt")
        assert text is not None
        assert text.read() == b"0 of 1\n1 of 1"


def test_a_list_of_captions_and_further_rows_are_one_sample(tmp_path: Path) -> None:
    rows = [{"image": "0.png", "caption": ["a", "b"]}, {"image": "./0.png", "caption": "c"}]
    samples, _ = staged(source_of(tmp_path, write_json(tmp_path / "rows.json", rows)))
    assert captions_of(samples) == {"0.png": ("a", "b", "c")}


def test_a_tar_that_holds_a_name_twice_gives_no_picture_anothers_caption(tmp_path: Path) -> None:
    root = tmp_path / "wds"
    root.mkdir()
    with tarfile.open(root / "0.tar", "w") as tar:
        for name, data in [("0.png", b"a"), ("0.txt", b"one"), ("1.png", b"b"), ("1.txt", b"x"), ("0.png", b"c")]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        info = tarfile.TarInfo("0.txt")
        info.size = 5
        tar.addfile(info, io.BytesIO(b"other"))
    samples, (reject,) = staged(source_of(tmp_path, root))
    assert captions_of(samples) == {"0.tar/0.png": ("one",), "0.tar/1.png": ("x",)}
    assert reject.reason == "duplicate member: 0.tar/0.png stands in the tar before, and that is taken"


def test_one_medium_has_no_end_of_captions(tmp_path: Path) -> None:
    rows = caption_rows(*((0, place) for place in range(1003)))
    samples, rejects = staged(source_of(tmp_path, write_json(tmp_path / "rows.json", rows)))
    assert [len(captions) for captions in captions_of(samples).values()] == [1001]
    assert [reject.reason for reject in rejects] == ["too many captions: 1000 more rows than one name 0.png"] * 2


def test_rows_of_dialogues_are_never_merged(tmp_path: Path) -> None:
    talk = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A cat."}]
    rows = [{"image": "0.png", "conversations": talk}, {"image": "0.png", "conversations": [*talk, *talk]}]
    path = write_json(tmp_path / "rows.json", rows)
    entry = Entry(name="talks", reader="conversations", paths=["rows.json"])
    source = Source(entry=entry, path=path, media=tmp_path, directory=tmp_path / "out", samples_per_shard=4)
    assert len(staged(source)[0]) == 2
