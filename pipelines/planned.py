"""Prepared datasets as a training stage sees them: single samples with the embeddings of their items.

Plain reading of byte ranges: no media are decoded and no encoder runs.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.mixture import Mixture
from pipelines.sample import turns_to_json
from pipelines.shards import Manifest, from_members, index_path, read_range, shard_name
from pipelines.sidecars import ENCODER, KINDS, SidecarManifest, find_sidecars, from_npy, needs, sidecar_folder
from pipelines.views import Kind, apply_view

OPEN_INDEXES = 64
# Which sidecars a kind of view reads: comprehension takes features in, generation aims at caption embeddings.
READS = {"caption": (ENCODER,), "generate": ("image", "video", "audio"), "dialogue": KINDS}

ROW_SCHEMA = pa.schema(
    [("step", pa.int64()), ("key", pa.string()), ("turns", pa.string())]
    + [(kind, pa.binary()) for kind in KINDS]
    + [(f"{kind}_lengths", pa.list_(pa.int32())) for kind in KINDS]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedView:
    """A prepared dataset as a training stage sees it, and the sidecar folders its items' embeddings come from."""

    name: str
    kind: Kind
    directory: Path
    manifest: Manifest
    sidecars: dict[str, Path]
    weight: float = 1.0


def plan_view(name: str, kind: Kind, directory: Path, weight: float, wanted: Mapping[str, str]) -> PlannedView:
    """Finds the sidecars a view needs.

    `wanted` names the encoder id to use by sidecar kind, where it is not the only one.

    Raises:
        ValueError: a sidecar is missing, out of date, or there are several and none is named.
    """
    manifest = Manifest.read(directory)
    sidecars = {k: _choose(directory, manifest, k, wanted.get(k)) for k in READS[kind] if needs(manifest, k)}
    return PlannedView(name=name, kind=kind, directory=directory, manifest=manifest, sidecars=sidecars, weight=weight)


def _choose(directory: Path, manifest: Manifest, kind: str, wanted: str | None) -> Path:
    found = find_sidecars(directory, kind)
    usable = {name: sidecar for name, sidecar in found.items() if wanted is None or name == wanted}
    command = f"jobs/embed.py --shards {directory.parent} --modality {kind}"
    if not usable:
        what = f"by {wanted}" if wanted else "at all"
        raise ValueError(f"{directory}: has no {kind} embeddings {what}; run {command}")
    if len(usable) > 1:
        raise ValueError(
            f"{directory}: {kind} embeddings by several encoders ({', '.join(usable)}); "
            f"name one with sidecars.{kind}=ID"
        )
    (name, sidecar), *_ = usable.items()
    if sidecar.of_shards != [shard.sha256 for shard in manifest.shards]:
        raise ValueError(f"{directory}: the {kind} embeddings {name} are of other shards than these; run {command}")
    return sidecar_folder(directory, name)


def sidecar_of(view: PlannedView, kind: str) -> SidecarManifest:
    """The manifest of one of a view's sidecars."""
    return SidecarManifest.read(view.sidecars[kind])


@dataclass(kw_only=True)
class SampleReader:
    """Reads single samples by their number in a view: byte ranges of the tar and of its sidecars."""

    views: list[PlannedView]
    _indexes: "OrderedDict[Path, pa.Table]" = field(default_factory=OrderedDict)

    def read(self, view_index: int, sample_index: int) -> dict[str, Any]:
        """One sample as a row: `key`, `turns` (JSON) and, by sidecar kind, `.npy` bytes and caption lengths."""
        view = self.views[view_index]
        shard, place = divmod(sample_index, view.manifest.samples_per_shard)
        tar = view.directory / shard_name(shard)
        entry = self._entry(index_path(tar), place)
        document = read_range(tar, entry["json_offset"], entry["json_length"])
        sample = apply_view(view.kind, from_members({"json": document}))
        row: dict[str, Any] = {"key": f"{view.name}/{entry['key']}", "turns": turns_to_json(sample.turns)}
        for kind in KINDS:
            row |= self._embeddings(view, kind, shard_name(shard), place, entry["key"])
        return row

    def _embeddings(self, view: PlannedView, kind: str, name: str, place: int, key: str) -> dict[str, Any]:
        if kind not in view.sidecars:
            return {kind: b"", f"{kind}_lengths": []}
        tar = view.sidecars[kind] / name
        entry = self._entry(index_path(tar), place)
        if entry["key"] != key:
            raise ValueError(
                f"{tar}: sample {place} is {entry['key']}, expected {key}; delete it and run jobs/embed.py"
            )
        data = read_range(tar, entry["offset"], entry["length"])
        return {kind: data, f"{kind}_lengths": entry["lengths"]}

    def _entry(self, path: Path, place: int) -> dict[str, Any]:
        if path not in self._indexes:
            self._indexes[path] = pq.read_table(path)
            if len(self._indexes) > OPEN_INDEXES:
                self._indexes.popitem(last=False)
        return self._indexes[path].slice(place, 1).to_pylist()[0]


class ReadSteps:
    """A Ray Data step: from step numbers to the samples one rank takes at those steps, in order."""

    def __init__(self, mixture: Mixture, views: list[PlannedView], rank: int, world_size: int) -> None:
        self._mixture = mixture
        self._reader = SampleReader(views=views)
        self._rank = rank
        self._world_size = world_size

    def __call__(self, batch: dict[str, Any]) -> Iterator[pa.Table]:
        """Yields one table a step; a step at which this rank has no sample gives none."""
        for step in batch["id"]:
            pairs = self._mixture.rank_batch(int(step), self._rank, self._world_size)
            rows = [self._reader.read(view, sample) | {"step": int(step)} for view, sample in pairs]
            if rows:
                yield pa.Table.from_pylist(rows, schema=ROW_SCHEMA)


def sample_embeddings(views: list[PlannedView], kind: str, limit: int) -> Iterator[tuple[Any, list[int]]]:
    """Caption embeddings (num_items, L, D) with lengths of about `limit` samples, spread evenly over the views."""
    reader = SampleReader(views=views)
    having = [index for index, view in enumerate(views) if kind in view.sidecars]
    for index in having:
        count = views[index].manifest.samples
        for sample in range(0, count, max(1, count * len(having) // limit)):
            row = reader.read(index, sample)
            if row[f"{kind}_lengths"]:
                yield from_npy(row[kind]), row[f"{kind}_lengths"]
