"""Embeds a dataset's captions or media into sidecar shards, on a pool of Ray Data actors that each load one model.

Equal captions (or media) of a dataset are encoded once: tasks hash what each shard's items are, the driver gives each
distinct item to the first shard that has it, actors encode what shards own, a piece of a shard each, into packs, and
tasks put shards together from these. A dataset's sidecar so depends on the dataset and the encoder alone, not on the
actors, on interruptions or on other datasets.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
import ray.data

from pipelines.embed.identities import EncoderIdentity, learn, recall
from pipelines.embed.shard_embedder import EmbedTask, ShardEmbedder, ShardPiece, count_units, shard_items
from pipelines.embed.sidecar_shards import (
    WORK,
    Places,
    ShardState,
    SidecarWork,
    assemble_shard,
    finished_shards,
    remember,
)
from pipelines.progress import track
from pipelines.ray_steps import count, map_rows, stream_rows
from pipelines.storage.files import remove_tree
from pipelines.storage.ownership import ShardItems, ShardPlan, assign
from pipelines.storage.precision import Loss
from pipelines.storage.shards import MANIFEST, Manifest, index_path, remove_others
from pipelines.storage.sidecars import SidecarManifest, needs, sidecar_folder

# So many that no actor is idle for long at the end; shards are left whole where there are enough of them.
PIECES_PER_ACTOR = 8


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
    """A dataset's sidecar in the making: which shards are there, which are to do, who encodes what."""

    def __init__(self, directory: Path, dataset: Manifest, kind: str, dtype: str, encoder: EncoderIdentity) -> None:
        self.dataset, self._encoder = dataset.dataset, encoder
        self.work = sidecar_work(directory, dataset, kind, dtype, encoder.id)
        self._states = finished_shards(self.work)
        self.todo = [number for number in range(len(dataset.shards)) if number not in self._states]
        self._plans: list[ShardPlan] = []
        self._packs = list[str]()
        self._places = list[npt.NDArray[np.int32]]()
        if self.todo:
            self._begin()

    def _begin(self) -> None:
        """Deletes the completion markers of unfinished shards, so that no worker takes them for finished."""
        (self.work.folder / MANIFEST).unlink(missing_ok=True)
        remember(self.work.folder, self._states.values())
        for number in self.todo:
            index_path(self.work.target(number)).unlink(missing_ok=True)

    def plan(self, items: Sequence[ShardItems]) -> None:
        """Decides who encodes what, from the items of all shards."""
        self._plans = assign(items)
        # Of each embedding that a shard owns, its pack and its position there.
        self._places = [np.full((len(plan.owned), 2), -1, np.int32) for plan in self._plans]

    def to_encode(self) -> list[ShardPlan]:
        """The unfinished shards that encode something themselves."""
        return [plan for plan in map(self._plans.__getitem__, self.todo) if len(plan.owned)]

    def keep(self, shard: int, name: str, ranks: npt.NDArray[np.int32]) -> int:
        """Notes which embeddings of a shard a pack holds, in order; returns how many of them are new."""
        places = self._places[shard]
        new = int((places[ranks, 0] < 0).sum())
        places[ranks, 0], places[ranks, 1] = len(self._packs), np.arange(len(ranks))
        self._packs.append(name)
        return new

    def to_assemble(self) -> list[tuple[ShardPlan, Places]]:
        """The unfinished shards, and where what they hold lies."""
        return [(self._plans[number], self._find(self._plans[number])) for number in self.todo]

    def _find(self, plan: ShardPlan) -> Places:
        places = np.empty((len(plan.owners), 2), np.int32)
        for owner in np.unique(plan.owners):
            mine = plan.owners == owner
            places[mine] = self._places[owner][plan.ranks[mine]]
        used, packs = np.unique(places[:, 0], return_inverse=True)
        held = int(used.searchsorted(0))  # 1 where finished shards (-1) hold some
        return Places(
            names=[self._packs[number] for number in used[held:]],
            packs=(packs - held).astype(np.int32),
            positions=places[:, 1].copy(),
        )

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
            encoder_id=self._encoder.id,
            encoder_name=self._encoder.name,
            untrained=self._encoder.untrained,
            shape=next((state.shape for state in states if state.shape), []),
            dtype=self.work.dtype,
            items=sum(state.items for state in states),
            shards=shards,
            of_shards=[shard.sha256 for shard in self.work.shards],
            max_error=loss.max_error,
            min_cosine=loss.min_cosine,
            failed=[failure for state in states for failure in state.failed],
        )
        folder = self.work.folder
        remove_others(folder, {shard.name for shard in shards})
        if not _is_written(folder, manifest):
            manifest.write(folder)
        remember(folder, states)
        remove_tree(folder / WORK)
        return Embedded(dataset=self.dataset, manifest=manifest, made=len(self.todo))


def sidecar_work(directory: Path, dataset: Manifest, kind: str, dtype: str, encoder_id: str) -> SidecarWork:
    """A sidecar of a dataset as its workers know it."""
    return SidecarWork(
        directory=directory,
        folder=sidecar_folder(directory, encoder_id),
        kind=kind,
        dtype=dtype,
        views=tuple(dataset.views.values()),
        shards=tuple(dataset.shards),
    )


def _is_written(folder: Path, manifest: SidecarManifest) -> bool:
    try:
        return SidecarManifest.read(folder) == manifest
    except (OSError, ValueError):
        return False


def embed(directories: Sequence[Path], tasks: Sequence[EmbedTask], pool: Pool) -> list[Embedded]:
    """Writes what is missing of the datasets' sidecars; one pool of actors does all of it, kind by kind."""
    encoders = identify(tasks, pool)
    datasets = [(directory, Manifest.read(directory)) for directory in directories]
    sidecars = [
        Sidecar(directory, dataset, task.kind, task.dtype, encoders[task.kind])
        for task in tasks
        for directory, dataset in datasets
        if needs(dataset, task.kind)
    ]
    plan_sidecars(sidecars)
    _encode(sidecars, tasks, pool)
    _assemble(sidecars)
    return [sidecar.finish() for sidecar in sidecars]


def plan_sidecars(sidecars: Sequence[Sidecar]) -> None:
    """Hashes what the items of all shards are, in tasks, and decides who encodes what."""
    works = [sidecar.work for sidecar in sidecars]
    rows = [
        {"sidecar": index, "shard": number}
        for index, sidecar in enumerate(sidecars)
        if sidecar.todo
        for number in range(len(sidecar.work.shards))
    ]
    found: dict[tuple[int, int], ShardItems] = {}
    with track("compare", len(rows), "shards") as bar:
        for row in map_rows(rows, partial(_hash_items, works=works)):
            found[row["sidecar"], row["shard"]] = ShardItems.from_row(row)
            bar.advance()
    for index, sidecar in enumerate(sidecars):
        if sidecar.todo:
            sidecar.plan([found[index, number] for number in range(len(sidecar.work.shards))])


def _hash_items(row: dict[str, Any], works: Sequence[SidecarWork]) -> dict[str, Any]:
    return row | shard_items(works[row["sidecar"]], row["shard"]).to_row()


class _Actor:
    """The actor: encodes a piece of a shard a row, and gives a row for every pack it keeps."""

    def __init__(self, tasks: Sequence[EmbedTask], sidecars: Sequence[tuple[str, SidecarWork]]) -> None:
        self._embedder, self._sidecars = ShardEmbedder(tasks), sidecars

    def __call__(self, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        dataset, work = self._sidecars[row["sidecar"]]
        piece = ShardPiece(plan=ShardPlan.from_row(row), number=row["number"], count=row["count"])
        for pack, ranks in self._embedder(work, piece):
            count(dataset, items=len(ranks))
            name = f"{pack.path.parent.name}/{pack.path.name}"
            yield {
                "sidecar": row["sidecar"],
                "shard": piece.plan.shard,
                "pack": name,
                "ranks": np.array(ranks, np.int32).tobytes(),
            }


def _encode(sidecars: Sequence[Sidecar], tasks: Sequence[EmbedTask], pool: Pool) -> None:
    rows = [row for task in tasks for row in _pieces(sidecars, task, pool.actors)]
    total = sum(len(plan.owned) for sidecar in sidecars for plan in sidecar.to_encode())
    size = max(1, min(pool.actors, len(rows)))
    actors = {
        "fn_constructor_args": (list(tasks), [(sidecar.dataset, sidecar.work) for sidecar in sidecars]),
        # An actor that has more in its queue than the next piece keeps it from one that is idle.
        "compute": ray.data.ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=2),
        "num_cpus": pool.num_cpus,
        "num_gpus": pool.num_gpus,
    }
    with track("embed", total, "embeddings", announce=bool(rows)) as bar:
        for row in stream_rows(rows, _Actor, **actors):
            ranks = np.frombuffer(row["ranks"], np.int32)
            bar.advance(sidecars[row["sidecar"]].keep(row["shard"], row["pack"], ranks))


def _pieces(sidecars: Sequence[Sidecar], task: EmbedTask, actors: int) -> Iterator[dict[str, Any]]:
    """Rows for what a task's encoder is to encode: unfinished shards, cut into pieces where these are few."""
    found = [(index, one) for index, one in enumerate(sidecars) if one.work.kind == task.kind]
    plans = [(index, plan) for index, one in found for plan in one.to_encode()]
    total = sum(len(plan.owned) for _, plan in plans)
    for index, plan in plans:
        owned = len(plan.owned)
        count = max(1, min(round(PIECES_PER_ACTOR * actors * owned / total), count_units(owned, task)))
        yield from ({"sidecar": index, "number": number, "count": count, **plan.to_row()} for number in range(count))


def _assemble(sidecars: Sequence[Sidecar]) -> None:
    works = [(sidecar.dataset, sidecar.work) for sidecar in sidecars]
    rows = [
        {"sidecar": index, **plan.to_row(), **places.to_row()}
        for index, sidecar in enumerate(sidecars)
        for plan, places in sidecar.to_assemble()
    ]
    with track("assemble", len(rows), "shards") as bar:
        for row in map_rows(rows, partial(_assemble_row, works=works)):
            sidecars[row["sidecar"]].take(row["shard"], ShardState.from_json(row["state"]))
            bar.advance()


def _assemble_row(row: dict[str, Any], works: Sequence[tuple[str, SidecarWork]]) -> dict[str, Any]:
    dataset, work = works[row["sidecar"]]
    plan = ShardPlan.from_row(row)
    state = assemble_shard(work, plan, Places.from_row(row))
    count(dataset, bytes=state.shard.bytes)
    return {"sidecar": row["sidecar"], "shard": plan.shard, "state": state.to_json()}
