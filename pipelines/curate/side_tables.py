"""All that is known of a dataset's samples by name: columns beside the shards, and those of the shards' own indexes."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from pipelines.curate.columns import ColumnsManifest, find_columns, is_current, read_columns
from pipelines.storage.conditions import RowCondition
from pipelines.storage.expressions import FLAG, NUMBER, TEXT
from pipelines.storage.files import read_table
from pipelines.storage.shards import Manifest, index_path

KINDS = {"float": NUMBER, "int": NUMBER, "str": TEXT, "bool": FLAG}
# What the shards' own indexes say of each sample.
INDEXED = ("key", "source", "caption")


class SideTables:
    """The columns of a dataset that a condition can look at: `kinds` by name, `scorers` of those beside the shards."""

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self.directory, self.manifest = directory, manifest
        self.found: Mapping[str, ColumnsManifest] = find_columns(directory)
        self.kinds, self.scorers = dict.fromkeys(INDEXED, TEXT), dict[str, str]()
        for scorer, columns in self.found.items():
            for name, kind in columns.columns.items():
                if kind in KINDS:
                    self.kinds[name], self.scorers[name] = KINDS[kind], scorer

    def check(self, condition: RowCondition) -> None:
        """Checks that a condition fits the columns.

        Raises:
            ValueError: it names none that exists, does not fit its type, or it is of other shards; one line.
        """
        try:
            condition.check(self.kinds)
        except ValueError as error:
            raise ValueError(f"{self.directory.name}: where {error}{self.hint}") from None
        self.check_current(condition.names)

    @property
    def hint(self) -> str:
        """What makes columns, where there are none yet."""
        return "" if self.found else f"; jobs/curate.py --shards {self.directory.parent} makes them"

    def check_current(self, names: Iterable[str]) -> None:
        """Checks that columns are of the dataset's shards as they are now.

        Raises:
            ValueError: they are not; one line.
        """
        for scorer in self._named(names):
            if not is_current(self.found[scorer], self.manifest):
                command = f"jobs/curate.py --shards {self.directory.parent}"
                raise ValueError(
                    f"{self.directory}: the columns {scorer} are of other shards than these; run {command}"
                )

    def ids(self, names: Iterable[str]) -> dict[str, str]:
        """The ids of the columns that hold these names, by scorer."""
        return {scorer: self.found[scorer].id for scorer in sorted(self._named(names))}

    def read(self, shard: str, names: Sequence[str]) -> pa.Table:
        """Columns of a shard, by the name of its tar, side by side.

        Raises:
            ValueError: they have different numbers of rows.
        """
        tables = [
            read_columns(self.directory, self.found[scorer].id, shard, own)
            for scorer, own in self._named(names).items()
        ]
        if indexed := [name for name in dict.fromkeys(names) if name not in self.scorers]:
            tables.append(read_table(index_path(self.directory / shard), indexed))
        if len({len(table) for table in tables}) > 1:
            raise ValueError(
                f"{self.directory}: the columns of {shard} have different numbers of rows; run jobs/curate.py"
            )
        return pa.table({name: table[name] for table in tables for name in table.column_names})

    def _named(self, names: Iterable[str]) -> dict[str, list[str]]:
        """Those beside the shards, by scorer."""
        named: dict[str, list[str]] = {}
        for name in dict.fromkeys(names):
            if name in self.scorers:
                named.setdefault(self.scorers[name], []).append(name)
        return named
