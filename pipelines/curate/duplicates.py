"""Duplicates across datasets: which sample of each group of equal or nearly equal ones stays.

They are found in the prints of all samples (`prints.py`), which are read, compared and written a dataset at a time; the
driver holds about 250 bytes a sample. It is the smallest (dataset, key) of a group that stays, whatever the order of
datasets, shards or workers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.curate.columns import KEY, ColumnsManifest, ColumnsWork, begin, find_columns, read_columns, write_columns
from pipelines.curate.curating import Curated, finished
from pipelines.curate.groups import Pairs, Rows, equal, first_of_group, near_prints, near_words
from pipelines.curate.prints import HASH_BYTES, PRINT, WORDS
from pipelines.handover.survey import hash_key, held_out
from pipelines.progress import track
from pipelines.storage.shards import Manifest, hash_strings

VERSION = "1"
NAME = "duplicates"
COLUMNS = {
    "duplicate_of": "str",
    "near_duplicate_of": "str",
    "caption_duplicate_of": "str",
    "near_caption_duplicate_of": "str",
    "leaks": "str",
}
_READ = (KEY, "bytes_hash", "pixels_hash", "text_hash", "prints", "words")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prints:
    """The prints of all samples, by the order of their names: `names` is (dataset, key), others as `prints.COLUMNS`."""

    names: pa.Table
    columns: pa.Table

    @classmethod
    def of(cls, datasets: Sequence[str], tables: Sequence[pa.Table]) -> "tuple[Prints, Rows]":
        """Those of tables, each of a dataset; and the place of each of their rows in the order of names."""
        names = [pa.array([name] * len(table), pa.string()) for name, table in zip(datasets, tables, strict=True)]
        joined = pa.concat_tables(tables)
        joined = joined.append_column("dataset", pa.chunked_array(names, pa.string()))
        order = pc.sort_indices(joined, sort_keys=[("dataset", "ascending"), (KEY, "ascending")])
        places = np.empty(len(joined), np.int64)
        places[order.to_numpy()] = np.arange(len(joined))
        joined = joined.take(order)
        return cls(names=joined.select(["dataset", KEY]), columns=joined.drop_columns(["dataset", KEY])), places

    def __len__(self) -> int:
        return len(self.columns)

    def fixed(self, name: str, kind: np.dtype) -> tuple[npt.NDArray, Rows]:
        """The values of a column of a fixed size, and the rows that have one."""
        column = self.columns[name]
        return _values(column.drop_null(), kind), np.flatnonzero(column.is_valid().to_numpy())

    def of_media(self) -> Iterator[tuple[npt.NDArray[np.void], Rows]]:
        """The prints of media (n, k), and their rows, by the kinds of a sample's media."""
        column = self.columns["prints"]
        sizes = pc.fill_null(pc.binary_length(column), 0).to_numpy()
        for size in np.unique(sizes[sizes > 0]).tolist():
            rows = np.flatnonzero(sizes == size)
            found = _values(column.take(pa.array(rows)), PRINT, size // PRINT.itemsize)
            kinds, numbers = np.unique(found["kind"], axis=0, return_inverse=True)
            for number in range(len(kinds)):
                own = numbers.reshape(-1) == number
                yield found[own], rows[own]


def _values(column: pa.ChunkedArray, kind: np.dtype, width: int = 0) -> npt.NDArray:
    """Values of one size as an array (n,), or (n, width)."""
    size = kind.itemsize * max(1, width)
    joined = column.combine_chunks().cast(pa.binary(size))
    found = np.frombuffer(joined.buffers()[1] or b"", kind, len(joined) * max(1, width), joined.offset * size)
    return found.reshape(-1, width) if width else found


def find_duplicates(prints: Prints, fraction: float) -> dict[str, pa.Array]:
    """The columns of all samples, in the order of their names.

    A sample is a duplicate by its media, all of them in order; one without media, by what it says. `leaks` names the
    first sample that is held out of training, at this fraction, and nearly equals one that is not.
    """
    hashes = np.dtype(f"S{HASH_BYTES}")
    has_media = prints.columns["bytes_hash"].is_valid().to_numpy()
    texts, speaking = prints.fixed("text_hash", hashes)
    words, _ = prints.fixed("words", WORDS)
    alone = ~has_media[speaking]
    said = equal(texts[alone], speaking[alone])
    exact = [equal(*prints.fixed(name, hashes)) for name in ("bytes_hash", "pixels_hash")] + [said]
    near = [near_prints(*found) for found in prints.of_media()] + [near_words(words[alone], speaking[alone])]
    captions = [equal(texts, speaking)]
    groups = first_of_group(len(prints), [*exact, *near])
    return {
        "duplicate_of": others(prints, first_of_group(len(prints), exact)),
        "near_duplicate_of": others(prints, groups),
        "caption_duplicate_of": others(prints, first_of_group(len(prints), captions)),
        "near_caption_duplicate_of": _near_captions(prints, captions, near_words(words, speaking)),
        "leaks": _leaks(prints, groups, fraction),
    }


def _near_captions(prints: Prints, exact: Sequence[Pairs], near: Pairs) -> pa.Array:
    return others(prints, first_of_group(len(prints), [*exact, near]))


def others(prints: Prints, first: Rows) -> pa.Array:
    """The names of the rows that stay, at those that do not."""
    return _named(prints, np.where(first == np.arange(len(first)), -1, first))


def _leaks(prints: Prints, groups: Rows, fraction: float) -> pa.Array:
    keys = prints.names[KEY].to_pylist()
    apart = held_out(np.array([hash_key(key) for key in keys], np.uint64), fraction)
    first = np.full(len(groups), len(groups))
    rows = np.flatnonzero(apart)
    np.minimum.at(first, groups[rows], rows)
    leaking = np.where(apart | (first[groups] == len(groups)), -1, first[groups])
    return _named(prints, leaking)


def _named(prints: Prints, rows: Rows) -> pa.Array:
    """The names of rows; null of -1."""
    places = pa.array(rows, mask=rows < 0)
    datasets, keys = (prints.names[name].combine_chunks().take(places) for name in ("dataset", KEY))
    return pc.binary_join_element_wise(datasets, keys, "/")


def write_duplicates(directories: Sequence[Path], fraction: float) -> list[Curated]:
    """Writes which samples are duplicates of which, among these datasets, whose prints are finished."""
    found = [(directory, Manifest.read(directory), find_columns(directory)["prints"]) for directory in directories]
    # In one order, whichever they were named in.
    found.sort(key=lambda one: one[0].name)
    facts = [f"{directory.name} {manifest.content} {columns.id}" for directory, manifest, columns in found]
    context = hash_strings([*facts, str(fraction)])
    works = [_work(directory, manifest, context) for directory, manifest, _ in found]
    todo = [begin(work) for work in works]
    if any(todo):
        _write(found, works, todo, fraction)
    return [finished(work, len(numbers)) for work, numbers in zip(works, todo, strict=True)]


def _work(directory: Path, manifest: Manifest, context: str) -> ColumnsWork:
    return ColumnsWork(
        directory=directory,
        shards=tuple(manifest.shards),
        scorer=NAME,
        version=VERSION,
        columns=COLUMNS,
        context=context,
    )


def _write(
    found: Sequence[tuple[Path, Manifest, ColumnsManifest]],
    works: Sequence[ColumnsWork],
    todo: Sequence[Sequence[int]],
    fraction: float,
) -> None:
    tables = [
        pa.concat_tables([read_columns(directory, columns.id, shard.name, _READ) for shard in manifest.shards])
        for directory, manifest, columns in found
        if manifest.shards
    ]
    total = sum(map(len, tables))
    with track("compare", total, "samples", announce=True) as bar:
        prints, places = Prints.of([work.directory.name for work in works if work.shards], tables)
        write_found(works, todo, places, find_duplicates(prints, fraction))
        bar.advance(total)


def write_found(
    works: Sequence[ColumnsWork], todo: Sequence[Sequence[int]], places: Rows, columns: dict[str, pa.Array]
) -> None:
    """Writes the columns of all samples, which stand in the order of names, to the shards that are missing."""
    start = 0
    for work, numbers in zip(works, todo, strict=True):
        for number, shard in enumerate(work.shards):
            own = places[start : start + shard.samples]
            start += shard.samples
            if number in numbers:
                taken = pa.table({name: values.take(pa.array(own)) for name, values in columns.items()})
                write_columns(work, number, taken.to_pylist())
