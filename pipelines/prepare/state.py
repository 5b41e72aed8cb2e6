"""What this machine remembers of a finished dataset: from what each chunk was made, and which file is which.

With it a rerun opens nothing: it compares stamps (sizes and times). Where a stamp has changed, the content decides.
Losing it costs one run that reads all media again; the shards stay as they are.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.prepare.ledger import by_reason
from pipelines.prepare.staging import Chunk, Source, Stamps, source_stamp
from pipelines.sample import Reject
from pipelines.storage.files import iterate_rows, read_metadata, stamp, write_many_rows
from pipelines.storage.shards import MANIFEST, REJECTS, STATE, Manifest, Shard, hash_file, index_path, is_whole

# What an outcome counts beside items where a medium has several captions: all, and the most of one sample.
CAPTIONS, MOST = "captions", "most_captions"
_DETAILS = "state"
_CHUNKS_AT_ONCE = 16
_SCHEMA = pa.schema(
    [
        ("fingerprint", pa.string()),
        ("rows", pa.int64()),
        ("accepted", pa.int64()),
        ("result", pa.string()),
        ("rejects", pa.string()),
        ("items", pa.string()),
        ("media", pa.list_(pa.string())),
        ("stamps", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PartSummary:
    """What became of a chunk, in numbers: accepted rows, a hash of their content, how many rows were rejected by the
    category of the reason, and the items each sidecar will hold.
    """

    fingerprint: str
    accepted: int
    result: str
    rejected: dict[str, int]
    items: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a chunk, with the rows that were rejected."""

    fingerprint: str
    accepted: int
    result: str
    rejects: list[Reject]
    items: dict[str, int]

    @property
    def summary(self) -> PartSummary:
        """The same in numbers."""
        return PartSummary(
            fingerprint=self.fingerprint,
            accepted=self.accepted,
            result=self.result,
            rejected=by_reason(self.rejects),
            items=self.items,
        )

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> "Outcome":
        """Makes one from what `asdict` gave."""
        return cls(**{**fields, "rejects": [Reject(**reject) for reject in fields["rejects"]]})


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredShard:
    """A shard as it was written: its entry in the manifest, a hash of what it was put together from, and its stamps."""

    shard: Shard
    recipe: str
    tar: str
    index: str

    @classmethod
    def at(cls, directory: Path, shard: Shard, recipe: str) -> "StoredShard":
        """The shard as it lies in a dataset's folder now."""
        tar = directory / shard.name
        return cls(shard=shard, recipe=recipe, tar=stamp(tar), index=stamp(index_path(tar)))


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The memory of one dataset, but for its rejects and the names of its media: these are in its file alone."""

    settings: str
    source: str
    outcomes: list[PartSummary]
    shards: dict[str, StoredShard]
    rejects: str

    def write(self, directory: Path, chunks: Iterable[tuple[Chunk, list[Reject], list[str]]]) -> None:
        """Writes the memory beside the shards, with each chunk's rejects and files of media as they come."""
        rows = (
            {
                "fingerprint": outcome.fingerprint,
                "rows": chunk.rows,
                "accepted": outcome.accepted,
                "result": outcome.result,
                "rejects": json.dumps([asdict(reject) for reject in rejects]),
                "items": json.dumps(outcome.items),
                "media": media,
                "stamps": chunk.stamps,
            }
            for outcome, (chunk, rejects, media) in zip(self.outcomes, chunks, strict=True)
        )
        self._write(directory, rows)

    def _write(self, directory: Path, rows: Iterable[dict[str, Any]]) -> None:
        shards = {name: asdict(stored) for name, stored in self.shards.items()}
        details = {"settings": self.settings, "source": self.source, "shards": shards, "rejects": self.rejects}
        schema = _SCHEMA.with_metadata({_DETAILS: json.dumps(details)})
        write_many_rows(directory / STATE, rows, schema, _CHUNKS_AT_ONCE)

    @classmethod
    def read(cls, directory: Path) -> "State | None":
        """Reads the memory; None where there is none, or it is damaged."""
        path = directory / STATE
        try:
            details = json.loads(read_metadata(path)[_DETAILS])
            outcomes = [_summary(row) for row in _rows(directory, *(name for name in _SCHEMA.names if name != "media"))]
        except (OSError, ValueError, KeyError, pa.ArrowException):
            return None
        shards = {
            name: StoredShard(**{**stored, "shard": Shard(**stored["shard"])})
            for name, stored in details.pop("shards").items()
        }
        return cls(**details, outcomes=outcomes, shards=shards)

    def restamp(self, directory: Path) -> None:
        """Writes the same memory with the stamps that the shards have now."""
        shards = {name: StoredShard.at(directory, stored.shard, stored.recipe) for name, stored in self.shards.items()}
        replace(self, shards=shards)._write(directory, _rows(directory))

    def holds(self, directory: Path, name: str, recipe: str) -> bool:
        """Whether a shard is there, whole, and made by this recipe."""
        stored = self.shards.get(name)
        if stored is None or stored.recipe != recipe:
            return False
        tar = directory / name
        if (stamp(tar), stamp(index_path(tar))) == (stored.tar, stored.index):
            return True
        return is_whole(tar, stored.shard)


def stored_rejects(directory: Path) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """The rejects that are remembered, by the fingerprints of their chunks; those without any are left out."""
    for row in _rows(directory, "fingerprint", "rejects"):
        if rejects := json.loads(row["rejects"]):
            yield row["fingerprint"], rejects


def _rows(directory: Path, *columns: str) -> Iterator[dict[str, Any]]:
    return iterate_rows(directory / STATE, list(columns) or None, _CHUNKS_AT_ONCE)


def _summary(row: dict[str, Any]) -> PartSummary:
    return PartSummary(
        fingerprint=row["fingerprint"],
        accepted=row["accepted"],
        result=row["result"],
        rejected=by_reason(Reject(**reject) for reject in json.loads(row["rejects"])),
        items=json.loads(row["items"]),
    )


def finished(source: Source) -> Manifest | None:
    """The manifest of a dataset that is as its source is now; None if anything is to be done. Opens no medium."""
    state = State.read(source.directory)
    if state is None or state.settings != source.settings:
        return None
    try:
        manifest = Manifest.read(source.directory)
    except (FileNotFoundError, ValueError):
        return None
    if state.source != source_stamp(source.path) or not all(_shards_hold(source.directory, manifest, state)):
        return None
    rejects = source.directory / REJECTS
    if stamp(rejects) != state.rejects and not (rejects.is_file() and hash_file(rejects) == manifest.rejects_sha256):
        return None
    stamps = Stamps(root=source.media)
    try:
        chunks = _rows(source.directory, "media", "stamps")
        return manifest if all(stamps.of(row["media"]) == row["stamps"] for row in chunks) else None
    except pa.ArrowException:  # A damaged memory is none.
        return None


def _shards_hold(directory: Path, manifest: Manifest, state: State) -> Iterator[bool]:
    for shard in manifest.shards:
        stored = state.shards.get(shard.name)
        yield stored is not None and stored.shard == shard and state.holds(directory, shard.name, stored.recipe)
    expected = {MANIFEST, *(shard.name for shard in manifest.shards)}
    yield all(path.name in expected for path in directory.glob("[0-9]*.tar"))
