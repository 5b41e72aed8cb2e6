"""Embeds datasets' captions or media into sidecar shards: a pipeline of Ray Data whose devices do nothing but encode.

Equal captions (or media) are encoded once, in whichever datasets they stand: tasks hash what each shard's items are,
and the driver plans which are to be encoded. Tasks on any CPU cut shards into units, read, decode and preprocess these;
actors, one a GPU, encode them, the next on its way to the device while one is computed; tasks keep each as a pack
behind them, and put shards together from packs. Units are the plan's, so that nothing depends on the actors, the
tasks, their order or interruptions.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data

from pipelines.embed.encoding import EmbedTask
from pipelines.embed.identities import EncoderIdentity, learn, recall
from pipelines.embed.plan import EncodingPlan, ShardItems, Sources
from pipelines.embed.sidecar_shards import (
    WORK,
    ShardState,
    SidecarWork,
    assemble_shard,
    finished_shards,
    remember,
)
from pipelines.embed.steps import EncodeRow, Tasks, cut_shard, prepare_row, shard_row, write_row
from pipelines.embed.units import cosine_to_float32, shard_items
from pipelines.progress import track
from pipelines.ray_steps import RowStep, count, flow_rows, map_rows
from pipelines.storage.files import remove_tree
from pipelines.storage.new_captions import NewCaptions, find_new_captions
from pipelines.storage.precision import Loss
from pipelines.storage.shards import MANIFEST, Manifest, index_path, remove_others
from pipelines.storage.sidecars import SidecarManifest, needs, sidecar_folder, takes_media
from pipelines.views import CaptionChoice

# Units that wait for each actor, or for being kept: enough that it never waits, and all that memory holds.
READY_PER_ACTOR = 4
# Cores that prepare for each actor, though no node may have them yet: an autoscaling cluster starts those asked for.
CORES_PER_ACTOR = 16
# An actor has one unit in work, one on its way to the device, and one that is fetched from another node.
UNITS_PER_ACTOR = 3


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


def identify(tasks: Sequence[EmbedTask], pool: Pool) -> dict[str, EncoderIdentity]:
    """Asks workers which encoders the tasks use, by kind: the driver's machine need not be able to load them."""
    # Side by side on a GPU too: all of a model's encoders together take less than one actor's batches.
    resources = ray.remote(num_cpus=pool.num_cpus, num_gpus=pool.num_gpus / max(1, len(tasks)))
    with track("look at encoders", len(tasks), "encoders", announce=True) as bar:
        recalled = ray.get(resources(_recall).remote(tasks))
        found = {task.kind: identity for task, identity in zip(tasks, recalled, strict=True) if identity}
        bar.advance(len(found))
        learn_remotely = resources(learn)
        asked = {learn_remotely.remote(task): task.kind for task in tasks if task.kind not in found}
        while asked:
            (done,), _ = ray.wait(list(asked))
            found[asked.pop(done)] = ray.get(done)
            bar.advance()
    return found


def _recall(tasks: Sequence[EmbedTask]) -> list[EncoderIdentity | None]:
    return [recall(task) for task in tasks]


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """A finished sidecar and how many of its shards were made now."""

    dataset: str
    manifest: SidecarManifest
    made: int


class Sidecar:
    """A dataset's sidecar in the making: which shards are there, and which are to do."""

    def __init__(
        self,
        directory: Path,
        dataset: Manifest,
        kind: str,
        dtype: str,
        encoder: EncoderIdentity,
        captions: NewCaptions | None = None,
    ) -> None:
        self.dataset, self._encoder = dataset.dataset, encoder
        self.work = sidecar_work(directory, dataset, kind, dtype, encoder.id, captions)
        written = _written(self.work.folder)
        self.precision_cosine = written.precision_cosine if written else None
        self._states = finished_shards(self.work)
        self.todo = [number for number in range(len(dataset.shards)) if number not in self._states]
        if self.todo:
            self._begin()

    def _begin(self) -> None:
        """Deletes the completion markers of unfinished shards, so that no worker takes them for finished."""
        (self.work.folder / MANIFEST).unlink(missing_ok=True)
        remember(self.work.folder, self._states.values())
        for number in self.todo:
            index_path(self.work.target(number)).unlink(missing_ok=True)

    def take(self, number: int, state: ShardState) -> None:
        """Notes a shard that is finished."""
        self._states[number] = state

    def finish(self) -> Embedded:
        """Writes the manifest, and then what this machine remembers."""
        states = [self._states[number] for number in range(len(self.work.shards))]
        shards = [state.shard for state in states]
        loss = Loss()
        for state in states:
            loss = loss.worse(state.loss)
        manifest = SidecarManifest(
            kind=self.work.kind,
            encoder_id=self.work.folder.name,
            encoder_name=self._encoder.name,
            untrained=self._encoder.untrained,
            shape=next((state.shape for state in states if state.shape), []),
            dtype=self.work.dtype,
            items=sum(state.items for state in states),
            shards=shards,
            of_shards=[self.work.of(number) for number in range(len(self.work.shards))],
            captions=self.work.captions.choice if self.work.captions else "original",
            max_error=loss.max_error,
            min_cosine=loss.min_cosine,
            precision=self._encoder.precision,
            precision_cosine=self.precision_cosine,
            failed=[failure for state in states for failure in state.failed],
        )
        folder = self.work.folder
        remove_others(folder, {shard.name for shard in shards})
        if _written(folder) != manifest:
            manifest.write(folder)
        remember(folder, states)
        remove_tree(folder / WORK)
        return Embedded(dataset=self.dataset, manifest=manifest, made=len(self.todo))


def sidecar_work(
    directory: Path, dataset: Manifest, kind: str, dtype: str, encoder_id: str, captions: NewCaptions | None = None
) -> SidecarWork:
    """A sidecar of a dataset as its workers know it; that of new captions lies beside that of its own."""
    name = f"{encoder_id}-{captions.choice}" if captions else encoder_id
    return SidecarWork(
        directory=directory,
        folder=sidecar_folder(directory, name),
        captions=captions,
        kind=kind,
        dtype=dtype,
        views=tuple(dataset.views.values()),
        shards=tuple(dataset.shards),
    )


def _written(folder: Path) -> SidecarManifest | None:
    """The manifest of a finished sidecar; None where there is none that can be read."""
    try:
        return SidecarManifest.read(folder)
    except (OSError, ValueError):
        return None


def embed(
    directories: Sequence[Path], tasks: Sequence[EmbedTask], pool: Pool, captions: CaptionChoice = "original"
) -> list[Embedded]:
    """Writes what is missing of the datasets' sidecars; one pool of actors does all of it, kind by kind.

    Raises:
        ValueError: new captions are chosen, and a dataset has none; one line.
    """
    datasets = [(directory, Manifest.read(directory)) for directory in directories]
    worded = [
        find_new_captions(directory, one, captions if _has_pairs(one) else "original") for directory, one in datasets
    ]
    encoders = identify(tasks, pool)
    sidecars = [
        Sidecar(directory, dataset, task.kind, task.dtype, encoders[task.kind], None if takes_media(task.kind) else new)
        for task in tasks
        for (directory, dataset), new in zip(datasets, worded, strict=True)
        if needs(dataset, task.kind)
    ]
    encodings = [found for task in tasks if (found := plan_kind(sidecars, task.kind))]
    _encode(encodings, sidecars, tasks, encoders, pool)
    _assemble(encodings, sidecars)
    _compare_precision(sidecars, tasks, pool)
    return [sidecar.finish() for sidecar in sidecars]


def _has_pairs(dataset: Manifest) -> bool:
    return any(kind != "dialogue" for kind in dataset.views.values())


def _compare_precision(sidecars: Sequence[Sidecar], tasks: Sequence[EmbedTask], pool: Pool) -> None:
    """Measures, where actors run, what an encoder's precision costs on each dataset that does not say it yet."""
    compare = ray.remote(num_cpus=pool.num_cpus, num_gpus=pool.num_gpus)(cosine_to_float32)
    exact = {task.kind: task for task in tasks if task.exact}
    new = [one for one in sidecars if one.work.kind in exact and (one.todo or one.precision_cosine is None)]
    cosines = ray.get([compare.remote(one.work, exact[one.work.kind]) for one in new])
    for sidecar, cosine in zip(new, cosines, strict=True):
        sidecar.precision_cosine = cosine


class Encoding:
    """What is to be done for the sidecars of one kind, and where what was encoded lies."""

    def __init__(self, sidecars: Sequence[Sidecar], shards: Sequence[tuple[int, int]], items: list[ShardItems]) -> None:
        """Takes the shards of sidecars, as numbers of both, and what their items are."""
        self.sidecars = {sidecar for sidecar, _ in shards}
        self._sidecars, self._shards, self._items = sidecars, shards, items
        self._numbers = {shard: number for number, shard in enumerate(shards)}
        self._packs = list[tuple[int, str]]()
        self._plan = EncodingPlan(items, [shard not in sidecars[sidecar].todo for sidecar, shard in shards])

    @property
    def total(self) -> int:
        """How many embeddings are to be made."""
        return self._plan.total

    def to_encode(self) -> list[dict[str, Any]]:
        """Rows of the shards of which something is to be encoded."""
        found = [
            shard_row(self._plan, number, sidecar, shard, self._items[number])
            for number, (sidecar, shard) in enumerate(self._shards)
        ]
        return [row for row in found if row]

    def keep(self, row: dict[str, Any]) -> int:
        """Notes what a pack holds; returns how many embeddings of it are new."""
        self._packs.append((row["sidecar"], row["name"]))
        places = np.frombuffer(row["places"], np.int32)
        return self._plan.keep(self._numbers[row["sidecar"], row["shard"]], places, len(self._packs) - 1)

    def to_assemble(self) -> list[dict[str, Any]]:
        """Rows of the unfinished shards, and where what they hold lies."""
        return [
            self._sources_row(number, sidecar, shard)
            for number, (sidecar, shard) in enumerate(self._shards)
            if shard in self._sidecars[sidecar].todo
        ]

    def _sources_row(self, number: int, sidecar: int, shard: int) -> dict[str, Any]:
        sources = self._plan.sources(number)
        named = {
            file: self._packs[file] if file >= 0 else self._shards[-1 - file] for file in set(sources.files.tolist())
        }
        arrays = {name: getattr(sources, name).tobytes() for name in ("slots", "files", "positions")}
        row = {"sidecar": sidecar, "shard": shard, "named": json.dumps(list(named.items()))}
        return row | self._items[number].to_row() | arrays


def plan_kind(sidecars: Sequence[Sidecar], kind: str) -> Encoding | None:
    """Hashes, in tasks, what the items of all shards of a kind are, and plans what is to be encoded."""
    found = [(number, one) for number, one in enumerate(sidecars) if one.work.kind == kind]
    if not any(one.todo for _, one in found):
        return None
    shards = [(number, shard) for number, one in found for shard in range(len(one.work.shards))]
    rows = [{"sidecar": sidecar, "shard": shard} for sidecar, shard in shards]
    items: dict[tuple[int, int], ShardItems] = {}
    with track(f"compare {kind}", len(rows), "shards") as bar:
        for row in map_rows(rows, partial(_hash_items, works=_works(sidecars))):
            items[row["sidecar"], row["shard"]] = ShardItems.from_row(row)
            bar.advance()
    return Encoding(sidecars, shards, [items[shard] for shard in shards])


def _works(sidecars: Sequence[Sidecar]) -> list[SidecarWork]:
    return [sidecar.work for sidecar in sidecars]


def _hash_items(row: dict[str, Any], works: Sequence[SidecarWork]) -> dict[str, Any]:
    return row | shard_items(works[row["sidecar"]], row["shard"]).to_row()


def _encode(
    encodings: Sequence[Encoding],
    sidecars: Sequence[Sidecar],
    tasks: Sequence[EmbedTask],
    encoders: dict[str, EncoderIdentity],
    pool: Pool,
) -> None:
    rows = [row for encoding in encodings for row in encoding.to_encode()]
    kinds = {sidecar: encoding for encoding in encodings for sidecar in encoding.sidecars}
    total = sum(encoding.total for encoding in encodings)
    with track("embed", total, "embeddings", announce=bool(rows)) as bar:
        for row in flow_rows(
            rows,
            encoding_steps(
                _works(sidecars),
                {task.kind: task for task in tasks},
                {kind: encoder.name for kind, encoder in encoders.items()},
                pool,
                most=total,
            ),
        ):
            bar.advance(kinds[row["sidecar"]].keep(row))


def encoding_steps(
    works: Sequence[SidecarWork], tasks: Tasks, names: dict[str, str], pool: Pool, most: int
) -> list[RowStep]:
    """From shards to packs; at most so many actors have work at once.

    Where no GPU encodes, a core's actor and the preparing of its inputs share it. What only reads indexes or writes
    files takes no core from them.
    """
    actor_cpus, reader_cpus = (pool.num_cpus, 1.0) if pool.num_gpus or not pool.num_cpus else (0.5, 0.4)
    cores = max(CORES_PER_ACTOR * pool.actors, int(ray.cluster_resources().get("CPU", 0)))
    ready, readers = READY_PER_ACTOR * pool.actors, int(cores / reader_cpus)
    actors = ray.data.ActorPoolStrategy(
        size=max(1, min(pool.actors, most)),
        max_tasks_in_flight_per_actor=UNITS_PER_ACTOR,
        max_concurrent_calls_per_actor=2,
        enable_true_multi_threading=True,
    )
    on_actors = {"num_cpus": actor_cpus, "num_gpus": pool.num_gpus, "fn_constructor_args": (works, tasks)}
    cutters = {"num_cpus": 0, "compute": ray.data.TaskPoolStrategy(size=2)}
    # Not as many as there are packs: each would be one more process.
    writers = {"num_cpus": 0, "compute": ray.data.TaskPoolStrategy(size=pool.actors)}
    return [
        RowStep(partial(cut_shard, works=works, tasks=tasks), readers, cutters, several=True),
        RowStep(partial(prepare_row, works=works, tasks=tasks), ready + readers, {"num_cpus": reader_cpus}),
        RowStep(EncodeRow, ready + UNITS_PER_ACTOR * pool.actors, on_actors | {"compute": actors}),
        RowStep(partial(write_row, works=works, names=names), ready, writers),
    ]


def _assemble(encodings: Sequence[Encoding], sidecars: Sequence[Sidecar]) -> None:
    rows = [row for encoding in encodings for row in encoding.to_assemble()]
    with track("assemble", len(rows), "shards") as bar:
        for row in map_rows(rows, partial(assemble_row, works=_works(sidecars))):
            sidecars[row["sidecar"]].take(row["shard"], ShardState.from_json(row["state"]))
            bar.advance()


def assemble_row(row: dict[str, Any], works: Sequence[SidecarWork]) -> dict[str, Any]:
    """Puts one shard together from packs and finished shards."""
    work = works[row["sidecar"]]
    files = {
        file: works[sidecar].pack(name) if file >= 0 else works[sidecar].target(name)
        for file, (sidecar, name) in json.loads(row["named"])
    }
    sources = Sources(**{name: np.frombuffer(row[name], np.int32) for name in ("slots", "files", "positions")})
    state = assemble_shard(work, row["shard"], ShardItems.from_row(row), sources, files)
    count(work.directory.name, bytes=state.shard.bytes)
    return {"sidecar": row["sidecar"], "shard": row["shard"], "state": state.to_json()}
