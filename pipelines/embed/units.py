"""The units of a shard: what is encoded together, and kept together. They depend on the data and the plan alone."""

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.embed.encoding import EmbedTask, Preprocess, prepare_media
from pipelines.embed.packs import VERSION
from pipelines.embed.plan import ShardItems
from pipelines.embed.sidecar_shards import SidecarWork, read_items, to_identities, written_shard
from pipelines.media.policy import Refused
from pipelines.sample import Item, Modality, Sample
from pipelines.storage.files import read_at, read_rows
from pipelines.storage.precision import losses
from pipelines.storage.random_access import Range, Ranges
from pipelines.storage.shards import from_members, index_path, iterate_samples, split_members
from pipelines.storage.sidecars import IDENTITY_BYTES, takes_media

# Items whose embeddings are compared with those in float32.
SAMPLE = 32
_PLACES = ["offset", "length", "json_offset", "json_length"]  # of a shard's index


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """An item that is to be encoded: its number in the shard, and where in the tar its sample stands."""

    place: int
    sample: Range
    item: Item


Unit = list[Found]


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


def find_items(
    work: SidecarWork, shard: int, counts: npt.NDArray[np.int32], places: npt.NDArray[np.int32]
) -> list[Found]:
    """The items at these numbers, ascending, of a shard whose samples have so many each; no medium is read."""
    ends = np.cumsum(counts)
    firsts, stops = (np.searchsorted(places, edges).tolist() for edges in (ends - counts, ends))
    tar, found = work.source(shard), list[Found]()
    rows = read_rows(index_path(tar), _PLACES)
    chosen = [number for number in range(len(rows)) if firsts[number] < stops[number]]
    documents = Ranges().read([Range(tar, rows[place]["json_offset"], rows[place]["json_length"]) for place in chosen])
    for number, document in zip(chosen, documents, strict=True):
        sample = Range(tar, rows[number]["offset"], rows[number]["length"])
        worded = work.worded(shard, number, from_members({"json": document}))
        items, start = work.items(worded), ends[number] - counts[number]
        for place in places[firsts[number] : stops[number]].tolist():
            found.append(Found(place=place, sample=sample, item=items[place - start]))
    return found


def cut(found: Sequence[Found], task: EmbedTask) -> list[Unit]:
    """Cuts what is to be encoded of a shard into units of `batch_size` clips; they depend on nothing else.

    Captions of like length go together, for they hold little padding; so do media of one modality, as they stand. A
    medium of more clips is a unit of its own.
    """
    if takes_media(task.kind):
        order = list(Modality)
        ordered = sorted(found, key=lambda one: order.index(one.item.modality))
    else:
        ordered = sorted(found, key=lambda one: (len(one.item.caption), one.item.caption))
    units, clips = list[Unit](), 0
    for one in ordered:
        size = task.clips.get(one.item.modality, 1) if takes_media(task.kind) else 1
        is_other = bool(units) and takes_media(task.kind) and units[-1][0].item.modality != one.item.modality
        if not units or is_other or clips + size > task.batch_size:
            units.append([])
            clips = 0
        units[-1].append(one)
        clips += size
    return units


def unit_name(work: SidecarWork, shard: int, unit: Unit) -> str:
    """A hash of what a unit's embeddings depend on beside the encoder: the shard, which of its items, the type."""
    places = np.array([one.place for one in unit], "<i4")
    facts = json.dumps([VERSION, work.of(shard), work.dtype]).encode()
    return hashlib.sha256(facts + b"\0" + places.tobytes()).hexdigest()[:16]


def prepare_unit(unit: Unit, task: EmbedTask) -> tuple[list[Any], dict[int, str]]:
    """What the encoder takes of a unit; what cannot be decoded or prepared is left out, and named with the reason."""
    preprocess = _preprocess(task.preprocess) if task.preprocess else None
    if not takes_media(task.kind):
        captions = [one.item.caption for one in unit]
        return list(preprocess(captions) if preprocess else captions), {}
    samples = map(from_members, map(split_members, Ranges().read([one.sample for one in unit])))
    media = [sample.media[one.item.name] for one, sample in zip(unit, samples, strict=True)]
    inputs = prepare_media(media, preprocess)
    failed = {number: str(one) for number, one in enumerate(inputs) if isinstance(one, Refused)}
    return [one for one in inputs if not isinstance(one, Refused)], failed


def cosine_to_float32(work: SidecarWork, task: EmbedTask) -> float:
    """The lowest cosine between a vector of a task's encoder and float32's, among a dataset's first items."""
    assert task.exact, "there is another precision to compare with"
    inputs, _ = prepare_unit(list(itertools.islice(_items(work), SAMPLE)), task)
    encoders, lowest = (task.factory(), task.exact()), 1.0
    for one in inputs:
        try:
            kept, exact = (encoder(encoder.send([one]))[0] for encoder in encoders)
        except Exception:  # it is named among those that failed
            continue
        lowest = min(lowest, float(losses(exact, kept)[1].min()))
    return lowest


def _items(work: SidecarWork) -> Iterator[Found]:
    for shard in range(len(work.shards)):
        for place, (where, sample) in enumerate(_documents(work.source(shard))):
            for item in work.items(work.worded(shard, place, sample)):
                yield Found(place=0, sample=where, item=item)


@lru_cache(maxsize=4)
def _preprocess(factory: Any) -> Preprocess:
    made: Preprocess = factory()
    return made


def read_samples(work: SidecarWork, shard: int) -> Iterator[Sample]:
    """The samples of a dataset's shard, without their media where captions are all that is wanted."""
    tar = work.source(shard)
    if takes_media(work.kind):
        return iterate_samples(tar)
    return (work.worded(shard, place, sample) for place, (_, sample) in enumerate(_documents(tar)))


def _documents(tar: Path) -> Iterator[tuple[Range, Sample]]:
    """The samples of a shard without their media, each with where it stands."""
    with tar.open("rb") as file:
        for row in read_rows(index_path(tar), _PLACES):
            document = read_at(file, row["json_offset"], row["json_length"])
            yield Range(tar, row["offset"], row["length"]), from_members({"json": document})


def _identity(sample: Sample, item: Item, kind: str) -> bytes:
    if not takes_media(kind):
        return hashlib.sha256(item.caption.encode()).digest()[:IDENTITY_BYTES]
    medium = sample.media[item.name]
    # Equal bytes are read in another way under another name.
    digest = hashlib.sha256(f"{medium.modality} {medium.format}\0".encode())
    digest.update(medium.data)
    return digest.digest()[:IDENTITY_BYTES]
