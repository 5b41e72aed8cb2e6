"""What an actor does with a shard: reads the inputs it is to encode, and encodes them in batches of like length."""

import hashlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pipelines.embed.packs import Pack, find_packs, is_whole, join_records, to_failed_records, to_records, write_pack
from pipelines.embed.sidecar_shards import SidecarWork, read_items, to_identities, written_shard
from pipelines.media import codecs
from pipelines.media.policy import Refused
from pipelines.sample import Audio, Decoded, Image, Item, Media, Modality, Sample, Video
from pipelines.storage.files import read_at, read_rows
from pipelines.storage.ownership import IDENTITY_BYTES, ShardItems, ShardPlan
from pipelines.storage.precision import store
from pipelines.storage.random_access import Range, Ranges
from pipelines.storage.shards import from_members, index_path, iterate_samples, split_members
from pipelines.storage.sidecars import takes_media

# ImageBind looks at ten frames of a video, first and last of five clips; this many a second serve it well.
VIDEO_FPS = 10.0
# What is encoded is kept once it took so long, or so much memory.
SAVE_SECONDS = 5.0
SAVE_BYTES = 32 << 20

# Media that nothing is wrong with: an encoder that fails at these fails at all.
_ORDINARY = {
    Image: Image(pixels=np.full((64, 64, 3), 128, np.uint8)),
    Video: Video(frames=np.full((16, 64, 64, 3), 128, np.uint8), fps=8.0),
    Audio: Audio(waveform=np.sin(np.arange(32_000, dtype=np.float32) / 6)[None], sample_rate=16_000),
}

Embeddings = tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]


class Encoder(Protocol):
    """What embeds captions (strings) or media (decoded), made once in each actor by a factory.

    `id` names its weights and preprocessing, `untrained` says that they are random; calling it gives the embeddings
    (N, ...) and, for each, how many positions are the caption's own.
    """

    id: str
    name: str
    untrained: bool

    def __call__(self, inputs: Sequence[Any]) -> Embeddings:
        """Embeds the inputs in the order they come."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedTask:
    """What to embed of a dataset, with which encoder, and how.

    `kind` is one of `sidecars.ROW_KINDS`; `batch_size` is in items; `dtype` is what is stored, one of `storage.DTYPES`.
    `memory` gives the file in which a machine remembers the encoder's id, another whenever that may be another; None
    where this cannot be told without loading it.
    """

    kind: str
    factory: Callable[[], Encoder]
    dtype: str
    batch_size: int = 64
    memory: Callable[[], Path | None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Owned:
    """An item that a shard encodes: its number among these, and where in the tar its sample stands."""

    rank: int
    sample: Range
    item: Item


Unit = list[Owned]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPiece:
    """A part of what one shard encodes: the `number`-th of `count`."""

    plan: ShardPlan
    number: int = 0
    count: int = 1


class ShardEmbedder:
    """Encodes what shards own, a piece of a shard a call. Calls come kind by kind, so each encoder is loaded once."""

    def __init__(self, tasks: Sequence[EmbedTask], save_seconds: float = SAVE_SECONDS) -> None:
        self._tasks = {task.kind: task for task in tasks}
        self._save_seconds = save_seconds
        self._kind, self._folder, self._units = "", Path(), list[Unit]()

    def __call__(self, work: SidecarWork, piece: ShardPiece) -> Iterator[tuple[Pack, list[int]]]:
        """Encodes a piece, and yields every pack that holds some of it with the ranks of its embeddings, in order.

        Those that an interrupted run left are taken as they are; their encoder need not even be loaded. A call that is
        repeated after its process was killed yields the same packs again, and then goes on.
        """
        task = self._tasks[work.kind]
        folder = work.packs(piece.plan, task.batch_size)
        units = self._cut(folder, work, piece.plan, task.batch_size)
        number, stop = (len(units) * place // piece.count for place in (piece.number, piece.number + 1))
        kept = find_packs(folder)
        while number < stop:
            pack = kept.get(number)
            if pack is None or not is_whole(pack):
                until = next((place for place in range(number + 1, stop) if place in kept), stop)
                pack = self._encode(work, folder, number, units[number:until])
            yield pack, [one.rank for unit in units[pack.first : pack.stop] for one in unit]
            number = pack.stop

    def _cut(self, folder: Path, work: SidecarWork, plan: ShardPlan, batch_size: int) -> list[Unit]:
        """A shard's units; those of the last shard are kept, for its pieces come one after another."""
        if folder != self._folder:
            self._folder, self._units = folder, cut(owned_items(work, plan), work.kind, batch_size)
        return self._units

    def _encode(self, work: SidecarWork, folder: Path, first: int, units: Sequence[Unit]) -> Pack:
        """Encodes units until it is time to keep what they gave."""
        self._use(work)
        records, num_bytes, started = list[npt.NDArray[Any]](), 0, time.monotonic()
        for unit in units:
            inputs = read_inputs(unit, work.kind)
            records.append(
                self._media(inputs, work.dtype) if takes_media(work.kind) else self._call(inputs, work.dtype)
            )
            num_bytes += records[-1].nbytes
            if time.monotonic() - started >= self._save_seconds or num_bytes >= SAVE_BYTES:
                break
        return write_pack(folder, first, first + len(records), records)

    def _call(self, inputs: Sequence[Any], dtype: str) -> npt.NDArray[Any]:
        embeddings, lengths = self._encoder(inputs)
        stored, loss = store(embeddings, dtype, self._encoder.name)
        return to_records(stored, lengths, embeddings.shape[1:], dtype, loss)

    def _media(self, inputs: Sequence[Decoded | Refused], dtype: str) -> npt.NDArray[Any]:
        """Records of media; where those that were decoded fail together, each is encoded alone."""
        decoded = [one for one in inputs if not isinstance(one, Refused)]
        try:
            encoded = list(self._call(decoded, dtype)[:, None]) if decoded else []
        except Exception:
            encoded = [self._alone(one, dtype) for one in decoded]
        given = iter(encoded)
        return join_records(
            [to_failed_records([str(one)], dtype) if isinstance(one, Refused) else next(given) for one in inputs]
        )

    def _alone(self, medium: Decoded, dtype: str) -> npt.NDArray[Any]:
        """The record of one medium. What the encoder raises is the medium's own where others can be encoded."""
        try:
            return self._call([medium], dtype)
        except Exception as error:
            try:
                self._call([_ORDINARY[type(medium)]], dtype)
            except Exception:
                raise error from None
            what = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            return to_failed_records([f"not encoded: {what}{' '.join(str(error).split())}"], dtype)

    def _use(self, work: SidecarWork) -> None:
        if work.kind != self._kind:
            self._encoder = self._tasks[work.kind].factory()
            self._kind = work.kind
        if self._encoder.id != work.folder.name:
            raise ValueError(
                f"{self._encoder.name}: its id was {work.folder.name} when this run began and is {self._encoder.id} "
                "here: its files have changed, or differ between machines; run jobs/embed.py again once they agree"
            )


def shard_items(work: SidecarWork, shard: int) -> ShardItems:
    """What the items of a dataset's shard are: from the sidecar's index where it is written, else from the shard."""
    if written_shard(work, shard):
        return read_items(work, shard)
    counts, identities = [], []
    for sample in read_samples(work, shard):
        items = work.items(sample)
        counts.append(len(items))
        identities += [_identity(sample, item, work.kind) for item in items]
    return ShardItems(counts=np.array(counts, np.int32), identities=to_identities(identities))


def owned_items(work: SidecarWork, plan: ShardPlan) -> list[Owned]:
    """The items that a shard encodes, in the order they stand; their media are not read."""
    owned, ends, found = plan.owned, np.cumsum(plan.items.counts), list[Owned]()
    # For each sample, which of the owned items are its own.
    firsts = np.searchsorted(owned, ends - plan.items.counts).tolist()
    stops = np.searchsorted(owned, ends).tolist()
    tar = work.source(plan.shard)
    rows = read_rows(index_path(tar), ["offset", "length", "json_offset", "json_length"])
    chosen = [place for place in range(len(rows)) if firsts[place] < stops[place]]
    documents = Ranges().read([Range(tar, rows[place]["json_offset"], rows[place]["json_length"]) for place in chosen])
    for place, document in zip(chosen, documents, strict=True):
        start, sample = ends[place] - plan.items.counts[place], Range(tar, rows[place]["offset"], rows[place]["length"])
        items = work.items(from_members({"json": document}))
        for rank in range(firsts[place], stops[place]):
            found.append(Owned(rank=rank, sample=sample, item=items[owned[rank] - start]))
    return found


def cut(owned: Sequence[Owned], kind: str, batch_size: int) -> list[Unit]:
    """Cuts what a shard encodes into units, an encoder call each; they depend on nothing else.

    Captions of like length go together, for they hold little padding. Media are taken as they stand, for they fill
    memory, and a video alone: its clips are a batch, which may take minutes.
    """
    if not takes_media(kind):
        ordered = sorted(owned, key=lambda one: (len(one.item.caption), one.item.caption))
        return list(_batches(ordered, batch_size))
    units = list[Unit]()
    for batch in _batches(owned, batch_size):
        videos = [[one] for one in batch if one.item.modality == Modality.VIDEO]
        others = [one for one in batch if one.item.modality != Modality.VIDEO]
        units += [others, *videos] if others else videos
    return units


def count_units(owned: int, task: EmbedTask) -> int:
    """How many units `cut` gives at most, by the number of items alone."""
    return owned if takes_media(task.kind) else -(-owned // task.batch_size)


def read_inputs(unit: Unit, kind: str) -> list[Any]:
    """What an encoder takes: captions, or media decoded, or why one cannot be."""
    if not takes_media(kind):
        return [one.item.caption for one in unit]
    samples = map(from_members, map(split_members, Ranges().read([one.sample for one in unit])))
    return [_decoded(sample.media[one.item.name]) for one, sample in zip(unit, samples, strict=True)]


def _decoded(medium: Media) -> Decoded | Refused:
    try:
        return codecs.decode(medium, fps=VIDEO_FPS)
    except Refused as error:
        return error


def read_samples(work: SidecarWork, shard: int) -> Iterator[Sample]:
    """The samples of a dataset's shard, without their media where captions are all that is wanted."""
    tar = work.source(shard)
    return iterate_samples(tar) if takes_media(work.kind) else _documents(tar)


def _documents(tar: Path) -> Iterator[Sample]:
    with tar.open("rb") as file:
        for row in read_rows(index_path(tar), ["json_offset", "json_length"]):
            yield from_members({"json": read_at(file, row["json_offset"], row["json_length"])})


def _identity(sample: Sample, item: Item, kind: str) -> bytes:
    if not takes_media(kind):
        return hashlib.sha256(item.caption.encode()).digest()[:IDENTITY_BYTES]
    medium = sample.media[item.name]
    # Equal bytes are read in another way under another name.
    digest = hashlib.sha256(f"{medium.modality} {medium.format}\0".encode())
    digest.update(medium.data)
    return digest.digest()[:IDENTITY_BYTES]


def _batches(stream: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(stream)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
