"""Small prepared datasets, written without Ray, and an encoder that notes what it is given."""

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.embed.embedding import Embedded, Encoding, Sidecar, assemble_row
from pipelines.embed.encoding import EmbedTask
from pipelines.embed.identities import EncoderIdentity
from pipelines.embed.sidecar_shards import ShardState
from pipelines.embed.steps import EncodeRow, cut_shard, prepare_row, write_row
from pipelines.embed.units import shard_items
from pipelines.media.codecs import encode
from pipelines.sample import Image, Item, Media, Modality, Sample, Turn
from pipelines.storage.files import write_rows
from pipelines.storage.shards import (
    INDEX_SCHEMA,
    STATE,
    Manifest,
    Shard,
    TarShardWriter,
    hash_file,
    hash_members,
    index_path,
    json_range,
    members,
    shard_name,
)
from pipelines.views import Kind, num_examples, sidecar_items

PAIR_VIEWS: dict[str, Kind] = {"pictures_enc": "caption", "pictures_dec": "generate"}
DIALOGUE_VIEWS: dict[str, Kind] = {"talks": "dialogue"}
POSITIONS, WIDTH = 3, 2


def picture(shade: int, size: int = 8) -> Media:
    return encode(Image(pixels=np.full((size, size, 3), shade, np.uint8)))


def pair(key: str, caption: str = "", shade: int = 0, more: Sequence[str] = (), **meta: Any) -> Sample:
    item = Item(modality=Modality.IMAGE, name="png", caption=caption or f"caption of {key}", more_captions=tuple(more))
    turns = (Turn(role="user", parts=(item,)), Turn(role="assistant", parts=(item.caption,)))
    return Sample(key=key, source=f"rows.json#{key}", turns=turns, media={"png": picture(shade)}, meta=meta)


def talk(key: str, captions: Sequence[str]) -> Sample:
    """A dialogue whose answer holds an image for each caption, none of which exists."""
    items = tuple(Item(modality=Modality.IMAGE, caption=caption) for caption in captions)
    turns = (Turn(role="user", parts=("please",)), Turn(role="assistant", parts=("here", *items)))
    return Sample(key=key, source=f"talks.json#{key}", turns=turns)


def drawing(key: str, shades: Sequence[int | None]) -> Sample:
    """A dialogue whose answer holds an image for each shade; of None there is the caption alone."""
    names = ["" if shade is None else f"{place}.png" for place, shade in enumerate(shades)]
    items = tuple(Item(modality=Modality.IMAGE, name=name, caption=f"caption {name}") for name in names)
    turns = (Turn(role="user", parts=("draw",)), Turn(role="assistant", parts=items))
    media = {name: picture(shade) for name, shade in zip(names, shades, strict=True) if shade is not None}
    return Sample(key=key, source=f"drawings.json#{key}", turns=turns, media=media)


def write_shard(path: Path, samples: Sequence[Sample]) -> Shard:
    index = []
    with TarShardWriter(path) as writer:
        for sample in samples:
            values = members(sample)
            offset, length = writer.write(sample.key, values)
            start, size = json_range(values, offset)
            row = {"key": sample.key, "source": sample.source, "caption": "", "sha256": hash_members(values)}
            row["media"] = json.dumps(sample.meta.get("media", {}))
            index.append(row | {"offset": offset, "length": length, "json_offset": start, "json_length": size})
    write_rows(index_path(path), index, INDEX_SCHEMA)
    return Shard(
        name=path.name,
        samples=len(samples),
        bytes=path.stat().st_size,
        sha256=hash_file(path),
        index_sha256=hash_file(index_path(path)),
    )


def write_dataset(
    directory: Path,
    samples: Sequence[Sample],
    samples_per_shard: int,
    views: dict[str, Kind] = PAIR_VIEWS,
    one_caption: Sequence[str] = (),
) -> Manifest:
    directory.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(samples), samples_per_shard)
    shards = [
        write_shard(directory / shard_name(number), samples[start : start + samples_per_shard])
        for number, start in enumerate(starts)
    ]

    def count(modality: Modality | None) -> int:
        return sum(len(sidecar_items(sample, views.values(), modality)) for sample in samples)

    examples = [num_examples(sample) for sample in samples]
    most = max(examples, default=1)
    outputs = {modality.value: count(modality) for modality in Modality if count(modality)}
    manifest = Manifest(
        dataset=directory.name,
        rows=len(samples),
        samples=len(samples),
        samples_per_shard=samples_per_shard,
        rejected={},
        shards=shards,
        views=views,
        output_items=outputs,
        input_items=count(None),
        licence="",
        captions=sum(examples) if most > 1 else 0,
        most_captions=most,
        one_caption=list(one_caption),
    )
    manifest.write(directory)
    return manifest


class NotingEncoder:
    """Embeds captions as (3, 2) and pictures as (4,), and adds each input it is given to a log, a line a call."""

    name = "noting"
    untrained = True
    precision = "float32"

    def __init__(
        self,
        log: Path | None = None,
        encoder_id: str = "noting-0",
        scale: float = 1.0,
        poison: str | None = None,
        turned: float | None = None,
    ) -> None:
        self.id, self._turned = encoder_id, turned
        self._log, self._scale, self._poison = log, scale, poison

    def send(self, inputs: Sequence[Any]) -> Sequence[Any]:
        return inputs

    def __call__(self, inputs: Sequence[Any]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
        if self._log:
            with self._log.open("a") as log:
                log.write(json.dumps([value if isinstance(value, str) else "media" for value in inputs]) + "\n")
        embeddings = np.stack([embedding_of(value) for value in inputs])
        if self._turned is not None:  # by so many radians, in the plane of a caption's two numbers
            cos, sin = np.cos(self._turned), np.sin(self._turned)
            embeddings = (embeddings @ np.array([[cos, sin], [-sin, cos]])).astype(np.float32)
        scale = np.nan if self._poison in inputs else self._scale
        return embeddings * np.float32(scale), np.array([length_of(value) for value in inputs], np.int32)


def embedding_of(value: Any) -> npt.NDArray[np.float32]:
    if isinstance(value, Image):
        return np.append(value.pixels.mean(axis=(0, 1)), 1.0).astype(np.float32)
    seed = int.from_bytes(hashlib.sha256(value.encode()).digest()[:4])
    return np.random.default_rng(seed).standard_normal((POSITIONS, WIDTH), np.float32)


def length_of(value: Any) -> int:
    return min(len(value.split()), POSITIONS) if isinstance(value, str) else 1


def task(kind: str = "image", dtype: str = "float32", batch_size: int = 64, **encoder: Any) -> EmbedTask:
    return EmbedTask(kind=kind, factory=partial(NotingEncoder, **encoder), dtype=dtype, batch_size=batch_size)


def begin_sidecars(directories: Sequence[Path], work: EmbedTask, order: int = 0) -> tuple[list[Sidecar], Iterator[int]]:
    """Sidecars in the making, and their steps: each writes a file and yields the number of its shard.

    Units are encoded in an order that a seed draws; of 0, as they stand.
    """
    identity = EncoderIdentity.of(work.factory())
    sidecars = [Sidecar(one, Manifest.read(one), work.kind, work.dtype, identity) for one in directories]
    works = [one.work for one in sidecars]

    def steps() -> Iterator[int]:
        tasks, encode = {work.kind: work}, EncodeRow(works, {work.kind: work})
        shards = [(number, shard) for number, one in enumerate(works) for shard in range(len(one.shards))]
        if not any(one.todo for one in sidecars):
            return
        encoding = Encoding(sidecars, shards, [shard_items(works[number], shard) for number, shard in shards])
        units = [unit for row in encoding.to_encode() for unit in cut_shard(row, works, tasks)]
        if order:
            random.Random(order).shuffle(units)
        for unit in units:
            encoding.keep(write_row(encode(prepare_row(unit, works, tasks)), works, {work.kind: identity.name}))
            yield unit["shard"]
        for row in encoding.to_assemble():
            done = assemble_row(row, works)
            sidecars[done["sidecar"]].take(done["shard"], ShardState.from_json(done["state"]))
            yield done["shard"]

    return sidecars, steps()


def begin_sidecar(directory: Path, work: EmbedTask, order: int = 0) -> tuple[Sidecar, Iterator[int]]:
    [sidecar], steps = begin_sidecars([directory], work, order)
    return sidecar, steps


def write_sidecars(directories: Sequence[Path], work: EmbedTask, order: int = 0) -> list[Embedded]:
    """What `embed` does, in this process: a Ray actor costs seconds to start."""
    sidecars, steps = begin_sidecars(directories, work, order)
    for _ in steps:
        pass
    return [sidecar.finish() for sidecar in sidecars]


def write_sidecar(directory: Path, work: EmbedTask, order: int = 0) -> Embedded:
    return write_sidecars([directory], work, order)[0]


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder with its hash, hidden ones too, but for what a machine remembers."""
    return {name: hash_file(folder / name) for name in times(folder)}


def times(folder: Path) -> dict[str, int]:
    """Every such file below a folder with the time it was written."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != STATE]
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in paths}
