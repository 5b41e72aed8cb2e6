"""One shard of a sidecar: written from a spool of embeddings, or put together from what other shards hold.

A shard that shares items with earlier ones first keeps what it encodes itself in a pack, `.work/00000.pack`: the
embeddings one after another, with their lengths in an index beside. Packs go when the sidecar is finished.
"""

import hashlib
import json
import shutil
import tarfile
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.files import atomic_path, is_sound, read_at, read_metadata, read_rows, read_table, stamp, write_rows
from pipelines.ownership import IDENTITY_BYTES, Identities, ShardItems, ShardPlan
from pipelines.sample import Item, Sample
from pipelines.shards import STATE, Shard, TarShardWriter, hash_file, index_path
from pipelines.sidecars import SIDECAR_SCHEMA, output_modality, takes_media, to_npy
from pipelines.storage import Loss, record_type
from pipelines.views import Kind, sidecar_items

WORK = ".work"
# The key of an index's metadata that says what its shard belongs to.
STATE_KEY = "sidecar"
# Raised when what an index says changes, so that nothing old is taken for finished.
VERSION = 2

PACK_SCHEMA = pa.schema([("length", pa.int32())])
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

    def pack(self, shard: int) -> Path:
        """Where a shard keeps what it encodes while others are not ready."""
        return (self.folder / WORK / self.shards[shard].name).with_suffix(".pack")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardState:
    """What an index says about its shard: what it is of, what it holds, and what storing cost where it encoded.

    In a pack, `owned` is a hash of which items it is of, and `shard` is None; `stamps` of tar and index are as this
    machine sees them, and stay out of the files.
    """

    of: str
    dtype: str
    shape: list[int]
    items: int
    loss: Loss
    shard: Shard | None = None
    owned: str = ""
    stamps: tuple[str, str] = ("", "")
    version: int = VERSION

    def to_json(self) -> str:
        """Equal states give equal text."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "ShardState":
        """Reads what `to_json` wrote.

        Raises:
            ValueError: it is of another version, or none at all.
        """
        fields = json.loads(text)
        if not isinstance(fields, dict) or fields.get("version") != VERSION:
            raise ValueError("the state of a sidecar's shard is of another version")
        shard = Shard(**fields["shard"]) if fields["shard"] else None
        return cls(**fields | {"shard": shard, "loss": Loss(**fields["loss"]), "stamps": tuple(fields["stamps"])})


class Spool:
    """The distinct embeddings of a shard in the making, numbered, on local disk: memory holds a batch of them."""

    def __init__(self, file: BinaryIO, count: int, dtype: str) -> None:
        self.lengths = np.zeros(count, np.int32)
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

    def take(self, numbers: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The embeddings under these numbers (N, ...)."""
        assert not self._left, "every embedding is there before the first is taken"
        size = self.record.itemsize
        data = b"".join(read_at(self._file, int(number) * size, size) for number in numbers)
        return np.frombuffer(data, self.record)

    def copy_to(self, path: Path) -> None:
        """Copies all of it into a file."""
        assert not self._left, "every embedding is there before they are copied"
        self._file.seek(0)
        with path.open("wb") as target:
            shutil.copyfileobj(self._file, target)


@contextmanager
def open_spool(count: int, dtype: str) -> Iterator[Spool]:
    """A spool that is gone when it is closed, or when its process ends."""
    with tempfile.TemporaryFile() as file:
        yield Spool(cast(BinaryIO, file), count, dtype)


def write_shard(work: SidecarWork, plan: ShardPlan, spool: Spool, loss: Loss) -> ShardState:
    """Writes the tar and then its index, which says what it belongs to: with it, a shard is finished."""
    tar, rows, start = work.target(plan.shard), list[dict[str, Any]](), 0
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
                rows.append(row | {"identities": [identity.tobytes() for identity in identities]})
                start = items.stop
        shard = Shard(name=tar.name, samples=len(keys), bytes=temporary.stat().st_size, sha256=hash_file(temporary))
    of, shape = work.shards[plan.shard].sha256, list(spool.shape)
    state = ShardState(of=of, dtype=work.dtype, shape=shape, items=len(plan.slots), loss=loss, shard=shard)
    write_rows(index_path(tar), rows, SIDECAR_SCHEMA.with_metadata({STATE_KEY: state.to_json()}))
    return _on_this_machine(tar, state)


def write_pack(work: SidecarWork, plan: ShardPlan, spool: Spool, loss: Loss) -> ShardState:
    """Writes what a shard encodes itself, in its order, and then the index with which it is whole."""
    pack = work.pack(plan.shard)
    with atomic_path(pack) as temporary:
        spool.copy_to(temporary)
    of, count = work.shards[plan.shard].sha256, len(plan.owned)
    state = ShardState(
        of=of, dtype=work.dtype, shape=list(spool.shape), items=count, loss=loss, owned=_hash_owned(plan)
    )
    rows = [{"length": length} for length in spool.lengths.tolist()]
    write_rows(index_path(pack), rows, PACK_SCHEMA.with_metadata({STATE_KEY: state.to_json()}))
    return state


def assemble_shard(work: SidecarWork, plan: ShardPlan, packed: Collection[int]) -> ShardState:
    """Writes a shard from what its owners hold; `packed` names those whose embeddings are in packs."""
    loss = Loss()
    with open_spool(len(plan.owners), work.dtype) as spool:
        for owner in np.unique(plan.owners).tolist():
            numbers = np.flatnonzero(plan.owners == owner)
            state = _copy_records(work, plan, owner, owner in packed, numbers, spool)
            if owner == plan.shard:
                loss = state.loss
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
    if state is None or state.shard is None or (state.of, state.dtype) != (work.shards[shard].sha256, work.dtype):
        return None
    return _on_this_machine(tar, state)


def written_pack(work: SidecarWork, plan: ShardPlan) -> ShardState | None:
    """What a pack's index says, if the pack is whole and holds what this shard is to encode."""
    pack = work.pack(plan.shard)
    state = _read_state(index_path(pack)) if pack.is_file() else None
    wanted = (work.shards[plan.shard].sha256, work.dtype, _hash_owned(plan))
    if state is None or (state.of, state.dtype, state.owned) != wanted:
        return None
    whole = pack.stat().st_size == state.items * record_type(state.dtype, state.shape).itemsize
    return state if whole else None


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
    rows = [{"name": state.shard.name, "state": state.to_json()} for state in states if state.shard]
    write_rows(folder / STATE, rows, MEMORY_SCHEMA)


def recall(folder: Path) -> dict[str, ShardState]:
    """What `remember` noted, by the name of the shard; nothing where that is lost."""
    try:
        return {row["name"]: ShardState.from_json(row["state"]) for row in read_rows(folder / STATE)}
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return {}


def _is_whole(tar: Path, state: ShardState, before: ShardState | None) -> bool:
    """Whether tar and index are as they were written: the index as remembered, or by its own checksums."""
    assert state.shard is not None
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
    assert state.shard is not None
    return replace(state, shard=replace(state.shard, index_sha256=hash_file(index)), stamps=stamps)


def _copy_records(
    work: SidecarWork, plan: ShardPlan, owner: int, packed: bool, numbers: npt.NDArray[Any], spool: Spool
) -> ShardState:
    """Copies the embeddings `numbers` of a plan from their owner into the spool, byte for byte."""
    path = work.pack(owner) if packed else work.target(owner)
    state = _read_state(index_path(path))
    if state is None:
        raise ValueError(f"{index_path(path)}: missing or damaged while its sidecar was made; run jobs/embed.py again")
    record = record_type(state.dtype, state.shape)
    if packed:
        chosen = plan.ranks[numbers]
        offsets = chosen.astype(np.int64) * record.itemsize
        lengths = read_table(index_path(path))["length"].to_numpy()[chosen]
    else:
        offsets, lengths = _locate(path, plan.places[numbers], record.itemsize)
    with path.open("rb") as file:
        for number, offset, length in zip(numbers, offsets, lengths, strict=True):
            data = read_at(cast(BinaryIO, file), int(offset), record.itemsize)
            spool.put(number[None], np.frombuffer(data, record), length[None], tuple(state.shape))
    return state


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


def _hash_owned(plan: ShardPlan) -> str:
    return hashlib.sha256(plan.owned.astype("<i4").tobytes()).hexdigest()
