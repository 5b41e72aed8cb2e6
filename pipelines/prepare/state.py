"""What this machine remembers of a finished dataset: from what each chunk was made, and which file is which.

With it a rerun opens nothing: it compares stamps (sizes and times). Where a stamp has changed, the content decides.
Losing it costs one run that reads all media again; the shards stay as they are.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.prepare.staging import Source, Stamps, source_stamp
from pipelines.sample import Reject
from pipelines.storage.files import read_metadata, read_rows, stamp, write_rows
from pipelines.storage.shards import MANIFEST, REJECTS, STATE, Manifest, Shard, hash_file, index_path, is_whole

# What an outcome counts beside items where a medium has several captions: all, and the most of one sample.
CAPTIONS, MOST = "captions", "most_captions"
_DETAILS = "state"
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
class Outcome:
    """What became of a chunk: accepted rows, a hash of their content, rejects, and the items each sidecar will hold."""

    fingerprint: str
    accepted: int
    result: str
    rejects: list[Reject]
    items: dict[str, int]

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
    """The memory of one dataset; `media` and `stamps` are by chunk, as in `staging.Chunk`."""

    settings: str
    source: str
    outcomes: list[Outcome]
    rows: list[int]
    media: list[list[str]]
    stamps: list[str]
    shards: dict[str, StoredShard]
    rejects: str

    def write(self, directory: Path) -> None:
        """Writes the memory beside the shards."""
        rows = [
            {
                "fingerprint": outcome.fingerprint,
                "rows": count,
                "accepted": outcome.accepted,
                "result": outcome.result,
                "rejects": json.dumps([asdict(reject) for reject in outcome.rejects]),
                "items": json.dumps(outcome.items),
                "media": media,
                "stamps": stamps,
            }
            for outcome, count, media, stamps in zip(self.outcomes, self.rows, self.media, self.stamps, strict=True)
        ]
        shards = {name: asdict(stored) for name, stored in self.shards.items()}
        details = {"settings": self.settings, "source": self.source, "shards": shards, "rejects": self.rejects}
        write_rows(directory / STATE, rows, _SCHEMA.with_metadata({_DETAILS: json.dumps(details)}))

    @classmethod
    def read(cls, directory: Path) -> "State | None":
        """Reads the memory; None where there is none, or it is damaged."""
        path = directory / STATE
        try:
            details, rows = json.loads(read_metadata(path)[_DETAILS]), read_rows(path)
        except (OSError, ValueError, KeyError, pa.ArrowException):
            return None
        outcomes = [
            Outcome(
                fingerprint=row["fingerprint"],
                accepted=row["accepted"],
                result=row["result"],
                rejects=[Reject(**reject) for reject in json.loads(row["rejects"])],
                items=json.loads(row["items"]),
            )
            for row in rows
        ]
        shards = {
            name: StoredShard(**{**stored, "shard": Shard(**stored["shard"])})
            for name, stored in details.pop("shards").items()
        }
        return cls(
            **details,
            outcomes=outcomes,
            rows=[row["rows"] for row in rows],
            media=[row["media"] for row in rows],
            stamps=[row["stamps"] for row in rows],
            shards=shards,
        )

    def restamped(self, directory: Path) -> "State":
        """The same memory with the stamps that the shards have now."""
        shards = {name: StoredShard.at(directory, stored.shard, stored.recipe) for name, stored in self.shards.items()}
        return replace(self, shards=shards)

    def holds(self, directory: Path, name: str, recipe: str) -> bool:
        """Whether a shard is there, whole, and made by this recipe."""
        stored = self.shards.get(name)
        if stored is None or stored.recipe != recipe:
            return False
        tar = directory / name
        if (stamp(tar), stamp(index_path(tar))) == (stored.tar, stored.index):
            return True
        return is_whole(tar, stored.shard)


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
    if any(stamps.of(media) != before for media, before in zip(state.media, state.stamps, strict=True)):
        return None
    return manifest


def _shards_hold(directory: Path, manifest: Manifest, state: State) -> Iterator[bool]:
    for shard in manifest.shards:
        stored = state.shards.get(shard.name)
        yield stored is not None and stored.shard == shard and state.holds(directory, shard.name, stored.recipe)
    expected = {MANIFEST, *(shard.name for shard in manifest.shards)}
    yield all(path.name in expected for path in directory.glob("[0-9]*.tar"))
