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

from pipelines.curate.side_tables import SideTables
from pipelines.storage.conditions import Clause, parse_condition
from pipelines.storage.shards import Manifest


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Selection:
    """Which samples of a dataset are selected: bool (num_samples,), in the order of the shards.

    `dropped` says how many each clause dropped that no clause before it had, and `dropped_by` which (num_samples,): its
    number, or -1; `columns` are the ids of the columns that were looked at, by scorer.
    """

    where: tuple[str, ...]
    selected: npt.NDArray[np.bool_]
    dropped_by: npt.NDArray[np.int16]
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
    tables, clauses = _parsed(directory, manifest, where)
    names = _names(clauses)
    dropped, parts = dict.fromkeys((clause.text for clause in clauses), 0), [np.zeros(0, np.int16)]
    for shard in manifest.shards:
        table = tables.read(shard.name, names)
        dropped_by = np.full(len(table), -1, np.int16)
        for number, clause in enumerate(clauses):
            drops = (dropped_by < 0) & ~_holds(table, clause)
            dropped[clause.text] += int(np.count_nonzero(drops))
            dropped_by[drops] = number
        parts.append(dropped_by)
    dropped_by = np.concatenate(parts)
    return Selection(
        where=tuple(" ".join(text.split()) for text in where),
        selected=dropped_by < 0,
        dropped_by=dropped_by,
        dropped=dropped,
        columns=tables.ids(names),
    )


def _parsed(directory: Path, manifest: Manifest, where: Sequence[str]) -> tuple[SideTables, list[Clause]]:
    """The clauses of conditions, once these fit the columns."""
    tables, conditions = SideTables(directory, manifest), [parse_condition(text) for text in where]
    for condition in conditions:
        tables.check(condition)
    return tables, list({clause.text: clause for condition in conditions for clause in condition.clauses}.values())


def _names(clauses: Sequence[Clause]) -> list[str]:
    """The columns that clauses look at; a clause of constants alone is asked of each key."""
    return list(dict.fromkeys(name for clause in clauses for name in clause.names)) or ["key"]


def _holds(table: pa.Table, clause: Clause) -> npt.NDArray[np.bool_]:
    found = pa.dataset.dataset(table).to_table(columns={"holds": clause.expression}, use_threads=False)["holds"]
    return np.asarray(found.combine_chunks().fill_null(False).to_numpy(zero_copy_only=False), bool)


def not_holding(directory: Path, manifest: Manifest, where: Sequence[str], shard: str, place: int) -> Iterator[str]:
    """The clauses that do not hold for a sample, the `place`-th of a shard, with the values that they look at."""
    tables, clauses = _parsed(directory, manifest, where)
    row = tables.read(shard, _names(clauses)).slice(place, 1)
    for clause in clauses:
        if not _holds(row, clause)[0]:
            values = ", ".join(f"{name} is {told(row[name][0].as_py())}" for name in clause.names)
            yield f"{clause.text} ({values})"


def told(value: Any) -> str:
    """A value as a message names it."""
    return "null" if value is None else repr(value)
