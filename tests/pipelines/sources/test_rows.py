"""Whatever is wrong with a file, its good rows come out and the rest is told as rejects."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.sample import Modality, Reject, Sample
from pipelines.sources.entry import Entry
from pipelines.sources.readers import READERS

Read = Callable[..., list[Any]]

GOOD = {"caption": "one", "id": "a", "image_name": "a.jpg"}
ROW = json.dumps(GOOD).encode()


def test_a_trailing_comma_costs_no_row(read: Read) -> None:
    sample, reject = read("pairs", b"[" + ROW + b",]", "image")
    assert isinstance(sample, Sample)
    assert reject == Reject(
        source="rows.json#1", key="", stage="read", reason="bad JSON: unallowed token at this point in JSON text"
    )


@pytest.mark.parametrize("end", [b"", b",", b', {"caption": "tw', b", nonsense]", b"] behind"])
def test_rows_before_a_break_are_kept(read: Read, end: bytes) -> None:
    results = read("pairs", b"[" + ROW + b"," + ROW + end, "image")
    assert [type(result) for result in results] == [Sample, Sample, Reject]
    assert isinstance(results[-1], Reject)
    assert results[-1].source == "rows.json#2"
    assert results[-1].reason.startswith("bad JSON: ")
    assert "\n" not in results[-1].reason


@pytest.mark.parametrize("data", [b"", b"  \n", b"nonsense", "nonsense".encode("utf-16")])
def test_a_file_that_is_no_rows_is_refused(read: Read, data: bytes) -> None:
    with pytest.raises(ValueError, match=r"rows\.json: not a JSON array"):
        read("pairs", data, "image")


@pytest.mark.parametrize("front", [b"\xef\xbb\xbf", b"\n\r\t ", b"\xef\xbb\xbf \n"])
def test_a_byte_order_mark_or_white_space_in_front_is_no_harm(read: Read, front: bytes) -> None:
    (sample,) = read("pairs", front + b"[" + ROW + b"]", "image")
    assert sample.key == "a"


def test_an_empty_array_holds_nothing(read: Read) -> None:
    assert read("pairs", b"[]", "image") == []


@pytest.mark.parametrize("bad", [b"\xff", b"\xe6\x97", b"caf\xe9", b"\xed\xa0\x80"])
def test_wrong_utf8_costs_its_row_only(read: Read, bad: bytes) -> None:
    results = read("pairs", b"[" + ROW.replace(b"one", bad) + b"," + ROW + b"]", "image")
    assert [type(result) for result in results] == [Reject, Sample]
    assert isinstance(results[0], Reject)
    assert (results[0].key, results[0].reason) == ("a", "damaged text: caption is not valid UTF-8")


def test_text_across_the_reading_blocks_stays_whole(read: Read) -> None:
    rows = [GOOD | {"id": str(index), "caption": "日本語 ü " * (index % 97 + 1)} for index in range(2000)]
    results = read("pairs", json.dumps(rows, ensure_ascii=False).encode(), "image")
    assert [next(iter(result.items())).caption for result in results] == [row["caption"].strip() for row in rows]


@pytest.mark.parametrize(
    ("row", "reason"), [(1, "bad row: not an object"), ([], "bad row: not an object"), (None, "bad row: not an object")]
)
def test_a_row_that_is_no_object_is_rejected(read: Read, row: object, reason: str) -> None:
    assert read("pairs", [row], "image") == [Reject(source="rows.json#0", key="0000000", stage="read", reason=reason)]


def test_big_files_take_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    with path.open("w") as file:
        file.write("[")
        for index in range(20_000):
            file.write(("," if index else "") + json.dumps(GOOD | {"id": str(index), "caption": "word " * 50}))
        file.write("]")
    entry = Entry(name="rows", reader="pairs", paths=["rows.json"], modality=Modality.IMAGE)
    tracemalloc.start()
    count = sum(1 for _ in READERS["pairs"](entry, path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 20_000
    assert peak < path.stat().st_size / 4
