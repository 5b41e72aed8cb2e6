"""One shard of a sidecar: put together from packs of what was encoded and from what finished shards hold."""

import hashlib
import json
import tarfile
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.embed.packs import fingerprint, read_records
from pipelines.sample import Item, Sample
from pipelines.storage.files import (
    atomic_path,
    is_sound,
    read_at,
    read_metadata,
    read_rows,
    read_table,
    stamp,
    write_rows,
)
from pipelines.storage.ownership import IDENTITY_BYTES, Identities, ShardItems, ShardPlan
from pipelines.storage.precision import Loss, record_type, shape_of
from pipelines.storage.shards import STATE, Shard, TarShardWriter, hash_file, index_path
from pipelines.storage.sidecars import (
    NOT_ENCODED,
    SIDECAR_SCHEMA,
    Failure,
    output_modality,
    takes_media,
    to_npy,
)
from pipelines.views import Kind, sidecar_items

WORK = ".work"
# The key of an index's metadata that says what its shard belongs to.
STATE_KEY = "sidecar"
# Raised when what an index says changes, so that nothing old is taken for finished.
VERSION = 2

MEMORY_SCHEMA = pa.schema([("name", pa.string()), ("state", pa.string())])


@dataclass(frozen=True, slots=True, kw_only=True)
class SidecarWork:
    """A sidecar in the making, as each worker knows it: its dataset and that dataset's shards, and where it goes."""

    directory: Path
    folder: Path
    kind: str
    dtype: str
    views: tuple[Kind, ...]
    shards: tuple[Shard, ...]

    def items(self, sample: Sample) -> list[Item]:
        """The items of a sample that it holds an embedding for."""
        return sidecar_items(sample, self.views, output_modality(self.kind), takes_media(self.kind))

    def source(self, shard: int) -> Path:
        """The dataset's tar."""
        return self.directory / self.shards[shard].name

    def target(self, shard: int) -> Path:
        """The sidecar's tar."""
        return self.folder / self.shards[shard].name

    def packs(self, plan: ShardPlan, batch_size: int) -> Path:
        """The folder of what has been encoded of a shard, see `packs.py`."""
        shard = self.shards[plan.shard]
        stem = Path(shard.name).stem
        return self.folder / WORK / f"{stem}-{fingerprint(shard.sha256, self.dtype, batch_size, plan.owned)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardState:
    """What an index says about its shard: what it is of, what it holds, and what storing cost where it encoded.

    `stamps` of tar and index are as this machine sees them, and stay out of the files.
    """

    of: str
    dtype: str
    shape: list[int]
    items: int
    loss: Loss
    shard: Shard
    failed: tuple[Failure, ...] = ()
    stamps: tuple[str, str] = ("", "")
    version: int = VERSION

    def to_json(self) -> str:
        """Equal states give equal text."""
        # `owned` once meant something; without it, indexes would not be the bytes that they were.
        fields = asdict(self) | {"owned": ""}
        if not self.failed:
            del fields["failed"]
        return json.dumps(fields, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "ShardState":
        """Reads what `to_json` wrote.

        Raises:
            ValueError: it is of another version, or none at all.
        """
        fields = json.loads(text)
        if not isinstance(fields, dict) or fields.get("version") != VERSION:
            raise ValueError("the state of a sidecar's shard is of another version")
        fields.pop("owned")
        shard, loss, stamps = Shard(**fields["shard"]), Loss(**fields["loss"]), tuple(fields["stamps"])
        failed = tuple(Failure(**failure) for failure in fields.get("failed", ()))
        return cls(**fields | {"shard": shard, "loss": loss, "stamps": stamps, "failed": failed})


class Spool:
    """The distinct embeddings of a shard in the making, numbered, on local disk: memory holds a batch of them."""

    def __init__(self, file: BinaryIO, count: int, dtype: str) -> None:
        self.lengths = np.zeros(count, np.int32)
        self.reasons: dict[int, str] = {}
        self.shape: tuple[int, ...] = ()
        self._file, self._dtype, self._left = file, dtype, count

    @property
    def record(self) -> np.dtype[Any]:
        """The numpy type of one embedding."""
        return record_type(self._dtype, self.shape)

    def put(
        self, numbers: npt.NDArray[Any], stored: npt.NDArray[Any], lengths: npt.NDArray[Any], shape: tuple[int, ...]
    ) -> None:
        """Keeps embeddings (N, ...) of `shape` each under their numbers."""
        assert self.shape in ((), shape), "an encoder gives embeddings of one shape"
        self.shape = shape
        size = self.record.itemsize
        for number, embedding in zip(numbers, stored, strict=True):
            self._file.seek(int(number) * size)
            self._file.write(embedding.tobytes())
        self.lengths[numbers] = lengths
        self._left -= len(numbers)

    def fail(self, number: int, reason: str) -> None:
        """Notes that there is no embedding under a number."""
        self.reasons[number] = reason
        self.lengths[number] = NOT_ENCODED
        self._left -= 1

    def take(self, numbers: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The embeddings under these numbers (N, ...), zeros where there is none."""
        assert not self._left, "every embedding is there before the first is taken"
        size = self.record.itemsize
        places = (None if number in self.reasons else number * size for number in numbers.tolist())
        data = b"".join(bytes(size) if place is None else read_at(self._file, place, size) for place in places)
        return np.frombuffer(data, self.record)


@contextmanager
def open_spool(count: int, dtype: str) -> Iterator[Spool]:
    """A spool that is gone when it is closed, or when its process ends."""
    with tempfile.TemporaryFile() as file:
        yield Spool(cast(BinaryIO, file), count, dtype)


def write_shard(work: SidecarWork, plan: ShardPlan, spool: Spool, loss: Loss) -> ShardState:
    """Writes the tar and then its index, which says what it belongs to: with it, a shard is finished."""
    tar, rows, start, failed = work.target(plan.shard), list[dict[str, Any]](), 0, list[Failure]()
    keys = read_table(index_path(work.source(plan.shard)), ["key"])["key"].to_pylist()
    with atomic_path(tar) as temporary:
        with TarShardWriter(temporary) as writer:
            for key, count in zip(keys, plan.items.counts, strict=True):
                items = slice(start, start + int(count))
                slots, identities = plan.slots[items], plan.items.identities[items]
                data = to_npy(spool.take(slots))
                offset = writer.write(key, {"npy": data})[0] + tarfile.BLOCKSIZE
                row = {"key": key, "offset": offset, "length": len(data), "lengths": spool.lengths[slots].tolist()}
                row["sha256"] = hashlib.sha256(data).hexdigest()
                for place, slot in enumerate(slots.tolist(), start):
                    if slot in spool.reasons:
                        why = spool.reasons[slot]
                        failed.append(Failure(shard=tar.name, sample=len(rows), key=key, item=place, reason=why))
                rows.append(row | {"identities": [identity.tobytes() for identity in identities]})
                start = items.stop
        shard = Shard(name=tar.name, samples=len(keys), bytes=temporary.stat().st_size, sha256=hash_file(temporary))
    of, shape = work.shards[plan.shard].sha256, list(spool.shape)
    state = ShardState(
        of=of, dtype=work.dtype, shape=shape, items=len(plan.slots), loss=loss, shard=shard, failed=tuple(failed)
    )
    write_rows(index_path(tar), rows, SIDECAR_SCHEMA.with_metadata({STATE_KEY: state.to_json()}))
    return _on_this_machine(tar, state)


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where the distinct embeddings that a shard holds lie: at which position of which of the packs named.

    Where `packs` is -1, the owner's shard is finished and holds it.
    """

    names: list[str]
    packs: npt.NDArray[np.int32]
    positions: npt.NDArray[np.int32]

    def to_row(self) -> dict[str, Any]:
        """As plain bytes, for a row of Ray Data."""
        return {
            "names": json.dumps(self.names),
            "packs": self.packs.tobytes(),
            "positions": self.positions.tobytes(),
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Places":
        """Reads what `to_row` wrote."""
        packs, positions = (np.frombuffer(row[name], np.int32) for name in ("packs", "positions"))
        return cls(names=json.loads(row["names"]), packs=packs, positions=positions)


def assemble_shard(work: SidecarWork, plan: ShardPlan, places: Places) -> ShardState:
    """Writes a shard from packs, its own and others', and from the finished shards of other owners."""
    loss = Loss()
    with open_spool(len(plan.owners), work.dtype) as spool:
        for number, name in enumerate(places.names):
            chosen = np.flatnonzero(places.packs == number)
            cost = _copy_pack(work.folder / WORK / name, chosen, places.positions, spool)
            if plan.owners[chosen[0]] == plan.shard:
                loss = loss.worse(cost)
        finished = places.packs < 0
        for owner in np.unique(plan.owners[finished]).tolist():
            chosen = np.flatnonzero(finished & (plan.owners == owner))
            _copy_shard(work.target(owner), chosen, plan.places[chosen], spool)
        return write_shard(work, plan, spool, loss)


def read_items(work: SidecarWork, shard: int) -> ShardItems:
    """The items of a finished shard, from its index."""
    lists = read_table(index_path(work.target(shard)), ["identities"])["identities"].to_pylist()
    counts = np.array([len(identities) for identities in lists], np.int32)
    return ShardItems(counts=counts, identities=to_identities([one for identities in lists for one in identities]))


def to_identities(hashes: list[bytes]) -> Identities:
    """Hashes side by side."""
    return np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, IDENTITY_BYTES)


def written_shard(work: SidecarWork, shard: int) -> ShardState | None:
    """What a shard's index says, if it is of this dataset's shard and of this type; the tar is not looked at."""
    tar = work.target(shard)
    state = _read_state(index_path(tar)) if tar.is_file() else None
    if state is None or (state.of, state.dtype) != (work.shards[shard].sha256, work.dtype):
        return None
    return _on_this_machine(tar, state)


def finished_shards(work: SidecarWork) -> dict[int, ShardState]:
    """The shards that are there, whole, of the wanted type, and of the dataset's shards as they are now.

    What this machine remembers is not opened while sizes and times are what they were; all else is hashed.
    """
    remembered, found = recall(work.folder), {}
    for number, shard in enumerate(work.shards):
        tar, before = work.target(number), remembered.get(shard.name)
        if before and (before.of, before.dtype) == (shard.sha256, work.dtype):
            if before.stamps == (stamp(tar), stamp(index_path(tar))):
                found[number] = before
                continue
        else:
            before = None
        state = written_shard(work, number)
        if state and _is_whole(tar, state, before):
            found[number] = state
    return found


def remember(folder: Path, states: Collection[ShardState]) -> None:
    """Notes what finished shards are, and the sizes and times of their files, for the next run on this machine."""
    rows = [{"name": state.shard.name, "state": state.to_json()} for state in states]
    write_rows(folder / STATE, rows, MEMORY_SCHEMA)


def recall(folder: Path) -> dict[str, ShardState]:
    """What `remember` noted, by the name of the shard; nothing where that is lost."""
    try:
        return {row["name"]: ShardState.from_json(row["state"]) for row in read_rows(folder / STATE)}
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return {}


def _is_whole(tar: Path, state: ShardState, before: ShardState | None) -> bool:
    """Whether tar and index are as they were written: the index as remembered, or by its own checksums."""
    is_index_whole = before.shard == state.shard if before else is_sound(index_path(tar))
    return is_index_whole and hash_file(tar) == state.shard.sha256


def _read_state(index: Path) -> ShardState | None:
    try:
        return ShardState.from_json(read_metadata(index)[STATE_KEY])
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return None


def _on_this_machine(tar: Path, state: ShardState) -> ShardState:
    index = index_path(tar)
    stamps = (stamp(tar), stamp(index))
    return replace(state, shard=replace(state.shard, index_sha256=hash_file(index)), stamps=stamps)


def _copy_pack(path: Path, numbers: npt.NDArray[Any], positions: npt.NDArray[Any], spool: Spool) -> Loss:
    """Copies embeddings from a pack into the spool, byte for byte; returns what storing them cost."""
    ordered, loss = numbers[np.argsort(positions[numbers])], Loss()
    for number, record in zip(ordered, read_records(path, positions[ordered]), strict=True):
        shape = shape_of(record.dtype["embedding"])
        if record["length"][0] == NOT_ENCODED:
            spool.fail(int(number), record["reason"][0].decode(errors="ignore"))
            continue
        spool.put(number[None], record["embedding"], record["length"], shape)
        loss = loss.worse(Loss(max_error=float(record["max_error"][0]), min_cosine=float(record["min_cosine"][0])))
    return loss


def _copy_shard(tar: Path, numbers: npt.NDArray[Any], places: npt.NDArray[Any], spool: Spool) -> None:
    """Copies embeddings from a finished shard into the spool, byte for byte."""
    state = _read_state(index_path(tar))
    if state is None:
        raise ValueError(f"{index_path(tar)}: missing or damaged while its sidecar was made; run jobs/embed.py again")
    record, failed = record_type(state.dtype, state.shape), {failure.item: failure.reason for failure in state.failed}
    with tar.open("rb") as file:
        for number, place, offset, length in zip(numbers, places, *_locate(tar, places, record.itemsize), strict=True):
            if int(place) in failed:
                spool.fail(int(number), failed[int(place)])
                continue
            data = read_at(cast(BinaryIO, file), int(offset), record.itemsize)
            spool.put(number[None], np.frombuffer(data, record), length[None], tuple(state.shape))


def _locate(tar: Path, places: npt.NDArray[Any], size: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Where in a finished shard the embeddings of its items `places` begin, and their lengths."""
    table = read_table(index_path(tar), ["offset", "length", "lengths"])
    counts = table["lengths"].combine_chunks().value_lengths().to_numpy()
    ends = np.cumsum(counts)
    samples = np.searchsorted(ends, places, side="right")
    # An array ends its member, whatever the size of its header.
    behind = (ends[samples] - places).astype(np.int64) * size
    offsets = table["offset"].to_numpy()[samples] + table["length"].to_numpy()[samples] - behind
    return offsets, table["lengths"].combine_chunks().flatten().to_numpy()[places]
