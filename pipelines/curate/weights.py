"""Weights of samples, by a column of numbers: how often each comes in an epoch. Nothing is rewritten."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.curate.selection import Selection, told
from pipelines.curate.side_tables import SideTables
from pipelines.storage.expressions import NUMBER
from pipelines.storage.shards import Manifest

# Beyond it, one sample would crowd out all others.
MOST_WEIGHT = 1000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SampleWeights:
    """How often each sample of a dataset comes in an epoch: float64 (num_samples,), 0 of those not selected.

    `columns` are the ids of the columns that were read, by scorer.
    """

    column: str
    values: npt.NDArray[np.float64]
    columns: dict[str, str]

    def describe(self, name: str) -> str:
        """The weights of a view in one line."""
        taken = self.values[self.values > 0]
        spread = f" of {taken.min():g} to {taken.max():g}" if len(taken) else ""
        what = f"{len(taken)} samples{spread} by {self.column}, {taken.sum():g} in all"
        return f"{name}: {what}; {len(self.values) - len(taken)} never come"

    @property
    def identity(self) -> str:
        """A hash of all weights."""
        return hashlib.sha256(self.values.astype("<f8").tobytes()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The account for the files of a run."""
        taken = int(np.count_nonzero(self.values))
        return {"column": self.column, "columns": self.columns, "taken": taken, "identity": self.identity}


def weigh(directory: Path, manifest: Manifest, column: str, selection: Selection | None = None) -> SampleWeights:
    """The weights of a dataset's samples by a column; those that are not selected may have any, or none.

    Raises:
        ValueError: there is no such column, or it holds no numbers; or it is null, negative or more than `MOST_WEIGHT`
            for a sample; or it is of other shards than these. One line.
    """
    tables, what = SideTables(directory, manifest), f"{directory.name}: weight {column}"
    if column not in tables.kinds:
        numbers = sorted(name for name, kind in tables.kinds.items() if kind == NUMBER)
        there = f"there are {', '.join(numbers)}" if numbers else "there are none of numbers"
        raise ValueError(f"{what}: no such column; {there}{tables.hint}")
    if tables.kinds[column] != NUMBER:
        raise ValueError(f"{what}: the column is {tables.kinds[column]}; a weight must be {NUMBER}")
    tables.check_current([column])
    parts, start = [np.zeros(0)], 0
    for shard in manifest.shards:
        table = tables.read(shard.name, ["key", column])
        taken = slice(start, start := start + len(table))
        parts.append(_weights(table, column, None if selection is None else selection.selected[taken], what))
    return SampleWeights(column=column, values=np.concatenate(parts), columns=tables.ids([column]))


def _weights(
    table: pa.Table, column: str, selected: npt.NDArray[np.bool_] | None, what: str
) -> npt.NDArray[np.float64]:
    values = table[column].cast(pa.float64()).fill_null(np.nan).to_numpy().copy()
    if selected is not None:
        values[~selected] = 0
    wrong = np.flatnonzero(~((values >= 0) & (values <= MOST_WEIGHT)))
    if len(wrong):
        key, value = (table[name][int(wrong[0])].as_py() for name in ("key", column))
        raise ValueError(
            f"{what}: {told(value)} of {key}; a weight must be 0 to {MOST_WEIGHT}; leave such samples out by where"
        )
    return values
