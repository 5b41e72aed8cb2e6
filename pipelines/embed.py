"""Embeds a dataset's captions or media into sidecar shards, on a pool of Ray Data actors that each load one model.

Equal captions (or media) of a dataset are encoded once: tasks hash what each shard's items are, the driver gives each
distinct item to the first shard that has it, actors encode what shards own, and tasks put the shards that share items
together. A dataset's sidecar so depends on the dataset and the encoder alone, not on the actors or on other datasets.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.data

from pipelines import metrics
from pipelines.files import remove_tree
from pipelines.ownership import ShardItems, ShardPlan, assign
from pipelines.progress import track
from pipelines.shard_embedder import EmbedTask, Encoder, ShardEmbedder, shard_items
from pipelines.shards import MANIFEST, Manifest, index_path, remove_others
from pipelines.sidecar_shards import (
    WORK,
    ShardState,
    SidecarWork,
    assemble_shard,
    finished_shards,
    remember,
)
from pipelines.sidecars import SidecarManifest, needs, sidecar_folder
from pipelines.storage import Loss


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


class Sidecar:
    """A dataset's sidecar in the making: which shards are there, which are to do, who encodes what."""

    def __init__(self, directory: Path, dataset: Manifest, kind: str, dtype: str, encoder: EncoderIdentity) -> None:
        self.dataset, self._encoder = dataset.dataset, encoder
        self.work = sidecar_work(directory, dataset, kind, dtype, encoder.id)
        self._states = finished_shards(self.work)
        self.todo = [number for number in range(len(dataset.shards)) if number not in self._states]
        self._plans: list[ShardPlan] = []
        if self.todo:
            self._begin()

    def _begin(self) -> None:
        """Takes the marks off what is not finished, so that no worker takes it for finished."""
        (self.work.folder / MANIFEST).unlink(missing_ok=True)
        remember(self.work.folder, self._states.values())
        for number in self.todo:
            index_path(self.work.target(number)).unlink(missing_ok=True)

    def plan(self, items: Sequence[ShardItems]) -> None:
        """Decides who encodes what, from the items of all shards."""
        self._plans = assign(items)

    def to_encode(self) -> list[ShardPlan]:
        """The unfinished shards that have something to encode, or nothing at all to hold."""
        plans = [self._plans[number] for number in self.todo]
        return [plan for plan in plans if len(plan.owned) or not plan.borrows]

    def to_assemble(self) -> list[ShardPlan]:
        """The unfinished shards that hold what other shards encode."""
        return [self._plans[number] for number in self.todo if self._plans[number].borrows]

    @property
    def packed(self) -> frozenset[int]:
        """The shards whose own embeddings lie in packs while they are put together."""
        return frozenset(plan.shard for plan in self.to_assemble() if len(plan.owned))

    def take(self, number: int, state: ShardState) -> None:
        """Notes a shard that is finished."""
        if state.shard:
            self._states[number] = state

    def finish(self) -> Embedded:
        """Writes the manifest, and then what this machine remembers."""
        states = [self._states[number] for number in range(len(self.work.shards))]
        shards = [state.shard for state in states if state.shard]
        loss = Loss()
        for state in states:
            loss = loss.worse(state.loss)
        manifest = SidecarManifest(
            kind=self.work.kind,
            encoder_id=self._encoder.id,
            encoder_name=self._encoder.name,
            untrained=self._encoder.untrained,
            shape=next((state.shape for state in states if state.items), []),
            dtype=self.work.dtype,
            items=sum(state.items for state in states),
            shards=shards,
            of_shards=[shard.sha256 for shard in self.work.shards],
            max_error=loss.max_error,
            min_cosine=loss.min_cosine,
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
    """The actor: encodes what one shard owns a row, and counts it."""

    def __init__(self, tasks: Sequence[EmbedTask], sidecars: Sequence[tuple[str, SidecarWork]]) -> None:
        self._embedder, self._sidecars = ShardEmbedder(tasks), sidecars

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        dataset, work = self._sidecars[row["sidecar"]]
        plan = ShardPlan.from_row(row)
        state = self._embedder(work, plan)
        metrics.count(dataset, items=len(plan.owned), bytes=state.shard.bytes if state.shard else 0)
        return {"sidecar": row["sidecar"], "shard": plan.shard, "items": len(plan.owned), "state": state.to_json()}


def _encode(sidecars: Sequence[Sidecar], tasks: Sequence[EmbedTask], pool: Pool) -> None:
    plans = [(index, plan) for index, sidecar in enumerate(sidecars) for plan in sidecar.to_encode()]
    rows = [{"sidecar": index, **plan.to_row()} for index, plan in plans]
    actors = {
        "fn_constructor_args": (list(tasks), [(sidecar.dataset, sidecar.work) for sidecar in sidecars]),
        "compute": ray.data.ActorPoolStrategy(size=max(1, min(pool.actors, len(rows)))),
        "num_cpus": pool.num_cpus,
        "num_gpus": pool.num_gpus,
    }
    with track("embed", sum(len(plan.owned) for _, plan in plans), "embeddings") as bar:
        for row in map_rows(rows, _Actor, **actors):
            sidecars[row["sidecar"]].take(row["shard"], ShardState.from_json(row["state"]))
            bar.advance(row["items"])


def _assemble(sidecars: Sequence[Sidecar]) -> None:
    works = [(sidecar.dataset, sidecar.work, sidecar.packed) for sidecar in sidecars]
    rows = [
        {"sidecar": index, **plan.to_row()} for index, sidecar in enumerate(sidecars) for plan in sidecar.to_assemble()
    ]
    with track("assemble", len(rows), "shards") as bar:
        for row in map_rows(rows, partial(_assemble_row, works=works)):
            sidecars[row["sidecar"]].take(row["shard"], ShardState.from_json(row["state"]))
            bar.advance()


def _assemble_row(row: dict[str, Any], works: Sequence[tuple[str, SidecarWork, frozenset[int]]]) -> dict[str, Any]:
    dataset, work, packed = works[row["sidecar"]]
    plan = ShardPlan.from_row(row)
    state = assemble_shard(work, plan, packed)
    metrics.count(dataset, bytes=state.shard.bytes if state.shard else 0)
    return {"sidecar": row["sidecar"], "shard": plan.shard, "state": state.to_json()}


def map_rows(rows: list[dict[str, Any]], step: Callable[..., Any], **options: Any) -> Iterator[dict[str, Any]]:
    """A step on every row, a task a row, in any order."""
    if rows:
        yield from ray.data.from_items(rows, override_num_blocks=len(rows)).map(step, **options).iter_rows()
