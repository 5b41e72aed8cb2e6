"""The same rows give the same samples in every format; a damaged row or file costs itself and is told."""

import csv
import io
import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from upath import UPath

from pipelines.sample import Item, Modality, Reject, Sample
from pipelines.storage.files import to_path
from pipelines.tables.lines import MAX_LINE_BYTES

ReadPath = Callable[..., list[Any]]

GOOD = {"caption": "one", "id": "a", "image_name": "a.jpg"}
TALK = [{"from": "human", "value": "<image> Hi"}, {"from": "gpt", "value": "Hello"}]
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


NOTHING = [{"image_name": "", "caption": "", "id": ""}] * 3


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Writes rows in the format of the suffix; CSV holds text only."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".arrow":
        table = pa.Table.from_pylist(rows)
        with pa.ipc.new_stream(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=3)
    elif path.suffix in (".csv", ".tsv"):
        text = io.StringIO(newline="")
        lines = csv.DictWriter(text, list(rows[0]), delimiter="," if path.suffix == ".csv" else "\t")
        lines.writeheader()
        lines.writerows(rows)
        path.write_bytes(text.getvalue().encode())
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text(json.dumps(rows))
    return path


def without_source(results: list[Any]) -> list[Any]:
    """All of each result but the name of its file."""
    rows = ((result, result.source.partition("#")[2]) for result in results)
    return [
        (row.key, number, row.turns, row.meta) if isinstance(row, Sample) else (row.key, number, row.stage, row.reason)
        for row, number in rows
    ]


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.fixed_dictionaries({"caption": TEXT, "id": TEXT, "image_name": TEXT}), min_size=1, max_size=8))
@example(rows=[*NOTHING, NOTHING[0] | {"id": ":"}, NOTHING[0] | {"image_name": ":"}])  # no column is one of names
def test_rows_of_any_format_are_the_same(tmp_path: Path, read_path: ReadPath, rows: list[dict[str, Any]]) -> None:
    expected = read_path("pairs", write(tmp_path / "rows.json", rows), modality="image")
    assert len(expected) == len(rows)
    for suffix in ("jsonl", "parquet", "arrow", "csv", "tsv"):
        results = read_path("pairs", write(tmp_path / f"rows.{suffix}", rows), modality="image")
        assert without_source(results) == without_source(expected)
        assert results[0].source == f"rows.{suffix}#0"


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "arrow"])
@pytest.mark.parametrize(
    ("reader", "row"),
    [
        ("alpaca", {"instruction": "Add.", "input": "", "output": "2"}),
        ("conversations", {"image": "a.jpg", "conversations": TALK}),
        ("videochat", {"video": "a.mp4", "QA": [{"i": None, "q": "What?", "a": "That."}]}),
        ("t2x", {"audio_captions": ["rain"], "conversations": TALK[1:2] * 0 + [TALK[1] | {"from": "human"}, TALK[1]]}),
        (
            "mosit",
            {"image_captions": ["a"], "conversations": [{"from": "human", "value": "Draw"}, TALK[0] | {"from": "gpt"}]},
        ),
        ("chats", {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}),
    ],
)
def test_every_reader_reads_every_format(
    tmp_path: Path, read_path: ReadPath, reader: str, row: dict[str, Any], suffix: str
) -> None:
    expected = read_path(reader, write(tmp_path / "rows.json", [row]))
    assert isinstance(expected[0], Sample), expected
    assert without_source(read_path(reader, write(tmp_path / f"rows.{suffix}", [row]))) == without_source(expected)


def test_a_bad_line_costs_that_line(tmp_path: Path, read_path: ReadPath) -> None:
    path = tmp_path / "rows.jsonl"
    good = json.dumps(GOOD).encode()
    bad = [
        b"{",
        b"[1]",
        b'{"caption": NaN}',
        b"[" * 100_000,
        b"x" * (MAX_LINE_BYTES + 5),
        good.replace(b"one", b"\xff"),
    ]
    path.write_bytes(b"\xef\xbb\xbf" + b"\n".join([good, b"", *bad, b"  ", good]))
    results = read_path("pairs", path, modality="image")
    assert [type(result) for result in results] == [Sample, *[Reject] * len(bad), Sample]
    assert [result.source for result in results] == [f"rows.jsonl#{index}" for index in range(8)]
    reasons = [result.reason.partition(":")[0] for result in results if isinstance(result, Reject)]
    assert reasons == ["bad JSON", "bad row", "missing field", "bad JSON", "too long", "damaged text"]
    assert results[1].key == "0000001"


def test_a_bad_line_of_csv_costs_that_line(tmp_path: Path, read_path: ReadPath) -> None:
    path = tmp_path / "rows.csv"
    good = b'"one, ""two""\r\nthree",a,a.jpg\r\n'
    path.write_bytes(b"caption,id,image_name\r\n" + good + b"short\n\n" + b"caf\xe9,b,b.jpg\n" + b",c,c.jpg\n" + good)
    results = read_path("pairs", path, modality="image")
    assert next(results[0].items()).caption == 'one, "two" three'
    assert [result.reason for result in results if isinstance(result, Reject)] == [
        "bad row: 1 cells under 3 columns (line 4)",
        "damaged text: caption is not valid UTF-8",
        "empty caption",
    ]
    assert results[-1].source == "rows.csv#4"


@pytest.mark.parametrize(
    ("name", "data", "match"),
    [
        ("rows.csv", b"", r"rows\.csv: its first line must name every column once"),
        ("rows.csv", b"a,a\n1,2", r"rows\.csv: its first line must name every column once"),
        ("rows.parquet", b"PAR1 nonsense", r"rows\.parquet: not a readable Parquet file"),
        ("rows.arrow", b"nonsense", r"rows\.arrow: not a readable Arrow file"),
        (
            "rows.json",
            b"nonsense",
            r"rows\.json: not a JSON array .* with 'nonsense'; rows may be .* JSON lines",
        ),
    ],
)
def test_a_file_of_another_format_is_refused_in_one_line(
    tmp_path: Path, read_path: ReadPath, name: str, data: bytes, match: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=match) as caught:
        read_path("pairs", tmp_path / name, modality="image")
    assert "\n" not in str(caught.value)


def test_rows_before_the_damage_of_a_table_are_kept(tmp_path: Path, read_path: ReadPath) -> None:
    path = write(tmp_path / "rows.arrow", [GOOD | {"id": str(index)} for index in range(300)])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    *samples, reject = read_path("pairs", path, modality="image")
    assert 10 < len(samples) < 300
    assert all(isinstance(sample, Sample) for sample in samples)
    assert (reject.source, reject.key) == (f"rows.arrow#{len(samples)}", "")
    assert reject.reason.startswith("unreadable: rows.arrow breaks off")


def test_wrong_utf8_in_a_table_costs_its_row_only(tmp_path: Path, read_path: ReadPath) -> None:
    texts = pa.array([b"one", b"caf\xe9", b"three"]).view(pa.string())
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"caption": texts, "image_name": ["a.jpg", "b.jpg", "c.jpg"]}), path)
    one, bad, three = read_path("pairs", path, modality="image")
    assert (one.key, three.key, three.source) == ("a", "c", "rows.parquet#2")
    assert bad.reason.startswith("damaged text: ")


def test_a_cell_that_does_not_end_costs_no_memory(tmp_path: Path, read_path: ReadPath) -> None:
    path = tmp_path / "rows.csv"
    with path.open("wb") as file:
        file.write(b"caption,id,image_name\n")
        file.writelines([b"x" * (1 << 20)] * 64)
        file.write(b"\none,a,a.jpg\n")
    tracemalloc.start()
    reject, sample = read_path("pairs", path, modality="image")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert reject.reason == "bad row: field larger than field limit (1048576)"
    assert (sample.key, sample.source) == ("a", "rows.csv#1")
    assert peak < 24 << 20


def test_rows_of_a_table_are_listed_without_reading_its_media(tmp_path: Path, read_path: ReadPath) -> None:
    path, media = tmp_path / "rows.parquet", os.urandom(100_000)
    rows = [{"jpg": {"bytes": media, "path": "a.jpg"}, "png": media, "txt": "a cat"}] * 3
    pq.write_table(pa.Table.from_pylist(rows), path, compression="none", use_dictionary=False, write_page_checksum=True)
    path.write_bytes(path.read_bytes().replace(media, bytes(len(media))))
    results = read_path("pairs", path, modality="image")
    assert [next(sample.items()).name for sample in results] == [f"rows.parquet/jpg/{row}" for row in range(3)]


def test_columns_of_ones_own_are_named_in_the_entry(tmp_path: Path, read_path: ReadPath) -> None:
    rows: list[dict[str, Any]] = [
        {"my_text": "a cat", "my_file": "d/a.jpg", "no": 7, "caption": "not this"},
        {"my_file": "b.jpg", "no": 8},
    ]
    path = write(tmp_path / "rows.jsonl", rows)
    fields = {"caption": "my_text", "name": ["file", "my_file"], "id": "no"}
    sample, reject = read_path("pairs", path, modality="image", fields=fields)
    assert (sample.key, next(sample.items())) == ("7", Item(modality=Modality.IMAGE, name="d/a.jpg", caption="a cat"))
    assert (reject.key, reject.reason) == ("8", "missing field: caption")


def test_columns_are_named_for_any_reader(tmp_path: Path, read_path: ReadPath) -> None:
    path = write(tmp_path / "rows.jsonl", [{"prompt": "Hi", "completion": "Hello"}])
    (sample,) = read_path("alpaca", path, fields={"instruction": "prompt", "output": "completion"})
    assert [turn.parts for turn in sample.turns] == [("Hi",), ("Hello",)]


def test_a_file_name_is_made_of_columns(tmp_path: Path, read_path: ReadPath) -> None:
    rows: list[dict[str, Any]] = [
        {"page_dir": "1_50", "videoid": "21", "name": "a cat"},
        {"page_dir": None, "videoid": "22", "name": "x"},
    ]
    rows += [{"page_dir": "../..", "videoid": "{page_dir}", "name": "y"}]
    path = write(tmp_path / "rows.jsonl", rows)
    results = read_path(
        "pairs",
        path,
        modality="video",
        fields={"caption": "name", "id": "videoid"},
        media_name="{page_dir}/{videoid}.mp4",
    )
    assert next(results[0].items()) == Item(modality=Modality.VIDEO, name="1_50/21.mp4", caption="a cat")
    assert results[1].reason == "missing field: page_dir"
    assert next(results[2].items()).name == "../../{page_dir}.mp4"  # The media folder refuses it.


@pytest.mark.parametrize("url", ["https://a.b/c.jpg", "s3://a/b.jpg", "file:///etc/passwd"])
def test_nothing_is_downloaded(tmp_path: Path, read_path: ReadPath, url: str) -> None:
    (reject,) = read_path("pairs", write(tmp_path / "rows.json", [GOOD | {"image_name": url}]), modality="image")
    assert reject.reason == f"missing file: image_name is a {url.partition(':')[0]} URL, and nothing is downloaded"


def test_files_of_a_folder_are_read_in_order_with_their_names(tmp_path: Path, read_path: ReadPath) -> None:
    for name in ("b.jsonl", "a.jsonl", "c.json", ".hidden.jsonl"):
        write(tmp_path / name, [GOOD | {"id": f"{name[0]}{index}"} for index in range(2)])
    results = read_path("pairs", tmp_path, modality="image")
    assert [(result.key, result.source) for result in results] == [
        ("a0", "a.jsonl#0"),
        ("a1", "a.jsonl#1"),
        ("b0", "b.jsonl#0"),
        ("b1", "b.jsonl#1"),
    ]
    results = read_path("pairs", tmp_path, modality="image", paths=[f"{tmp_path.name}/*.json"])
    assert [result.key for result in results] == ["c0", "c1"]


def test_a_folder_without_rows_is_refused(tmp_path: Path, read_path: ReadPath) -> None:
    (tmp_path / "README.md").touch()
    with pytest.raises(ValueError, match="holds no rows"):
        read_path("pairs", tmp_path, modality="image")


def test_a_file_of_a_folder_that_cannot_be_read_is_one_reject(tmp_path: Path, read_path: ReadPath) -> None:
    (tmp_path / "a.parquet").write_bytes(b"nonsense")
    write(tmp_path / "b.parquet", [GOOD])
    reject, sample = read_path("pairs", tmp_path, modality="image")
    assert (reject.source, reject.key) == ("a.parquet", "")
    assert reject.reason.startswith("unreadable: not a readable Parquet file (")
    assert isinstance(sample, Sample)


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_a_media_folder_describes_itself(tmp_path: Path, read_path: ReadPath, suffix: str) -> None:
    (tmp_path / "train").mkdir()
    write(tmp_path / "train" / f"metadata.{suffix}", [{"file_name": "d/a.jpg", "text": "a cat"}])
    (sample,) = read_path("pairs", tmp_path, modality="image")
    assert next(sample.items()) == Item(modality=Modality.IMAGE, name="train/d/a.jpg", caption="a cat")
    assert sample.source == f"train/metadata.{suffix}#0"
    write(tmp_path / f"metadata.{suffix}", [{"file_name": "d/a.jpg", "text": "a cat"}])
    (sample,) = read_path("pairs", tmp_path, modality="image")
    assert next(sample.items()).name == "d/a.jpg"


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv", "parquet", "arrow"])
def test_rows_are_read_from_an_object_store(tmp_path: Path, read_path: ReadPath, suffix: str) -> None:
    folder = UPath("memory://rows") / suffix
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"rows.{suffix}").write_bytes(write(tmp_path / f"rows.{suffix}", [GOOD]).read_bytes())
    for path in (to_path(f"memory://rows/{suffix}/rows.{suffix}"), to_path(f"memory://rows/{suffix}")):
        (sample,) = read_path("pairs", path, modality="image")
        assert (sample.key, sample.source) == ("a", f"rows.{suffix}#0")
