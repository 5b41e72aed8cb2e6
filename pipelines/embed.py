"""Embeds a dataset's captions or media into sidecar shards, on a pool of Ray Data actors that each load one model."""

import hashlib
import itertools
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import ray
import ray.data

from pipelines import media as media_files
from pipelines.files import atomic_path, read_metadata, write_rows
from pipelines.progress import track
from pipelines.sample import Item, Modality, Sample
from pipelines.shards import (
    MANIFEST,
    Manifest,
    Shard,
    TarShardWriter,
    hash_file,
    index_path,
    is_whole,
    iterate_samples,
    remove_others,
)
from pipelines.sidecars import ENCODER, SIDECAR_SCHEMA, SidecarManifest, needs, sidecar_folder, to_npy
from pipelines.views import Kind, sidecar_items

# ImageBind looks at ten frames of a video, first and last of five clips; this many a second serve it well.
VIDEO_FPS = 10.0

# The key of an index's metadata that says what its shard belongs to.
STATE = "sidecar"

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

    `kind` is one of `sidecars.KINDS`; `batch_size` is in items; `dtype` is what is stored.
    """

    kind: str
    factory: Callable[[], Encoder]
    dtype: str
    batch_size: int = 64

    @property
    def modality(self) -> Modality | None:
        """The modality of the captions, or None for the encoder."""
        return None if self.kind == ENCODER else Modality(self.kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """How many actors, and what each holds."""

    actors: int
    num_cpus: float
    num_gpus: float


def plan_pool(gpus: int | None = None) -> Pool:
    """One actor a GPU where the cluster has any, else one a CPU core.

    `gpus` asks for so many: an autoscaling cluster starts those that are not up yet.
    """
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0)) if gpus is None else gpus
    if gpus:
        return Pool(actors=gpus, num_cpus=1, num_gpus=1)
    return Pool(actors=max(1, int(resources.get("CPU", 1))), num_cpus=1, num_gpus=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderIdentity:
    """Which encoder it is, without the encoder."""

    id: str
    name: str
    untrained: bool


def identify(tasks: Sequence[EmbedTask], pool: Pool) -> dict[str, EncoderIdentity]:
    """Asks a worker which encoders the tasks use, by kind: the driver's machine need not be able to load them."""

    @ray.remote(num_cpus=pool.num_cpus, num_gpus=pool.num_gpus)
    def ask() -> dict[str, EncoderIdentity]:
        return {task.kind: _identity_of(task.factory()) for task in tasks}

    return ray.get(ask.remote())


def _identity_of(encoder: Encoder) -> EncoderIdentity:
    return EncoderIdentity(id=encoder.id, name=encoder.name, untrained=encoder.untrained)


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """A finished sidecar and how many of its shards were made now."""

    dataset: str
    manifest: SidecarManifest
    made: int


def embed(directories: Sequence[Path], tasks: Sequence[EmbedTask], pool: Pool) -> list[Embedded]:
    """Writes what is missing of the datasets' sidecars; one pool of actors does all of it, kind by kind."""
    identities = identify(tasks, pool)
    datasets = [(directory, Manifest.read(directory)) for directory in directories]
    sidecars = [
        Sidecar(directory, dataset, task, identities[task.kind])
        for task in tasks
        for directory, dataset in datasets
        if needs(dataset, task.kind)
    ]
    rows = [row for number, sidecar in enumerate(sidecars) for row in sidecar.rows(number)]
    with track("embed", sum(row["samples"] for row in rows), "samples") as bar:
        for row in _run(rows, tasks, pool):
            sidecars[row["sidecar"]].done[row["shard"]["name"]] = row
            bar.advance(row["shard"]["samples"])
    return [sidecar.finish() for sidecar in sidecars]


class Sidecar:
    """A dataset's sidecar in the making: which shards are there, which are to do."""

    def __init__(self, directory: Path, dataset: Manifest, task: EmbedTask, encoder: EncoderIdentity) -> None:
        self._directory, self._dataset, self._task, self._encoder = directory, dataset, task, encoder
        self._folder = sidecar_folder(directory, encoder.id)
        self.done = _finished_shards(self._folder, dataset, task.dtype)
        self._todo = [shard for shard in dataset.shards if shard.name not in self.done]
        if self._todo:
            (self._folder / MANIFEST).unlink(missing_ok=True)

    def rows(self, number: int) -> list[dict[str, Any]]:
        """One row of work a shard; `number` comes back with the result."""
        views = list(self._dataset.views.values())
        where = {"sidecar": number, "folder": str(self._folder), "kind": self._task.kind, "views": views}
        return [
            where | {"tar": str(self._directory / shard.name), "of": shard.sha256, "samples": shard.samples}
            for shard in self._todo
        ]

    def finish(self) -> Embedded:
        """Writes the manifest."""
        rows = [self.done[shard.name] for shard in self._dataset.shards]
        manifest = SidecarManifest(
            kind=self._task.kind,
            encoder_id=self._encoder.id,
            encoder_name=self._encoder.name,
            untrained=self._encoder.untrained,
            shape=next((row["shape"] for row in rows if row["items"]), []),
            dtype=self._task.dtype,
            items=sum(row["items"] for row in rows),
            shards=[Shard(**row["shard"]) for row in rows],
            of_shards=[shard.sha256 for shard in self._dataset.shards],
        )
        remove_others(self._folder, {shard.name for shard in manifest.shards})
        manifest.write(self._folder)
        return Embedded(dataset=self._dataset.dataset, manifest=manifest, made=len(self._todo))


class ShardEmbedder:
    """The actor: writes one sidecar shard a row. Rows come kind by kind, so each encoder is loaded once."""

    def __init__(self, tasks: Sequence[EmbedTask]) -> None:
        self._tasks = {task.kind: task for task in tasks}
        self._kind = ""

    def _use(self, kind: str) -> None:
        if kind != self._kind:
            self._task = self._tasks[kind]
            self._encoder = self._task.factory()
            self._kind = kind

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Embeds the items of one shard; identical captions (or media) are encoded once."""
        self._use(row["kind"])
        source, keys, wanted = Path(row["tar"]), list[str](), list[list[str]]()
        stream: Iterable[tuple[str, Any]] = self._distinct(source, list(row["views"]), keys, wanted)
        if self._task.kind != ENCODER:
            # Batches of captions of like length hold little padding. Media are taken as they come: they fill memory.
            stream = sorted(stream, key=lambda pair: (len(pair[0]), pair[0]))
        found = {}
        for batch in _batches(stream, self._task.batch_size):
            found.update(self._encode(batch))
        written = self._write(Path(row["folder"]) / source.name, row["of"], keys, wanted, found)
        return {"sidecar": row["sidecar"], **written}

    def _distinct(
        self, source: Path, views: list[Kind], keys: list[str], wanted: list[list[str]]
    ) -> Iterator[tuple[str, Any]]:
        """Yields each distinct input with its identity; notes every sample's key and the identities it wants."""
        seen = set[str]()
        for sample in iterate_samples(source):
            items = sidecar_items(sample, views, self._task.modality)
            keys.append(sample.key)
            wanted.append([_identity(sample, item, self._task.kind) for item in items])
            for identity, item in zip(wanted[-1], items, strict=True):
                if identity not in seen:
                    seen.add(identity)
                    yield identity, _input(sample, item, self._task.kind)

    def _encode(self, batch: list[tuple[str, Any]]) -> dict[str, tuple[npt.NDArray[Any], int]]:
        embeddings, lengths = self._encoder([value for _, value in batch])
        stored = as_stored(embeddings, self._task.dtype, self._encoder.name)
        return {
            identity: (embedding, int(length))
            for (identity, _), embedding, length in zip(batch, stored, lengths, strict=True)
        }

    def _write(
        self, tar: Path, of: str, keys: list[str], wanted: list[list[str]], found: dict[str, Any]
    ) -> dict[str, Any]:
        """Writes the tar and then its index, which says what it belongs to: with it, a shard is finished."""
        index = []
        shape = next(iter(found.values()))[0].shape if found else ()
        empty = np.zeros((0, *shape), self._task.dtype)
        with atomic_path(tar) as temporary, TarShardWriter(temporary) as writer:
            for key, identities in zip(keys, wanted, strict=True):
                array = to_npy(np.stack([found[name][0] for name in identities]) if identities else empty)
                offset, _ = writer.write(key, {"npy": array})
                lengths = [found[name][1] for name in identities]
                entry = {"key": key, "offset": offset + tarfile.BLOCKSIZE, "length": len(array), "lengths": lengths}
                index.append(entry)
        shard = Shard(name=tar.name, samples=len(keys), bytes=tar.stat().st_size, sha256=hash_file(tar))
        items = sum(len(identities) for identities in wanted)
        state = {"items": items, "shape": list(shape), "shard": asdict(shard), "of": of, "dtype": self._task.dtype}
        write_rows(index_path(tar), index, SIDECAR_SCHEMA.with_metadata({STATE: json.dumps(state, sort_keys=True)}))
        return state


def as_stored(embeddings: npt.NDArray[np.float32], dtype: str, name: str) -> npt.NDArray[Any]:
    """Embeddings in the type they are kept in.

    Raises:
        ValueError: some are not finite in it; `name` is the encoder's.
    """
    with np.errstate(over="ignore"):  # said below, in words
        stored = embeddings.astype(dtype)
    if not np.isfinite(stored).all():
        raise ValueError(
            f"{name}: gave embeddings that are not finite as {dtype}; check its weights, or store them as float32"
        )
    return stored


def _run(rows: list[dict[str, Any]], tasks: Sequence[EmbedTask], pool: Pool) -> Iterable[dict[str, Any]]:
    if not rows:
        return []
    mapped = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        ShardEmbedder,
        fn_constructor_args=(list(tasks),),
        compute=ray.data.ActorPoolStrategy(size=min(pool.actors, len(rows))),
        num_cpus=pool.num_cpus,
        num_gpus=pool.num_gpus,
    )
    return mapped.iter_rows()


def _finished_shards(folder: Path, dataset: Manifest, dtype: str) -> dict[str, dict[str, Any]]:
    """The sidecar shards that are there, whole, of the wanted type, and of the shards as they are now."""
    found = {}
    for shard in dataset.shards:
        index = index_path(folder / shard.name)
        state = json.loads(read_metadata(index).get(STATE, "{}")) if index.is_file() else {}
        current = state.get("of") == shard.sha256 and state["dtype"] == dtype
        if current and is_whole(folder / shard.name, Shard(**state["shard"])):
            found[shard.name] = state
    return found


def _identity(sample: Sample, item: Item, kind: str) -> str:
    if kind != ENCODER:
        return item.caption
    return hashlib.sha256(sample.media[item.name].data).hexdigest()


def _input(sample: Sample, item: Item, kind: str) -> Any:
    if kind != ENCODER:
        return item.caption
    return media_files.decode(sample.media[item.name], fps=VIDEO_FPS)


def _batches(stream: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(stream)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
