"""Columns beside a dataset's shards: what scorers say of each sample, a row a sample, same keys, same order.

`<dataset>/columns/<scorer-id>/00000.parquet` belongs to `<dataset>/00000.tar`; the id is the scorer's name plus a hash
of what its values depend on. A value that does not apply is null; one that could not be computed is null too, and
`reason` says why. `failures.parquet` lists these rows, and `manifest.json` comes last, the mark of finished columns.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.storage.files import (
    is_sound,
    iterate_rows,
    read_metadata,
    read_table,
    remove_tree,
    write_many_rows,
    write_rows,
)
from pipelines.storage.new_captions import COLUMNS
from pipelines.storage.shards import MANIFEST, Manifest, Shard, hash_strings, index_path, read_manifest, write_manifest

FAILURES = "failures.parquet"
KEY, REASON = "key", "reason"
TYPES = {
    "float": pa.float64(),
    "int": pa.int64(),
    "str": pa.string(),
    "bool": pa.bool_(),
    "bytes": pa.binary(),
}
# Raised when what a file of columns says changes.
VERSION = 1
_STATE = "columns"
_ROWS_AT_ONCE = 1 << 16
_FAILURE_SCHEMA = pa.schema([("shard", pa.string()), ("sample", pa.int64()), (KEY, pa.string()), (REASON, pa.string())])


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnsManifest:
    """What made columns: the scorer, the type of each by name (of `TYPES`), and of which shards they are.

    `about` says what else there is to say of the scorer: a model, a prompt.

    Of the `rows`, so many of each column hold a value, and so many have a reason why one could not be computed.
    """

    scorer: str
    id: str
    columns: dict[str, str]
    rows: int
    values: dict[str, int]
    failed: int
    of_shards: list[str]
    about: dict[str, str] = field(default_factory=dict)
    version: int = VERSION

    @classmethod
    def read(cls, folder: Path) -> "ColumnsManifest":
        """Reads the manifest of finished columns.

        Raises:
            ValueError: it is damaged, or of another version of this program.
        """
        fields = read_manifest(folder)
        try:
            if fields["version"] == VERSION:
                return cls(**fields)
        except (TypeError, KeyError):
            pass
        raise ValueError(f"{folder / MANIFEST}: of another version; run jobs/curate.py again")


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnsWork:
    """A scorer's columns of a dataset, as each worker knows them.

    `version` says what the values depend on beside the sample; `context`, what else of the data, if anything.
    """

    directory: Path
    shards: tuple[Shard, ...]
    scorer: str
    version: str
    columns: Mapping[str, str]
    context: str = ""
    about: Mapping[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The scorer's name and a hash: equal ids mean equally computed values."""
        facts = json.dumps([VERSION, self.version, dict(self.columns)], sort_keys=True)
        return f"{self.scorer}-{hashlib.sha256(facts.encode()).hexdigest()[:12]}"

    @property
    def folder(self) -> Path:
        """Where the columns lie."""
        return self.directory / COLUMNS / self.id

    def source(self, shard: int) -> Path:
        """The dataset's tar."""
        return self.directory / self.shards[shard].name

    def target(self, shard: int) -> Path:
        """The columns of a shard."""
        return index_path(self.folder / self.shards[shard].name)

    def of(self, shard: int) -> str:
        """What the columns of a shard are of."""
        sha256 = self.shards[shard].sha256
        return hash_strings([sha256, self.context]) if self.context else sha256

    @property
    def schema(self) -> pa.Schema:
        """The columns of a file, without what it is of."""
        own = [(name, TYPES[kind]) for name, kind in self.columns.items()]
        return pa.schema([(KEY, pa.string()), *own, (REASON, pa.string())])


def write_columns(work: ColumnsWork, shard: int, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes what a scorer says of a shard's samples, in their order: values by column, and `reason` where it failed.

    Raises:
        ValueError: the shard's index has other samples, or a value is not of its column's type.
    """
    keys = read_table(index_path(work.source(shard)), [KEY])[KEY].to_pylist()
    if len(keys) != len(rows):
        raise ValueError(f"{work.source(shard)}: {len(rows)} samples, its index has {len(keys)}; verify the shards")
    told = [{KEY: key, **row} for key, row in zip(keys, rows, strict=True)]
    state = json.dumps({"of": work.of(shard), "id": work.id, "rows": len(rows)}, sort_keys=True)
    try:
        write_rows(work.target(shard), told, work.schema.with_metadata({_STATE: state}))
    except (pa.ArrowTypeError, pa.ArrowInvalid) as error:
        types = ", ".join(f"{name}: {kind}" for name, kind in work.columns.items())
        told_by = f"{work.scorer}: a value of {work.source(shard)} is of another type than its column ({types})"
        raise ValueError(f"{told_by}: {' '.join(str(error).split())}") from None


def begin(work: ColumnsWork) -> list[int]:
    """The shards whose columns are missing, damaged, or of another shard; with any, the columns are not finished."""
    todo = [number for number in range(len(work.shards)) if not _is_finished(work, number)]
    if todo:
        (work.folder / MANIFEST).unlink(missing_ok=True)
    return todo


def _is_finished(work: ColumnsWork, shard: int) -> bool:
    path = work.target(shard)
    try:
        state = json.loads(read_metadata(path)[_STATE])
        is_own = (state["of"], state["id"]) == (work.of(shard), work.id)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return False
    return is_own and is_sound(path)


def finish(work: ColumnsWork) -> ColumnsManifest:
    """Writes the list of failures and the manifest, and removes what earlier versions of the scorer left."""
    rows, failed, values = 0, 0, dict.fromkeys(work.columns, 0)
    for number in range(len(work.shards)):
        table = read_table(work.target(number), [*work.columns, REASON])
        rows += len(table)
        failed += len(table) - table[REASON].null_count
        for name in values:
            values[name] += len(table) - table[name].null_count
    manifest = ColumnsManifest(
        scorer=work.scorer,
        id=work.id,
        columns=dict(work.columns),
        rows=rows,
        values=values,
        failed=failed,
        of_shards=[shard.sha256 for shard in work.shards],
        about=dict(work.about),
    )
    if failed:
        write_many_rows(work.folder / FAILURES, failures(work), _FAILURE_SCHEMA, _ROWS_AT_ONCE)
    else:
        (work.folder / FAILURES).unlink(missing_ok=True)
    _remove_others(work)
    # So that manifests of scorers of which nothing else is said are the bytes that they were.
    write_manifest(work.folder, {name: value for name, value in asdict(manifest).items() if name != "about" or value})
    return manifest


def failures(work: ColumnsWork) -> Iterator[dict[str, Any]]:
    """The rows with a reason: shard, sample, key and reason of each."""
    for number, shard in enumerate(work.shards):
        for place, row in enumerate(iterate_rows(work.target(number), [KEY, REASON])):
            if row[REASON]:
                yield {"shard": shard.name, "sample": place, KEY: row[KEY], REASON: row[REASON]}


def _remove_others(work: ColumnsWork) -> None:
    kept = {work.target(number).name for number in range(len(work.shards))} | {FAILURES}
    for path in work.folder.iterdir():
        if path.name not in kept:
            path.unlink()
    for other in work.folder.parent.iterdir():
        if other.name != work.id and other.name.rpartition("-")[0] == work.scorer:
            remove_tree(other)


def find_columns(directory: Path) -> dict[str, ColumnsManifest]:
    """The finished columns beside a dataset, by scorer."""
    folders = sorted(path.parent for path in directory.glob(f"{COLUMNS}/*/{MANIFEST}"))
    manifests = map(ColumnsManifest.read, folders)
    return {manifest.scorer: manifest for manifest in manifests}


def is_current(manifest: ColumnsManifest, dataset: Manifest) -> bool:
    """Whether columns are of a dataset's shards as they are now."""
    return manifest.of_shards == [shard.sha256 for shard in dataset.shards]


def read_columns(directory: Path, scorer_id: str, shard: str, names: Sequence[str]) -> pa.Table:
    """Some columns of a shard, by the name of its tar."""
    return read_table(index_path(directory / COLUMNS / scorer_id / shard), list(names))
