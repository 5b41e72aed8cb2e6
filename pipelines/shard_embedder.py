"""What an actor does with a shard: reads the inputs it is to encode, and encodes them in batches of like length."""

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pipelines import media as media_files
from pipelines.files import read_at, read_rows
from pipelines.ownership import IDENTITY_BYTES, ShardItems, ShardPlan
from pipelines.sample import Item, Sample
from pipelines.shards import from_members, index_path, iterate_samples
from pipelines.sidecar_shards import (
    ShardState,
    SidecarWork,
    Spool,
    open_spool,
    read_items,
    to_identities,
    write_pack,
    write_shard,
    written_pack,
    written_shard,
)
from pipelines.sidecars import takes_media
from pipelines.storage import Loss, store

# ImageBind looks at ten frames of a video, first and last of five clips; this many a second serve it well.
VIDEO_FPS = 10.0

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
    """

    kind: str
    factory: Callable[[], Encoder]
    dtype: str
    batch_size: int = 64


class ShardEmbedder:
    """Encodes what shards own, a shard a call. Calls come kind by kind, so each encoder is loaded once."""

    def __init__(self, tasks: Sequence[EmbedTask]) -> None:
        self._tasks = {task.kind: task for task in tasks}
        self._kind = ""

    def _use(self, kind: str) -> None:
        if kind != self._kind:
            self._task = self._tasks[kind]
            self._encoder = self._task.factory()
            self._kind = kind

    def __call__(self, work: SidecarWork, plan: ShardPlan) -> ShardState:
        """Writes the shard if all of its items are its own, else a pack of those that are.

        What an actor wrote before it was killed is not made again.
        """
        done = written_pack(work, plan) if plan.borrows else written_shard(work, plan.shard)
        if done:
            return done
        self._use(work.kind)
        with open_spool(len(plan.owned), work.dtype) as spool:
            loss = self._encode(owned_inputs(work, plan), spool)
            return (write_pack if plan.borrows else write_shard)(work, plan, spool, loss)

    def _encode(self, stream: Iterable[tuple[int, Any]], spool: Spool) -> Loss:
        if not takes_media(self._task.kind):
            # Batches of captions of like length hold little padding. Media are taken as they come: they fill memory.
            stream = sorted(stream, key=lambda pair: (len(pair[1]), pair[1]))
        loss = Loss()
        for batch in _batches(stream, self._task.batch_size):
            embeddings, lengths = self._encoder([value for _, value in batch])
            stored, cost = store(embeddings, self._task.dtype, self._encoder.name)
            spool.put(np.array([rank for rank, _ in batch]), stored, lengths, embeddings.shape[1:])
            loss = loss.worse(cost)
        return loss


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


def owned_inputs(work: SidecarWork, plan: ShardPlan) -> Iterator[tuple[int, Any]]:
    """Yields the inputs that a shard encodes, numbered, in the order they stand."""
    owned, ends = plan.owned, np.cumsum(plan.items.counts)
    for sample, end, count in zip(read_samples(work, plan.shard), ends, plan.items.counts, strict=True):
        start = int(end - count)
        ranks = range(*np.searchsorted(owned, [start, end]).tolist())
        if ranks:
            items = work.items(sample)
            yield from ((rank, _input(sample, items[owned[rank] - start], work.kind)) for rank in ranks)


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


def _input(sample: Sample, item: Item, kind: str) -> Any:
    if not takes_media(kind):
        return item.caption
    return media_files.decode(sample.media[item.name], fps=VIDEO_FPS)


def _batches(stream: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(stream)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
