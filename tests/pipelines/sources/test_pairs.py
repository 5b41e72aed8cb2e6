"""Caption pairs: three spellings, one form."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd  # type: ignore[import-untyped]
import pytest

from pipelines.sample import Item, Modality, Reject, Sample, Turn
from pipelines.sources.catalog import load_catalog
from pipelines.sources.readers import READERS

Read = Callable[..., list[Any]]

GOOD = {"caption": "a cat", "id": "a", "image_name": "a.jpg"}


@pytest.mark.parametrize(
    ("name", "count", "first"),
    [("cc3m", 14, "001315438"), ("webvid", 11, "16128565"), ("audiocap", 14, "12357")],
)
def test_every_real_pair_is_read(sample_root: Path, name: str, count: int, first: str) -> None:
    catalog = load_catalog()
    entry, path = catalog.datasets[name], catalog.find(sample_root)[name]
    folder = catalog.media_folder(entry, sample_root)
    assert folder is not None
    samples: list[Any] = list(READERS["pairs"](entry, path))
    assert len({sample.key for sample in samples}) == count
    assert samples[0].key == first
    for index, sample in enumerate(samples):
        assert isinstance(sample, Sample)
        assert sample.source == f"{name}.json#{index}"
        (item,) = sample.items()
        assert (folder / item.name).is_file()
        assert item.modality == entry.modality
        assert item.caption == " ".join(item.caption.split()) != ""


@pytest.mark.parametrize(
    ("modality", "row", "key", "name"),
    [
        ("image", {"caption": "c", "id": "00.1", "image_name": "x.jpg"}, None, "x.jpg"),
        ("video", {"caption": "c", "id": 7, "video_name": "x.mp4"}, "7", "x.mp4"),
        ("video", {"caption": "c", "id": 0, "video_name": "x.mp4"}, "0", "x.mp4"),
        ("audio", {"caption": "c", "audio_id": 7, "audio_name": "d/x.wav"}, "7", "d/x.wav"),
        ("audio", {"caption": "c", "audio_name": "d/x.wav"}, "x", "d/x.wav"),
        ("image", {"caption": "c", "image_name": "../../x.jpg"}, "x", "../../x.jpg"),
    ],
)
def test_the_spellings_of_all_three_sets_are_one(
    read: Read, modality: str, row: dict[str, object], key: str | None, name: str
) -> None:
    (sample,) = read("pairs", [row], modality)
    item = Item(modality=Modality(modality), name=name, caption="c")
    assert isinstance(sample, Sample)
    assert sample.turns == (Turn(role="user", parts=(item,)), Turn(role="assistant", parts=("c",)))
    assert sample.key == key if key else sample.key.startswith("00-1-")


def test_captions_are_one_clean_line(read: Read) -> None:
    (sample,) = read("pairs", [GOOD | {"caption": " a\tcat \r\n on  a mat\r\n"}], "image")
    assert next(iter(sample.items())).caption == "a cat on a mat"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"caption": ""}, "empty caption"),
        ({"caption": " \r\n"}, "empty caption"),
        ({"caption": None}, "missing field: caption"),
        ({"caption": 5}, "bad field: caption must be a string"),
        ({"caption": "x" * 40_960}, "too long caption: 40960 bytes, the limit is 8192"),
        ({"caption": "ü" * 5000}, "too long caption: 10000 bytes, the limit is 8192"),
        ({"image_name": None}, "missing field: image_name"),
        ({"image_name": ""}, "empty image_name"),
        ({"image_name": ["a"]}, "bad field: image_name must be a string"),
        ({"image_name": "x" * 2000}, "too long image_name: 2000 bytes, the limit is 1024"),
        ({"id": {"a": 1}}, "bad field: id is neither text nor a whole number"),
        ({"id": 1.5}, "bad field: id is neither text nor a whole number"),
    ],
)
def test_a_bad_row_is_rejected_with_its_reason_and_the_next_is_read(
    read: Read, change: dict[str, object], reason: str
) -> None:
    reject, sample = read("pairs", [GOOD | change, GOOD], "image")
    assert isinstance(reject, Reject)
    assert (reject.source, reject.stage, reject.reason) == ("rows.json#0", "read", reason)
    assert reject.key in ("a", "0000000")
    assert sample.key == "a"


def test_a_caption_of_8_kb_is_not_too_long(read: Read) -> None:
    (sample,) = read("pairs", [GOOD | {"caption": "x" * 8192}], "image")
    assert isinstance(sample, Sample)


def test_half_a_surrogate_pair_never_reaches_a_sample(read: Read) -> None:
    (result,) = read("pairs", b'[{"caption": "x\\ud800", "id": "a", "image_name": "a.jpg"}]', "image")
    assert isinstance(result, Reject)
    assert result.reason == "damaged text: caption holds half of a surrogate pair"


FIVE = ("a cat", "the cat", "one cat", "cat", "a black cat")


@pytest.mark.parametrize(
    ("fields", "captions"),
    [
        ({"caption": list(FIVE)}, FIVE),
        ({"captions": list(FIVE)}, FIVE),
        ({"caption": ["a cat"]}, FIVE[:1]),
        ({"sentences": [{"raw": text, "tokens": text.split()} for text in FIVE]}, FIVE),
        ({"captions": [{"caption": text, "id": number} for number, text in enumerate(FIVE)]}, FIVE),
        ({f"caption_{number}": text for number, text in enumerate(FIVE, 1)}, FIVE),
        ({f"caption_{number}": FIVE[number] for number in (4, 0, 2, 3, 1)}, FIVE),
        ({f"text{number}": text for number, text in enumerate(FIVE)}, FIVE),
        (
            {f"caption_{number}": f"cat {number}" for number in range(20)},
            tuple(f"cat {number}" for number in range(20)),
        ),
        ({"caption": "a cat", "caption_2": "the cat"}, FIVE[:2]),
        ({"caption": json.dumps(FIVE)}, FIVE),
        ({"caption": '["not a list"'}, ('["not a list"',)),
        ({"caption_1": "a cat", "caption_2": None, "caption_3": " ", "caption_4": "the cat"}, FIVE[:2]),
        ({"caption": ["a\tcat\n", None, "", "the  cat"]}, FIVE[:2]),
        ({"caption": ["a cat", "a cat"]}, ("a cat", "a cat")),
    ],
)
def test_several_captions_are_taken_as_a_list_or_as_fields(
    read: Read, fields: dict[str, object], captions: tuple[str, ...]
) -> None:
    (sample,) = read("pairs", [{"id": "a", "image_name": "a.jpg"} | fields], "image")
    assert isinstance(sample, Sample), sample
    (item,) = sample.items()
    assert item.captions == captions
    assert sample.turns[1].parts == captions[:1]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"caption": []}, "empty caption"),
        ({"caption": [None, " "]}, "empty caption"),
        ({"caption": ["a cat", 5]}, "bad field: caption must be a string"),
        ({"caption": ["a cat", "x" * 9000]}, "too long caption: 9000 bytes, the limit is 8192"),
        ({"caption": ["a cat"] * 1001}, "too many captions: 1001, the limit is 1000"),
        ({"caption_of": "a cat", "caption_one": "a cat"}, "missing field: caption"),
    ],
)
def test_a_bad_one_among_several_captions_rejects_the_row(read: Read, fields: dict[str, object], reason: str) -> None:
    (reject,) = read("pairs", [{"id": "a", "image_name": "a.jpg"} | fields], "image")
    assert reject.reason == reason


def test_columns_of_captions_are_read_as_csv_and_pandas_write_them(tmp_path: Path, read_path: Read) -> None:
    with (tmp_path / "clotho.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", *(f"caption_{number}" for number in range(1, 6))])
        writer.writerow(["a, b.wav", *FIVE])
    (sample,) = read_path("pairs", tmp_path / "clotho.csv", modality="audio")
    assert next(sample.items()).captions == FIVE
    pd.DataFrame({"image": ["a.jpg", "b.jpg"], "caption": [FIVE, FIVE[:2]]}).to_parquet(tmp_path / "flickr.parquet")
    one, other = read_path("pairs", tmp_path / "flickr.parquet", modality="image")
    assert (next(one.items()).captions, next(other.items()).captions) == (FIVE, FIVE[:2])


def test_a_column_of_captions_may_have_any_name(read_path: Read, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps([{"f": "a.jpg", "alt_1": "a cat", "alt_2": "the cat"}]))
    fields = {"caption": "alt", "name": "f"}
    (sample,) = read_path("pairs", tmp_path / "rows.json", modality="image", fields=fields)
    assert next(sample.items()).captions == FIVE[:2]
