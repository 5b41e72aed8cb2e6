"""Lineage: from which row of a source a sample was made, and what became of a row.

Only the needed columns of each index are read, several indexes at a time, in one pass for all questions.
"""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.curate.selection import not_holding
from pipelines.storage.files import read_table
from pipelines.storage.shards import MANIFEST, REJECTS, Manifest, Shard, index_path, list_datasets

READERS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """A sample's source and location, or why its row was rejected.

    `media` is by tar suffix the original file's name; `embeddings` are the encoder ids of the sidecars that hold the
    sample. A rejected row has a `stage` and a `reason`, and no shard.
    """

    dataset: str
    key: str
    source: str
    shard: str = ""
    place: int = 0
    caption: str = ""
    media: dict[str, str] = field(default_factory=dict)
    embeddings: tuple[str, ...] = ()
    stage: str = ""
    reason: str = ""

    def __str__(self) -> str:
        if self.reason:
            return f"{self.source} of {self.dataset} ({self.key or 'no key'}): rejected at {self.stage}: {self.reason}"
        rows = ", ".join(self.source.split("\n"))
        lines = [f"{self.dataset}/{self.key}: sample {self.place} of {self.shard}, from {rows}"]
        lines += [f"  caption: {' '.join(self.caption.split())}"] if self.caption else []
        lines += [f"  {self.key}.{suffix}: from {name}" for suffix, name in self.media.items()]
        lines += [f"  embeddings: {name}" for name in self.embeddings]
        return "\n".join(lines)


def find(shards: Path, questions: Sequence[str]) -> dict[str, list[Origin]]:
    """Answers each question: a sample's key (`dataset/key` or `view/key` too), or a source (`cc3m.json#17`).

    A key that was rejected as a duplicate is found as a sample and as a reject. What is not found has an empty list.

    Raises:
        FileNotFoundError: the folder does not exist or holds no finished dataset.
    """
    found: dict[str, list[Origin]] = {question: [] for question in questions}
    for name, manifest in list_datasets(shards).items():
        asked: dict[str, list[str]] = {}
        for question in found:
            for wording in filter(None, _wordings(question, {name, *manifest.views})):
                asked.setdefault(wording, []).append(question)
        for origin in _origins(shards / name, manifest, pa.array(list(asked), pa.string())):
            named = (origin.key, *origin.source.split("\n"))
            for question in {question for name in named for question in asked.get(name, [])}:
                found[question].append(origin)
    return found


def print_origins(shards: Path, questions: Sequence[str], where: str | None = None) -> int:
    """Prints the answer to each question; returns the number of questions without one.

    Each sample says whether a condition on columns selects it, or which clauses do not hold and why: `where`, and that
    of each view that has one in the catalog.
    """
    answers = find(shards, questions)
    for question, origins in answers.items():
        for origin in origins:
            print(origin)
            for line in _selected(shards / origin.dataset, origin, where) if origin.shard else ():
                print(f"  {line}")
        if not origins:
            print(f"{question}: no sample has this key and no row this source; give KEY, DATASET/KEY or FILE#ROW")
    return sum(not origins for origins in answers.values())


def _selected(directory: Path, origin: Origin, where: str | None) -> Iterator[str]:
    """What each condition says of a sample."""
    manifest = Manifest.read(directory)
    conditions = {f" by {view}": text for view, text in manifest.where.items()} | ({"": where} if where else {})
    for by, text in conditions.items():
        reasons = list(not_holding(directory, manifest, [text], origin.shard, origin.place))
        yield f"not selected{by}: {'; '.join(reasons)}" if reasons else f"selected{by}"


def _wordings(question: str, names: set[str]) -> list[str]:
    """A question as given, and without a leading name of the dataset or of one of its views."""
    name, _, rest = question.partition("/")
    return [question, rest] if name in names and rest else [question]


def _origins(dataset: Path, manifest: Manifest, asked: pa.Array) -> Iterator[Origin]:
    sidecars = sorted(path.parent.name for path in dataset.glob(f"embeddings/*/{MANIFEST}"))

    def search(shard: Shard) -> list[dict[str, Any]]:
        path = index_path(dataset / shard.name)
        places = _places(path, asked)
        if not len(places):
            return []
        columns = ["key", "source", "caption", "media"]
        rows = read_table(path, columns).take(places).to_pylist()
        return [row | {"place": place} for place, row in zip(places.to_pylist(), rows, strict=True)]

    with ThreadPoolExecutor(READERS) as pool:
        for shard, rows in zip(manifest.shards, pool.map(search, manifest.shards), strict=True):
            for row in rows:
                files = {
                    suffix: str(facts.get("file", "")) for suffix, facts in json.loads(row["media"] or "{}").items()
                }
                caption = row["caption"].replace("\n", " / ") if manifest.captions else row["caption"]
                place = {"shard": shard.name, "place": row["place"], "caption": caption}
                named = {"key": row["key"], "source": row["source"], "dataset": dataset.name}
                yield Origin(**named, **place, media=files, embeddings=tuple(sidecars))
    rejects = dataset / REJECTS
    for row in read_table(rejects).take(_places(rejects, asked)).to_pylist():
        yield Origin(dataset=dataset.name, **row)


def _places(path: Path, asked: pa.Array) -> pa.Array:
    """The rows of an index, or of the rejects, whose key or source is among those asked for."""
    table = read_table(path, ["key", "source"])
    rows = pc.split_pattern(table["source"], "\n").combine_chunks()  # a sample may be of several
    of_rows = pc.list_parent_indices(rows).filter(pc.is_in(pc.list_flatten(rows), value_set=asked))
    of_keys = pc.indices_nonzero(pc.is_in(table["key"], value_set=asked))
    return pa.array(sorted({*of_rows.to_pylist(), *of_keys.to_pylist()}), pa.int64())
