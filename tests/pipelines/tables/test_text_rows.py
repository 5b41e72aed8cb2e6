"""What a text file is, its content says: any table that pandas', csv's or json's own writers wrote comes back."""

import csv
import gzip
import hashlib
import io
import json
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipelines.sample import Modality, Reject, Sample
from pipelines.sources.entry import Entry
from pipelines.sources.readers import READERS
from pipelines.tables import formats

ReadPath = Callable[..., list[Any]]

PROPERTY = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
# Any text, and texts of the characters that formats give a meaning.
CAPTION = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12) | st.text(
    st.sampled_from('",;\t\n\r a1'), max_size=8
)
CAPTIONS = st.lists(CAPTION, min_size=1, max_size=6)
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".zst": lambda data: pa.compress(data, "zstd", asbytes=True),
}


def table(captions: list[str]) -> list[dict[str, Any]]:
    return [{"caption": caption, "image_name": f"{index}.jpg"} for index, caption in enumerate(captions)]


def values(path: Path) -> list[Any]:
    """The rows of a file, of which none may be an error."""
    raws = list(formats.read(formats.whole(path, []), {}))
    assert [raw.error for raw in raws if raw.error] == []
    return [raw.value for raw in raws]


def cells(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with texts as a line end without quotes leaves them: csv takes a `\\r` in front of it for a part of it."""
    return [{name: value.rstrip("\r") for name, value in row.items()} for row in rows]


@PROPERTY
@given(
    captions=CAPTIONS,
    delimiter=st.sampled_from(",;\t"),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"]),
    compression=st.sampled_from(list(COMPRESSIONS)),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    caption_last=st.booleans(),
    index=st.booleans(),
    suffix=st.sampled_from(["csv", "tsv"]),
)
@example(["\t\n", 'a\t"\n'], "\t", "utf-8", "", csv.QUOTE_MINIMAL, False, False, "tsv")
@example(['"Hello"', '"open', 'close"'], "\t", "utf-8", "", csv.QUOTE_MINIMAL, True, False, "tsv")
@example(["a\rb", "x, y"], ";", "utf-16", ".gz", csv.QUOTE_MINIMAL, False, True, "csv")
def test_a_table_of_pandas_comes_back(
    tmp_path: Path,
    captions: list[str],
    delimiter: str,
    encoding: str,
    compression: str,
    quoting: Any,
    caption_last: bool,
    index: bool,
    suffix: str,
) -> None:
    rows = table(captions)
    frame = pd.DataFrame(rows)[["image_name", "caption"] if caption_last else ["caption", "image_name"]]
    plain, path = tmp_path / "plain", tmp_path / f"rows.{suffix}{compression}"
    frame.to_csv(plain, sep=delimiter, encoding=encoding, quoting=quoting, index=index)
    path.write_bytes(COMPRESSIONS[compression](plain.read_bytes()))
    assert cells(values(path)) == cells(rows)


@PROPERTY
@given(captions=CAPTIONS, delimiter=st.sampled_from(",;\t"), line_end=st.sampled_from(["\n", "\r\n"]))
def test_a_table_of_csv_comes_back(tmp_path: Path, captions: list[str], delimiter: str, line_end: str) -> None:
    rows = [row | {"id": index} for index, row in enumerate(table(captions))]
    with (tmp_path / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter, lineterminator=line_end)
        writer.writeheader()
        writer.writerows(rows)
    assert values(tmp_path / "rows.csv") == [row | {"id": str(row["id"])} for row in rows]


@PROPERTY
@given(
    captions=CAPTIONS,
    form=st.sampled_from(["lines", "records", "index", "json", "json.indent", "json.object", "json.object.indent"]),
    ascii_only=st.booleans(),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    compression=st.sampled_from(list(COMPRESSIONS)),
    suffix=st.sampled_from(["json", "jsonl", "csv"]),
)
def test_json_of_any_form_comes_back(
    tmp_path: Path, captions: list[str], form: str, ascii_only: bool, encoding: str, compression: str, suffix: str
) -> None:
    rows, frame = table(captions), pd.DataFrame(table(captions))
    indent = 1 if form.endswith("indent") else None
    if form in ("lines", "records", "index"):
        orient: Any = "records" if form == "lines" else form
        text = frame.to_json(orient=orient, lines=form == "lines", force_ascii=ascii_only)
    elif "object" in form:
        text = json.dumps({f"{row}": value for row, value in enumerate(rows)}, ensure_ascii=ascii_only, indent=indent)
    else:
        text = json.dumps(rows, ensure_ascii=ascii_only, indent=indent)
    path = tmp_path / f"rows.{suffix}{compression}"
    path.write_bytes(COMPRESSIONS[compression](text.encode(encoding)))
    by_id = form == "index" or "object" in form
    assert values(path) == [{"id": str(row)} | value if by_id else value for row, value in enumerate(rows)]


def captions_of(results: list[Any]) -> list[str]:
    return [next(result.items()).caption for result in results if isinstance(result, Sample)]


def reasons_of(results: list[Any]) -> list[str]:
    return [result.reason for result in results if isinstance(result, Reject)]


@pytest.mark.parametrize(
    "captions",
    [
        ['"the end" is written on a wall', '"an open quote on a sign', "a plain one", 'a 5" screen', "the last"],
        ['"an open quote', "a plain one", 'a screen of 5"', "the last"],
        ['"Hello"', '"Hello" he says', "a plain one"],
        ['"', '""', '"""', 'a "', "the last"],
    ],
)
@pytest.mark.parametrize("order", ["{caption}\t{name}", "{name}\t{caption}"])
def test_a_bare_quote_swallows_no_row(tmp_path: Path, read_path: ReadPath, captions: list[str], order: str) -> None:
    lines = [order.format(caption="caption", name="image_name")]
    lines += [order.format(caption=caption, name=f"{index}.jpg") for index, caption in enumerate(captions)]
    (tmp_path / "rows.tsv").write_text("\n".join(lines) + "\n")
    results = read_path("pairs", tmp_path / "rows.tsv", modality="image")
    assert captions_of(results) == captions
    assert [next(result.items()).name for result in results] == [f"{index}.jpg" for index in range(len(captions))]


def test_a_row_of_another_width_names_its_line(tmp_path: Path, read_path: ReadPath) -> None:
    rows = ["caption\timage_name", "one\t1.jpg", "two\t2.jpg\tmore", "", '"three', "4", 'five"\t5.jpg', "six\t6.jpg"]
    (tmp_path / "rows.tsv").write_text("\n".join(rows))
    results = read_path("pairs", tmp_path / "rows.tsv", modality="image")
    assert captions_of(results) == ["one", "three 4 five", "six"]
    assert reasons_of(results) == ["bad row: 3 cells under 2 columns (line 3)"]


def test_lines_keep_their_numbers_behind_a_quote_that_never_closes(tmp_path: Path, read_path: ReadPath) -> None:
    (tmp_path / "rows.csv").write_text('image_name,caption\n"a.jpg,one\nb.jpg\nc.jpg,three\n')
    results = read_path("pairs", tmp_path / "rows.csv", modality="image")
    assert "bad row: 1 cells under 2 columns (line 3)" in reasons_of(results)


def test_a_caption_cut_by_a_line_break_is_no_row(tmp_path: Path, read_path: ReadPath) -> None:
    text = "id,file_name,caption\n1,1.wav,a bell rings while a small\ncrowd talks nearby\n2,2.wav,a dog barks\n\n"
    (tmp_path / "rows.csv").write_text(text + '3,3.wav,"two\nlines"\n4\n5,5.wav,a cat\n')
    results = read_path("pairs", tmp_path / "rows.csv", modality="audio")
    assert captions_of(results) == ["a dog barks", "two lines", "a cat"]
    assert reasons_of(results) == [
        "bad row: line 2 may be cut by a line break without quotes: line 3 next to it has 1 cells under 3 columns",
        "bad row: 1 cells under 3 columns (line 3)",
        "bad row: 1 cells under 3 columns (line 8)",
    ]


def test_a_caption_in_front_cut_by_a_line_break_is_no_row(tmp_path: Path, read_path: ReadPath) -> None:
    (tmp_path / "rows.csv").write_text("caption,file_name\na bell\nrings,1.wav\na dog barks,2.wav\n")
    results = read_path("pairs", tmp_path / "rows.csv", modality="audio")
    assert captions_of(results) == ["a dog barks"]
    assert reasons_of(results) == [
        "bad row: 1 cells under 2 columns (line 2)",
        "bad row: line 3 may be cut by a line break without quotes: line 2 next to it has 1 cells under 2 columns",
    ]


@pytest.mark.parametrize(
    ("header", "row", "cut", "named"),
    [
        (
            "audio,caption",
            "{0},a dog barks {0} times",
            ["5,a bell rings while", "a small crowd talks, and laughs", "6,a cat"],
            "a small crowd talks",
        ),
        (
            "caption,audio",
            "a dog barks {0} times,{0}.wav",
            ["a bell rings, while", "a crowd talks,5.wav", "a cat,6.wav"],
            "while",
        ),
    ],
    ids=["caption last", "caption first"],
)
def test_a_caption_cut_where_both_pieces_have_the_right_width_is_no_row(
    tmp_path: Path, read_path: ReadPath, header: str, row: str, cut: list[str], named: str
) -> None:
    (tmp_path / "rows.csv").write_text("\n".join([header, *map(row.format, range(5)), *cut]))
    results = read_path("pairs", tmp_path / "rows.csv", modality="audio")
    assert captions_of(results) == [*(f"a dog barks {number} times" for number in range(5)), "a cat"]
    why = f"lines 7 and 8 may be one that a line break without quotes cut: {named!r} is no audio"
    assert reasons_of(results) == [f"bad row: {why}"] * 2


def test_words_among_names_are_rows_where_no_caption_holds_a_delimiter(tmp_path: Path, read_path: ReadPath) -> None:
    rows = [*(f"{number},a dog barks {number} times" for number in range(5)), "last one,a cat", "7,a bird"]
    (tmp_path / "rows.csv").write_text("\n".join(["audio,caption", *rows]))
    results = read_path("pairs", tmp_path / "rows.csv", modality="audio")
    assert captions_of(results) == [row.partition(",")[2] for row in rows]


@pytest.mark.parametrize("size", [(1 << 20) + 1, 3 << 20])
def test_a_cell_over_the_limit_is_no_row_whatever_its_width(tmp_path: Path, read_path: ReadPath, size: int) -> None:
    (tmp_path / "rows.csv").write_text(f"caption,image_name\na cat,0.jpg\na dog,{'x' * size}\na bird,2.jpg\n")
    results = read_path("pairs", tmp_path / "rows.csv", modality="image")
    assert captions_of(results) == ["a cat", "a bird"]
    assert reasons_of(results) == ["bad row: field larger than field limit (1048576)"]


def test_a_quote_that_never_closes_costs_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    with path.open("w") as file:
        file.write('caption\timage_name\n"open\t0.jpg\n')
        file.writelines(f"{'word ' * 30}\t{index}.jpg\n" for index in range(1, 30_000))
    tracemalloc.start()
    names = [raw.value["image_name"] for raw in formats.read(formats.whole(path, []), {})]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert names == [f"{index}.jpg" for index in range(30_000)]
    assert peak < 24 << 20


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("form", ["array", "lines", "object"])
def test_nan_is_null(tmp_path: Path, read_path: ReadPath, value: str, form: str) -> None:
    rows: list[Any] = [row | {"score": 0.5} for row in table(["one", "two", "three"])]
    rows[1]["score"] = rows[2]["caption"] = float(value)
    lines = [json.dumps(row) for row in rows]
    text = {"array": json.dumps(rows), "lines": "\n".join(lines), "object": json.dumps(dict(enumerate(rows)))}[form]
    (tmp_path / "rows.json").write_text(text)
    assert value in text
    results = read_path("pairs", tmp_path / "rows.json", modality="image")
    assert captions_of(results) == ["one", "two"]
    assert [reason.partition(":")[0] for reason in reasons_of(results)] == ["missing field"]


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
def test_ids_that_pandas_made_floats_are_whole_numbers(tmp_path: Path, read_path: ReadPath, suffix: str) -> None:
    frame = pd.DataFrame({"id": [17, None, 3], "caption": ["a", "b", "c"], "image_name": ["0.jpg", "1.jpg", "2.jpg"]})
    path = tmp_path / f"rows.{suffix}"
    write = {"csv": frame.to_csv, "parquet": frame.to_parquet, "jsonl": frame.to_json}[suffix]
    write(path, **({"orient": "records", "lines": True} if suffix == "jsonl" else {"index": False}))
    results = read_path("pairs", path, modality="image")
    assert [result.key for result in results] == ["17", "1", "3"]
    named = read_path("pairs", path, modality="image", fields={"name": "none"}, media_name="{id}.png")
    assert next(named[0].items()).name == "17.png"


def test_nan_in_a_table_is_nothing(tmp_path: Path, read_path: ReadPath) -> None:
    columns = {"id": pa.array([0.0, float("nan")]), "caption": ["a", "b"], "image_name": ["0.jpg", "9.jpg"]}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    assert [result.key for result in read_path("pairs", tmp_path / "rows.parquet", modality="image")] == ["0", "9"]


@pytest.mark.parametrize(
    ("first", "second"), [("a cat ; , here", "https://a.b/c.jpg?w=1"), ("https://a.b/c.jpg", "a cat")]
)
def test_the_tables_of_conceptual_captions_need_no_first_line(tmp_path: Path, first: str, second: str) -> None:
    (tmp_path / "Train.tsv").write_text(f"{first}\t{second}\n{first}\t{second}\n")
    url, caption = (first, second) if first.startswith("http") else (second, first)
    assert values(tmp_path / "Train.tsv") == [{"url": url, "caption": caption}] * 2


@pytest.mark.parametrize(
    ("data", "seen"),
    [
        (b"0.jpg,a cat\n1.jpg,a dog\n", r"its first line is a row, '0\.jpg,a cat'"),
        (b"<!DOCTYPE html><html></html>", "it is HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "a pointer of Git LFS"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "it is binary, it begins with .*PNG"),
        (b"PK\x03\x04 rows.csv", "a zip archive"),
        (b'{"caption": {"0": "a"}, "image_name": {"0": "a.jpg"}}', "an object of columns, the first is .*caption"),
        (b'{\n "images": [\n  {"id": 1}\n ]\n}', "an object without rows: its first field is .*images"),
    ],
)
def test_what_is_no_table_is_told_in_one_line(tmp_path: Path, read_path: ReadPath, data: bytes, seen: str) -> None:
    (tmp_path / "rows.csv").write_bytes(data)
    with pytest.raises(ValueError, match=rf"rows\.csv: .*{seen}") as caught:
        read_path("pairs", tmp_path / "rows.csv", modality="image")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("compress", [gzip.compress, lambda data: pa.compress(data, "zstd", asbytes=True)])
def test_rows_before_the_damage_of_compressed_data_are_kept(
    tmp_path: Path, read_path: ReadPath, compress: Callable[[bytes], bytes]
) -> None:
    lines = "".join(json.dumps(row | {"hash": hash_of(row)}) + "\n" for row in table(["a cat"] * 5_000))
    data = compress(lines.encode())
    (tmp_path / "rows.jsonl.gz").write_bytes(data[: len(data) // 2])
    *samples, reject = read_path("pairs", tmp_path / "rows.jsonl.gz", modality="image")
    assert len(samples) > 500
    assert set(captions_of(samples[:-1])) == {"a cat"}
    assert reject.key == ""
    assert reject.reason.startswith("unreadable: rows.jsonl.gz breaks off")


def hash_of(row: dict[str, Any]) -> str:
    """What does not compress away."""
    return hashlib.sha256(row["image_name"].encode()).hexdigest()


def test_compressed_files_of_a_folder_are_read(tmp_path: Path, read_path: ReadPath) -> None:
    for compression, compress in COMPRESSIONS.items():
        row = {"caption": f"a cat{compression}", "image_name": "0.jpg"}
        (tmp_path / f"rows.jsonl{compression}").write_bytes(compress(json.dumps(row).encode()))
    results = read_path("pairs", tmp_path, modality="image")
    assert captions_of(results) == ["a cat", "a cat.gz", "a cat.zst"]


@pytest.mark.parametrize("compression", ["", ".zst"])
def test_big_texts_take_little_memory(tmp_path: Path, compression: str) -> None:
    text = io.StringIO()
    pd.DataFrame(table(["word " * 1000] * 2_400)).to_csv(text)
    path = tmp_path / f"rows.csv{compression}"
    path.write_bytes(COMPRESSIONS[compression](text.getvalue().encode()))
    tracemalloc.start()
    entry = Entry(name="rows", reader="pairs", paths=[path.name], modality=Modality.IMAGE)
    count = sum(1 for _ in counted(READERS["pairs"](entry, path)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 2_400
    assert peak < 7 << 20


def counted(results: Iterator[Any]) -> Iterator[Sample]:
    for result in results:
        assert isinstance(result, Sample)
        yield result
