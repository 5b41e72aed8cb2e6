"""However a source is cut and partitioned, its samples, keys, captions and rejects are those of one pass in order."""

import csv
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.prepare import known_rows, reading
from pipelines.prepare.staging import Source, Staged, stage_rows, staged_rows
from pipelines.sample import Modality, Reject, Sample
from pipelines.sources.entry import Entry
from pipelines.sources.readers import READERS
from pipelines.sources.rows import MAX_CAPTIONS
from pipelines.tables import delimited, lines, tables
from pipelines.tables.keys import other_keys


@pytest.fixture(autouse=True)
def _cut_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small source is cut as a large one is."""
    cut_small(monkeypatch)


def cut_small(patch: pytest.MonkeyPatch, rows: int = 2) -> None:
    patch.setattr(reading, "_SMALL_BYTES", 0)
    patch.setattr(reading, "SECTION_ROWS", rows)
    patch.setattr(delimited, "_ROWS_APART", 1)
    patch.setattr(lines, "_SURVEY_BYTES", 16)
    patch.setattr(tables, "_TEXT_BATCH_ROWS", rows)
    patch.setattr(known_rows, "_PARTITION_ROWS", rows)


class Told(NamedTuple):
    key: str
    source: str
    captions: tuple[str, ...]


def source_of(folder: Path, path: Path, reader: str = "pairs", samples_per_shard: int = 3) -> Source:
    modality = Modality.IMAGE if reader == "pairs" else None
    entry = Entry(name="rows", reader=reader, paths=[path.name], modality=modality)
    media = path if path.is_dir() else path.parent
    return Source(entry=entry, path=path, media=media, directory=folder / "out", samples_per_shard=samples_per_shard)


def told(row: Sample) -> Told:
    captions = tuple(caption for item in row.items() for caption in item.captions)
    return Told(row.key, row.source, captions)


def staged(source: Source) -> tuple[list[Told], list[Reject], Staged]:
    found = stage_rows(source)
    rows = [row for chunk in range(len(found.chunks)) for row in staged_rows(source, chunk)]
    sizes = [chunk.rows for chunk in found.chunks]
    assert all(size == source.samples_per_shard for size in sizes[:-1])
    assert found.rows == len(rows) + found.merged + sum(found.rejected.values())
    return [told(row) for row in rows], list(found.rejects()), found


def in_order(source: Source) -> tuple[list[Told], list[Reject]]:
    """What one pass over the rows makes of them, by the README's words."""
    keys, contents = set[str](), set[Any]()
    media: dict[str, int] = {}
    rows, merged, rejects = list[Told](), list[int](), list[Reject]()
    for row in READERS[source.entry.reader](source.entry, source.path):
        if isinstance(row, Reject):
            rejects.append(row)
            continue
        names = [item.name for item in row.items()]
        medium = names[0] if source.entry.modality and len(names) == 1 else ""
        if row.key in keys and row.turns in contents:
            rejects.append(Reject(source=row.source, key=row.key, stage="read", reason=f"duplicate key: {row.key}"))
        elif medium in media:
            place = media[medium]
            if merged[place] == MAX_CAPTIONS:
                reason = f"too many captions: {MAX_CAPTIONS} more rows than one name {medium}"
                rejects.append(Reject(source=row.source, key=row.key, stage="read", reason=reason))
                continue
            keys.add(row.key)
            contents.add(row.turns)
            merged[place] += 1
            before = rows[place]
            source_ = f"{before.source}\n{row.source}"
            rows[place] = Told(before.key, source_, (*before.captions, *told(row).captions))
        else:
            key = row.key
            if key in keys:
                others = other_keys(row.key, row.source, next(filter(None, names), ""))
                key = next(other for other in others if other not in keys)
            keys.add(key)
            contents.add(row.turns)
            if medium:
                media[medium] = len(rows)
            rows.append(told(row)._replace(key=key))
            merged.append(0)
    return rows, rejects


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


ROW = st.fixed_dictionaries(
    {"image": st.sampled_from(["a.png", "b/a.png", "c/a.png", "d.png", "", "rows.jsonl/a"])},
    optional={"id": st.sampled_from(["a", "b", "0000001", "d"]), "caption": st.sampled_from(["x", "y", "z", ""])},
)


@given(st.lists(ROW, max_size=40), st.integers(1, 9))
def test_any_rows_are_what_one_pass_makes_of_them(rows: list[dict[str, Any]], size: int) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        cut_small(patch, size)
        source = source_of(Path(folder), write_jsonl(Path(folder) / "rows.jsonl", rows))
        samples, rejects, _ = staged(source)
        assert (samples, rejects) == in_order(source)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz")), max_size=30))
def test_any_dialogues_are_what_one_pass_makes_of_them(rows: list[tuple[str, str]]) -> None:
    talks = [
        {
            "conversations": [{"from": "human", "value": "Draw."}, {"from": "gpt", "value": f"{said} <image>"}],
            "output_image": [f"{name}.png"],
            "image_captions": [said],
        }
        for name, said in rows
    ]
    with tempfile.TemporaryDirectory() as folder:
        source = source_of(Path(folder), write_jsonl(Path(folder) / "rows.jsonl", talks), "conversations")
        samples, rejects, _ = staged(source)
        assert (samples, rejects) == in_order(source)


def test_a_key_that_a_row_is_given_and_another_has_takes_one_pass(tmp_path: Path) -> None:
    rows = [{"id": "a", "image": f"{number}.png", "caption": "grey"} for number in range(9)]
    source = source_of(tmp_path, write_jsonl(tmp_path / "rows.jsonl", rows))
    given_ = staged(source)[0][3].key
    rows.append({"id": given_, "image": "10.png", "caption": "grey"})
    write_jsonl(tmp_path / "rows.jsonl", rows)
    samples, rejects, _ = staged(source)
    assert (samples, rejects) == in_order(source)
    assert len({sample.key for sample in samples}) == 10


def test_a_medium_of_very_many_rows_takes_one_pass(tmp_path: Path) -> None:
    rows = [{"id": str(n % 1500), "image": f"{n % 2}.png", "caption": str(n)} for n in range(2 * MAX_CAPTIONS + 60)]
    with pytest.MonkeyPatch.context() as patch:
        cut_small(patch, 300)
        source = source_of(tmp_path, write_jsonl(tmp_path / "rows.jsonl", rows))
        samples, rejects, _ = staged(source)
    assert (samples, rejects) == in_order(source)
    assert [len(sample.captions) for sample in samples] == [MAX_CAPTIONS + 1] * 2


def test_rows_without_ids_are_numbered_through_all_files_and_sections(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    for number in range(3):
        talk = [{"instruction": f"{number} {row}", "output": "yes"} for row in range(5)]
        write_jsonl(folder / f"{number}.jsonl", talk)
    samples, rejects, found = staged(source_of(tmp_path, folder, "alpaca"))
    assert [sample.key for sample in samples] == [f"{number:07d}" for number in range(15)]
    assert [sample.source for sample in samples] == [f"{file}.jsonl#{row}" for file in range(3) for row in range(5)]
    assert (rejects, found.sections > 5) == ([], True)


def damaged_parquet(path: Path) -> None:
    """Three row groups, the second of which breaks off."""
    captions = [f"number {number} " * 9 for number in range(60)]
    table = pa.table({"instruction": captions, "output": captions})
    pq.write_table(table, path, row_group_size=20, compression="none", use_dictionary=False)
    start = pq.read_metadata(path).row_group(1).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + 40] = bytes(40)
    path.write_bytes(data)


def test_a_file_that_breaks_off_is_read_as_a_whole_and_what_follows_is_numbered_anew(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    damaged_parquet(folder / "0.parquet")
    good = [f"good {number}" for number in range(9)]
    pq.write_table(pa.table({"instruction": good, "output": good}), folder / "1.parquet")
    source = source_of(tmp_path, folder, "alpaca")
    samples, rejects, _ = staged(source)
    assert (samples, rejects) == in_order(source)
    assert [reject.reason.partition(":")[0] for reject in rejects] == ["unreadable"]
    assert [sample.source for sample in samples[-9:]] == [f"1.parquet#{number}" for number in range(9)]


@pytest.mark.parametrize("sections", [1, 3, 14])
def test_fingerprints_do_not_depend_on_sections(tmp_path: Path, sections: int) -> None:
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        rows = [(f"{number % 40}.png", f"a cat,\nnumber {number}") for number in range(100)]
        csv.writer(file).writerows([("image", "caption"), *rows])
    source = source_of(tmp_path, tmp_path / "rows.csv", samples_per_shard=7)
    with pytest.MonkeyPatch.context() as patch:
        cut_small(patch, 1000)
        whole = stage_rows(source).chunks
        cut_small(patch, max(1, 100 // sections))
        assert stage_rows(source).chunks == whole
    assert [chunk.rows for chunk in whole] == [7, 7, 7, 7, 7, 5]


@pytest.mark.ray
def test_tasks_of_ray_give_what_one_process_gives(tmp_path: Path, local_ray: Iterator[None]) -> None:
    from pipelines.ray_steps import map_rows

    rows = [{"id": n % 30, "image": f"{n % 45}.png", "caption": f"{n % 7}"} for n in range(90)]
    source = source_of(tmp_path, write_jsonl(tmp_path / "rows.jsonl", rows))
    with pytest.MonkeyPatch.context() as patch:
        cut_small(patch, 20)
        one, _, here = staged(source)
        there = stage_rows(source, run=map_rows)
    assert (there.chunks, there.rejected, there.merged) == (here.chunks, here.rejected, here.merged)
    assert [told(row) for chunk in range(len(there.chunks)) for row in staged_rows(source, chunk)] == one
