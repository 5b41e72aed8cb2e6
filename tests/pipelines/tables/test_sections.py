"""A file that is read in sections gives the rows, numbers, lines and errors that it gives in one piece."""

import csv
import gzip
import io
import json
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pandas as pd  # type: ignore[import-untyped]
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipelines.tables import delimited, formats, lines, tables
from pipelines.tables.raw import START, Cut, Raw, Section

# What quotes, line breaks and delimiters make of a table is where sections could differ.
PIECES = st.sampled_from(
    ['"', '""', ",", "\n", "\r\n", "\n\n", "a cat", "12", "b.jpg", " ", "é", "; ", "\t", '"x"', "\\"]
)
CELL = st.lists(PIECES, max_size=6).map("".join)


@pytest.fixture(autouse=True, scope="module")
def _places_everywhere() -> Iterator[None]:
    """A small table has as many places to cut as a large one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delimited, "_ROWS_APART", 1)
        patch.setattr(lines, "_SURVEY_BYTES", 7)
        patch.setattr(tables, "_TEXT_BATCH_ROWS", 3)
        yield


def whole(path: Path) -> list[Raw]:
    return list(formats.read(formats.whole(path, []), {}))


def in_sections(path: Path, chosen: list[bool]) -> list[Raw]:
    """The rows of a file, cut at those of its places that are chosen."""
    places, _ = formats.survey(path, path.name)
    taken = [place for place, is_taken in zip(places, chosen, strict=False) if is_taken]
    rows: list[Raw] = []
    for begin, end in pairwise([START, *taken, None]):
        assert begin is not None
        count = None if end is None else end.row - begin.row
        cut = Cut(file=path, name=path.name, place=begin, rows=count)
        rows += formats.read(Section(path=path, cuts=(cut,), index=begin.row), {})
    return rows


def same_in_sections(data: bytes, name: str, chosen: list[bool]) -> int:
    """Holds that sections give what the whole gives; returns how many places there were."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        try:
            expected = whole(path)
        except ValueError:
            return 0
        places, rows = formats.survey(path, name)
        assert rows == len(expected)
        assert in_sections(path, chosen) == expected
        return len(places)


CHOSEN = st.lists(st.booleans(), min_size=40, max_size=40)


@given(st.lists(st.tuples(CELL, CELL), max_size=12), st.sampled_from([",", "\t", ";"]), CHOSEN)
def test_any_table_of_csvs_own_writer(rows: list[tuple[str, str]], delimiter: str, chosen: list[bool]) -> None:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows([("image", "caption"), *rows])
    same_in_sections(text.getvalue().encode(), "rows.csv", chosen)


@given(st.lists(PIECES, max_size=60).map("".join), st.sampled_from(["rows.csv", "rows.tsv"]), CHOSEN)
@example('"a cat\nb.jpg,12\n12\n', "rows.csv", [True] * 40)  # A quote that never closes is looked for to the end.
def test_any_text_that_is_taken_for_a_table(text: str, name: str, chosen: list[bool]) -> None:
    same_in_sections(b"\xef\xbb\xbfimage,caption\n" + text.encode(), name, chosen)
    same_in_sections(b"image\tcaption\n" + text.encode(), name, chosen)


@given(
    st.lists(st.one_of(st.just("\n"), st.just("{\n"), CELL.map(lambda cell: json.dumps({"a": cell}) + "\n"))), CHOSEN
)
def test_any_json_lines(parts: list[str], chosen: list[bool]) -> None:
    same_in_sections("".join(['{"a": 1}\n', *parts]).encode(), "rows.jsonl", chosen)


@given(st.lists(CELL, min_size=1, max_size=25), st.integers(1, 9), CHOSEN)
def test_any_parquet_with_any_row_groups(captions: list[str], rows: int, chosen: list[bool]) -> None:
    data = io.BytesIO()
    pq.write_table(pa.table({"caption": captions}), data, row_group_size=rows)
    assert same_in_sections(data.getvalue(), "rows.parquet", chosen) == (len(captions) - 1) // 3


@given(st.lists(st.lists(CELL, max_size=5), min_size=1, max_size=9), st.booleans(), CHOSEN)
def test_any_arrow_file_of_both_forms(batches: list[list[str]], is_file: bool, chosen: list[bool]) -> None:
    data, schema = io.BytesIO(), pa.schema([("caption", pa.string())])
    with (pa.ipc.new_file if is_file else pa.ipc.new_stream)(data, schema) as writer:
        for captions in batches:
            writer.write_batch(pa.record_batch([pa.array(captions, pa.string())], schema=schema))
    same_in_sections(data.getvalue(), "rows.arrow", chosen)


def test_a_quoted_line_break_is_no_place(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    captions = [f"line one\nline two, {number}\n" for number in range(5)]
    pd.DataFrame({"image": range(5), "caption": captions}).to_csv(path, index=False)
    places, rows = formats.survey(path, "rows.csv")
    # The places of CSV are those of the rows in front: a row shows whether the next one was cut.
    assert [(place.row, place.line) for place in places] == [(1, 1), (2, 4), (3, 7), (4, 10), (5, 13)]
    assert rows == 5
    (row,) = formats.read(
        Section(path=path, cuts=(Cut(file=path, name="rows.csv", place=places[2], rows=1),), index=3), {}
    )
    assert row == Raw(source="rows.csv#3", value={"image": "3", "caption": captions[3]})


def test_a_row_that_is_cut_names_its_lines_in_any_section(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("id,caption\n1,a dog\n2,a cat that\nsleeps well\n3,a cow\n")
    assert in_sections(path, [True] * 9) == whole(path)
    assert "line 3 may be cut" in whole(path)[1].error


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl.gz", "rows16.csv"])
def test_what_cannot_be_cut_has_no_places_but_its_rows_are_counted(tmp_path: Path, name: str) -> None:
    rows = [{"caption": f"number {number}", "image": f"{number}.png"} for number in range(7)]
    text = "\n".join(map(json.dumps, rows))
    data = {
        "rows.json": json.dumps(rows).encode(),
        "rows.jsonl.gz": gzip.compress(text.encode()),
        "rows16.csv": pd.DataFrame(rows).to_csv(index=False).encode("utf-16"),
    }[name]
    (tmp_path / name).write_bytes(data)
    assert formats.survey(tmp_path / name, name) == ([], 7)
