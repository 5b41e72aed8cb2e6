"""One shard of a sidecar: put together from files that hold embeddings, be they packs or finished shards."""

import hashlib
import json
import tarfile
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.embed.packs import read_records
from pipelines.embed.plan import Identities, ShardItems, Sources
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
from pipelines.storage.new_captions import NewCaptions
from pipelines.storage.precision import Loss, record_type, shape_of
from pipelines.storage.shards import STATE, Shard, TarShardWriter, hash_file, index_path
from pipelines.storage.sidecars import (
    IDENTITY_BYTES,
    NOT_ENCODED,
    SIDECAR_SCHEMA,
    Failure,
    input_modality,
    output_modality,
    takes_media,
    to_npy,
    without_zeros,
)
from pipelines.views import Kind, sidecar_items

WORK = ".work"
# The key of an index's metadata that says what its shard belongs to.
STATE_KEY = "sidecar"
# Raised when what an index says changes, so that nothing old is taken for finished.
VERSION = 2

# What storing each embedding cost, see `precision.Loss`.
LOSSES = ("max_error", "min_cosine")
# Of a sample's array, without its header: positions that are zeros are not stored.
ARRAY_BYTES = pa.field("array_bytes", pa.int64())
INDEX_SCHEMA = pa.schema([*SIDECAR_SCHEMA, ARRAY_BYTES, *(pa.field(name, pa.list_(pa.float64())) for name in LOSSES)])
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
    captions: NewCaptions | None = None

    @property
    def encoder_id(self) -> str:
        """The encoder's id; the folder's name says of which captions, too, where these are new."""
        return self.folder.name.removesuffix(f"-{self.captions.choice}") if self.captions else self.folder.name

    def of(self, shard: int) -> str:
        """What the sidecar of a shard is of."""
        sha256 = self.shards[shard].sha256
        return sha256 if self.captions is None else self.captions.of(shard, sha256)

    def worded(self, shard: int, place: int, sample: Sample) -> Sample:
        """A sample of a shard with the captions that are embedded."""
        return sample if self.captions is None else self.captions.worded(shard, place, sample)

    def items(self, sample: Sample) -> list[Item]:
        """The items of a sample that it holds an embedding for."""
        found = sidecar_items(sample, self.views, output_modality(self.kind), takes_media(self.kind))
        modality = input_modality(self.kind)
        return found if modality is None else [item for item in found if item.modality is modality]

    def source(self, shard: int) -> Path:
        """The dataset's tar."""
        return self.directory / self.shards[shard].name

    def target(self, shard: int) -> Path:
        """The sidecar's tar."""
        return self.folder / self.shards[shard].name

    def pack(self, name: str) -> Path:
        """Where a unit is kept that is read from this dataset, see `packs.py`."""
        return self.folder / WORK / f"{name}.npy"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardState:
    """What an index says about its shard: what it is of, what it holds, and what storing cost.

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
        self.losses = np.tile([0.0, 1.0], (count, 1))  # the largest error and the lowest cosine of each
        self.reasons: dict[int, str] = {}
        self.shape: tuple[int, ...] = ()
        self._file, self._dtype, self._left = file, dtype, count

    @property
    def record(self) -> np.dtype[Any]:
        """The numpy type of one embedding."""
        return record_type(self._dtype, self.shape)

    def put(self, number: int, stored: bytes, length: int, losses: Sequence[float], shape: tuple[int, ...]) -> None:
        """Keeps one embedding of `shape` under its number."""
        assert self.shape in ((), shape), "an encoder gives embeddings of one shape"
        self.shape = shape
        self._file.seek(number * self.record.itemsize)
        self._file.write(stored)
        self.lengths[number], self.losses[number] = length, losses
        self._left -= 1

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

    @property
    def loss(self) -> Loss:
        """The worst that storing any of them cost."""
        errors, cosines = self.losses.T
        return Loss(max_error=float(errors.max(initial=0.0)), min_cosine=float(cosines.min(initial=1.0)))


@contextmanager
def open_spool(count: int, dtype: str) -> Iterator[Spool]:
    """A spool that is gone when it is closed, or when its process ends."""
    with tempfile.TemporaryFile() as file:
        yield Spool(cast(BinaryIO, file), count, dtype)


def write_shard(
    work: SidecarWork, shard: int, items: ShardItems, slots: npt.NDArray[np.int32], spool: Spool
) -> ShardState:
    """Writes the tar and then its index, which says what it belongs to: with it, a shard is finished.

    `slots` (num_items,) gives each item the number of its embedding in the spool.
    """
    tar, rows, start, failed = work.target(shard), list[dict[str, Any]](), 0, list[Failure]()
    keys = read_table(index_path(work.source(shard)), ["key"])["key"].to_pylist()
    with atomic_path(tar) as temporary:
        with TarShardWriter(temporary) as writer:
            for key, count in zip(keys, items.counts, strict=True):
                own, start = slice(start, start + int(count)), start + int(count)
                array = spool.take(slots[own])
                array = array if takes_media(work.kind) else without_zeros(array)
                data = to_npy(array)
                offset = writer.write(key, {"npy": data})[0] + tarfile.BLOCKSIZE
                for place, slot in enumerate(slots[own].tolist(), own.start):
                    if slot in spool.reasons:
                        why = spool.reasons[slot]
                        failed.append(Failure(shard=tar.name, sample=len(rows), key=key, item=place, reason=why))
                row = {"key": key, "offset": offset, "array_bytes": array.nbytes}
                rows.append(row | _told(data, items.identities[own], slots[own], spool))
        written = Shard(name=tar.name, samples=len(keys), bytes=temporary.stat().st_size, sha256=hash_file(temporary))
    state = ShardState(
        of=work.of(shard),
        dtype=work.dtype,
        shape=list(spool.shape),
        items=len(slots),
        loss=spool.loss,
        shard=written,
        failed=tuple(failed),
    )
    write_rows(index_path(tar), rows, INDEX_SCHEMA.with_metadata({STATE_KEY: state.to_json()}))
    return _on_this_machine(tar, state)


def _told(data: bytes, identities: Identities, slots: npt.NDArray[np.int32], spool: Spool) -> dict[str, Any]:
    """What an index says of a sample's array and of each of its embeddings."""
    errors, cosines = spool.losses[slots].T.tolist()
    return {
        "length": len(data),
        "lengths": spool.lengths[slots].tolist(),
        "sha256": hashlib.sha256(data).hexdigest(),
        "identities": [identity.tobytes() for identity in identities],
        "max_error": errors,
        "min_cosine": cosines,
    }


def assemble_shard(
    work: SidecarWork, shard: int, items: ShardItems, sources: Sources, files: Mapping[int, Path]
) -> ShardState:
    """Writes a shard from the files, by their numbers in `sources`, that hold its distinct embeddings."""
    with open_spool(len(sources.files), work.dtype) as spool:
        for number in np.unique(sources.files).tolist():
            chosen = np.flatnonzero(sources.files == number)
            chosen = chosen[np.argsort(sources.positions[chosen])]  # files are read from front to back
            copy = _copy_pack if number >= 0 else _copy_shard
            copy(files[number], chosen, sources.positions[chosen], spool)
        return write_shard(work, shard, items, sources.slots, spool)


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
    if state is None or (state.of, state.dtype) != (work.of(shard), work.dtype):
        return None
    return _on_this_machine(tar, state)


def finished_shards(work: SidecarWork) -> dict[int, ShardState]:
    """The shards that are there, whole, of the wanted type, and of the dataset's shards as they are now.

    What this machine remembers is not opened while sizes and times are what they were; all else is hashed.
    """
    remembered, found = recall(work.folder), {}
    for number, shard in enumerate(work.shards):
        tar, before = work.target(number), remembered.get(shard.name)
        if before and (before.of, before.dtype) == (work.of(number), work.dtype):
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


def _copy_pack(path: Path, numbers: npt.NDArray[Any], positions: npt.NDArray[Any], spool: Spool) -> None:
    """Copies embeddings from a pack into the spool, byte for byte."""
    for number, [record] in zip(numbers.tolist(), read_records(path, positions), strict=True):
        if record["length"] == NOT_ENCODED:
            spool.fail(number, record["reason"].decode(errors="ignore"))
            continue
        losses, shape = (record["max_error"], record["min_cosine"]), shape_of(record.dtype["embedding"])
        spool.put(number, record["embedding"].tobytes(), record["length"], losses, shape)


def _copy_shard(tar: Path, numbers: npt.NDArray[Any], places: npt.NDArray[Any], spool: Spool) -> None:
    """Copies embeddings from a finished shard into the spool, byte for byte."""
    state = _read_state(index_path(tar))
    if state is None:
        raise ValueError(f"{index_path(tar)}: missing or damaged while its sidecar was made; run jobs/embed.py again")
    record, failed = record_type(state.dtype, state.shape), {failure.item: failure.reason for failure in state.failed}
    with tar.open("rb") as file:
        for number, place, [offset, size, length], loss in zip(
            numbers.tolist(), places.tolist(), *_locate(tar, places, record.itemsize, state.loss), strict=True
        ):
            if place in failed:
                spool.fail(number, failed[place])
            else:
                stored = read_at(cast(BinaryIO, file), offset, size).ljust(record.itemsize, b"\0")
                spool.put(number, stored, length, loss, tuple(state.shape))


def _locate(tar: Path, places: npt.NDArray[Any], size: int, loss: Loss) -> tuple[list[list[int]], list[list[float]]]:
    """Where in a finished shard the embeddings of its items `places` begin, their sizes and lengths; and their losses.

    Shards that earlier versions wrote hold each embedding whole, of `size`, and tell the loss of all together.
    """
    table = read_table(index_path(tar))
    counts = table["lengths"].combine_chunks().value_lengths().to_numpy()
    ends = np.cumsum(counts)
    samples = np.searchsorted(ends, places, side="right")
    sizes = np.full(len(places), size)
    losses = np.tile([loss.max_error, loss.min_cosine], (len(places), 1))
    if ARRAY_BYTES.name in table.column_names:
        sizes = table[ARRAY_BYTES.name].to_numpy()[samples] // counts[samples]
        losses = np.stack([_flat(table, name)[places] for name in LOSSES], axis=1)
    # An array ends its member, whatever the size of its header.
    behind = (ends[samples] - places).astype(np.int64) * sizes
    offsets = table["offset"].to_numpy()[samples] + table["length"].to_numpy()[samples] - behind
    return np.stack([offsets, sizes, _flat(table, "lengths")[places]], axis=1).tolist(), losses.tolist()


def _flat(table: pa.Table, name: str) -> npt.NDArray[Any]:
    return table[name].combine_chunks().flatten().to_numpy()
