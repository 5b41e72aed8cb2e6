"""A selection: which samples of a dataset satisfy conditions on its columns. Nothing is rewritten."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset

from pipelines.curate.columns import ColumnsManifest, find_columns, is_current, read_columns
from pipelines.storage.conditions import FLAG, NUMBER, TEXT, Clause, RowCondition, parse_condition
from pipelines.storage.files import read_table
from pipelines.storage.shards import Manifest, index_path

KINDS = {"float": NUMBER, "int": NUMBER, "str": TEXT, "bool": FLAG}
# What the shards' own indexes say of each sample.
INDEXED = ("key", "source", "caption")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Selection:
    """Which samples of a dataset are selected: bool (num_samples,), in the order of the shards.

    `dropped` says how many each clause dropped that no clause before it had; `columns` are the ids of the columns that
    were looked at, by scorer.
    """

    where: tuple[str, ...]
    selected: npt.NDArray[np.bool_]
    dropped: dict[str, int]
    columns: dict[str, str]

    @property
    def kept(self) -> int:
        """How many samples are selected."""
        return int(np.count_nonzero(self.selected))

    def describe(self, name: str) -> str:
        """The account of a view's selection in one line."""
        dropped = "".join(f", {count} dropped by {clause}" for clause, count in self.dropped.items())
        return f"{name}: {len(self.selected)} samples = {self.kept} selected{dropped}"

    @property
    def identity(self) -> str:
        """A hash of which samples are selected."""
        return hashlib.sha256(np.packbits(self.selected).tobytes()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The account for the files of a run."""
        return {
            "where": list(self.where),
            "columns": self.columns,
            "samples": len(self.selected),
            "selected": self.kept,
            "dropped": self.dropped,
            "identity": self.identity,
        }


def select(directory: Path, manifest: Manifest, where: Sequence[str]) -> Selection:
    """Selects the samples of a dataset for which all of the conditions hold; one shard is in memory at a time.

    Raises:
        ValueError: a condition cannot be read, names a column that does not exist, or does not fit its type; or the
            columns are of other shards than these. One line.
    """
    conditions = [parse_condition(text) for text in where]
    sources = _sources(directory, manifest, conditions)
    clauses = [clause for condition in conditions for clause in condition.clauses]
    dropped, parts = dict.fromkeys((clause.text for clause in clauses), 0), list[npt.NDArray[np.bool_]]()
    for shard in manifest.shards:
        table = _table(directory, shard.name, sources)
        left = np.ones(len(table), bool)
        for clause in clauses:
            holds = _holds(table, clause)
            dropped[clause.text] += int(np.count_nonzero(left & ~holds))
            left &= holds
        parts.append(left)
    return Selection(
        where=tuple(condition.text for condition in conditions),
        selected=np.concatenate([np.zeros(0, bool), *parts]),
        dropped=dropped,
        columns={scorer: found.id for scorer, (found, _) in sorted(sources.items()) if found is not None},
    )


_Sources = dict[str, tuple[ColumnsManifest | None, list[str]]]


def _sources(directory: Path, manifest: Manifest, conditions: Sequence[RowCondition]) -> _Sources:
    """The columns that conditions look at, by scorer; those of the shards' own indexes under an empty name."""
    found = find_columns(directory)
    kinds = dict.fromkeys(INDEXED, TEXT)
    owners = dict.fromkeys(INDEXED, "")
    for scorer, columns in found.items():
        for name, kind in columns.columns.items():
            if kind in KINDS:
                kinds[name], owners[name] = KINDS[kind], scorer
    sources: _Sources = {}
    for condition in conditions:
        try:
            condition.check(kinds)
        except ValueError as error:
            hint = "" if found else f"; jobs/curate.py --shards {directory.parent} makes them"
            raise ValueError(f"{directory.name}: where {error}{hint}") from None
        for name in condition.names:
            _, names = sources.setdefault(owners[name], (found.get(owners[name]), []))
            names.extend([name] if name not in names else [])
    for scorer, (used, _) in sources.items():
        if used is not None and not is_current(used, manifest):
            command = f"jobs/curate.py --shards {directory.parent}"
            raise ValueError(f"{directory}: the columns {scorer} are of other shards than these; run {command}")
    return sources


def _table(directory: Path, shard: str, sources: _Sources) -> pa.Table:
    """The columns of a shard side by side."""
    tables = [
        read_columns(directory, columns.id, shard, names)
        if columns is not None
        else read_table(index_path(directory / shard), names)
        for columns, names in sources.values()
    ]
    sizes = {len(table) for table in tables}
    if len(sizes) > 1:
        raise ValueError(f"{directory}: the columns of {shard} have different numbers of rows; run jobs/curate.py")
    return pa.table({name: table[name] for table in tables for name in table.column_names})


def _holds(table: pa.Table, clause: Clause) -> npt.NDArray[np.bool_]:
    found = pa.dataset.dataset(table).to_table(columns={"holds": clause.expression}, use_threads=False)["holds"]
    return np.asarray(found.combine_chunks().fill_null(False).to_numpy(zero_copy_only=False), bool)


def not_holding(directory: Path, manifest: Manifest, where: Sequence[str], shard: str, place: int) -> Iterator[str]:
    """The clauses that do not hold for a sample, the `place`-th of a shard, with the values that they look at."""
    conditions = [parse_condition(text) for text in where]
    sources = _sources(directory, manifest, conditions)
    row = _table(directory, shard, sources).slice(place, 1)
    for clause in (clause for condition in conditions for clause in condition.clauses):
        if not _holds(row, clause)[0]:
            values = ", ".join(f"{name} is {_told(row[name][0].as_py())}" for name in clause.names)
            yield f"{clause.text} ({values})"


def _told(value: Any) -> str:
    return "null" if value is None else repr(value)
