"""Prepared datasets as a training stage sees them: single samples with the embeddings of their items.

It only reads byte ranges: no media are decoded, and no encoder runs.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.handover.mixture import Plan
from pipelines.sample import Modality, Sample, turns_to_json
from pipelines.storage.new_captions import NewCaptions, find_new_captions, shard_identities
from pipelines.storage.precision import record_type
from pipelines.storage.random_access import IndexEntry, Indexes, Ranges
from pipelines.storage.shards import Manifest, from_members
from pipelines.storage.sidecars import (
    ENCODER,
    LATENTS,
    NOT_ENCODED,
    ROW_KINDS,
    SidecarManifest,
    embed_command,
    find_sidecars,
    from_npy,
    needs,
    output_modality,
    sidecar_folder,
    takes_media,
    to_npy,
    with_zeros,
)
from pipelines.views import CaptionChoice, Kind, apply_view, example, num_examples

# Which sidecars of captions a kind of view reads, and which views take features of input items in.
_CAPTIONS = tuple(modality.value for modality in Modality)
READS: Mapping[Kind, tuple[str, ...]] = {"caption": (), "generate": _CAPTIONS, "dialogue": _CAPTIONS}
TAKES_FEATURES = ("caption", "dialogue")

# The folder below a dataset's where the lengths of its samples are kept, see `survey.py`; no part of the data.
LENGTHS = "lengths"

ROW_SCHEMA = pa.schema(
    [("step", pa.int64()), ("micro", pa.int64()), ("key", pa.string()), ("turns", pa.string())]
    + [("system", pa.list_(pa.string()))]
    + [(kind, pa.binary()) for kind in ROW_KINDS]
    + [(f"{kind}_lengths", pa.list_(pa.int32())) for kind in ROW_KINDS]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedView:
    """A prepared dataset as a training stage sees it, and the sidecar folders its items' embeddings come from.

    Where media have several captions, a medium with one of them is an example, and example c of sample s is called by
    the number s * most_captions + c; elsewhere an example is a sample. With new `captions`, `manifest` counts these.
    """

    name: str
    kind: Kind
    directory: Path
    manifest: Manifest
    sidecars: dict[str, Path]
    weight: float = 1.0
    captions: NewCaptions | None = None

    def number(self, sample: int, caption: int = 0) -> int:
        """The number of an example."""
        return sample * self.manifest.most_captions + caption

    def worded(self, shard: int, place: int, sample: Sample) -> Sample:
        """A sample of a shard with the captions that it is seen with."""
        return sample if self.captions is None else self.captions.worded(shard, place, sample)


def plan_view(
    name: str,
    kind: Kind,
    directory: Path,
    weight: float,
    wanted: Mapping[str, str],
    denoised: Collection[Modality] = (),
    features: Sequence[str] = (ENCODER,),
    captions: CaptionChoice = "original",
) -> PlannedView:
    """Finds the sidecars that a view needs.

    `wanted` names the encoder id to use by sidecar kind, where it is not the only one. Of the `denoised` modalities,
    the latents are read as well. `features` are the kinds that hold what the model's encoders make of input items.
    `captions` are those that a pair is seen with; a dialogue has its own.

    Raises:
        ValueError: a sidecar is missing, out of date, or there are several and none is named; or there are no new
            captions.
    """
    manifest = Manifest.read(directory)
    new = find_new_captions(directory, manifest, "original" if kind == "dialogue" else captions)
    latents = [k for k in LATENTS if output_modality(k) in denoised and output_modality(k) in READS[kind]]
    taken = features if kind in TAKES_FEATURES else ()
    reads = [k for k in (*READS[kind], *taken, *latents) if needs(manifest, k)]
    sidecars = {k: _choose(directory, manifest, k, wanted.get(k), None if takes_media(k) else new) for k in reads}
    return PlannedView(
        name=name,
        kind=kind,
        directory=directory,
        manifest=new.counted(manifest) if new else manifest,
        sidecars=sidecars,
        weight=weight,
        captions=new,
    )


def _choose(directory: Path, manifest: Manifest, kind: str, wanted: str | None, new: NewCaptions | None) -> Path:
    choice = new.choice if new else "original"
    found = {name: one for name, one in find_sidecars(directory, kind).items() if one.captions == choice}
    usable = {name: sidecar for name, sidecar in found.items() if wanted is None or name == wanted}
    command = embed_command(directory.parent, kind) + (f" --which-captions {choice}" if new else "")
    if not usable:
        what = f"by {wanted}" if wanted else f"of captions: {choice}" if new else "at all"
        raise ValueError(f"{directory}: has no {kind} embeddings {what}; run {command}")
    if len(usable) > 1:
        raise ValueError(
            f"{directory}: {kind} embeddings by several encoders ({', '.join(usable)}); "
            f"name one with sidecars.{kind}=ID"
        )
    (name, sidecar), *_ = usable.items()
    if sidecar.of_shards != shard_identities(manifest, new):
        what = "shards or new captions" if new else "shards"
        raise ValueError(f"{directory}: the {kind} embeddings {name} are of other {what} than these; run {command}")
    return sidecar_folder(directory, name)


def sidecar_of(view: PlannedView, kind: str) -> SidecarManifest:
    """The manifest of one of a view's sidecars."""
    return SidecarManifest.read(view.sidecars[kind])


class SampleReader:
    """Reads single examples by their number in a view: byte ranges of the tar and of its sidecars."""

    def __init__(self, views: Sequence[PlannedView]) -> None:
        self._views = views
        # Made once: joining and hashing paths would take a third of the time of a read.
        self._tars = [[view.directory / shard.name for shard in view.manifest.shards] for view in views]
        self._sidecars = [
            {kind: [folder / shard.name for shard in view.manifest.shards] for kind, folder in view.sidecars.items()}
            for view in views
        ]
        # Bytes of a whole embedding, and its positions: of captions, those that are zeros are not stored.
        self._whole = [{kind: _whole(view, kind) for kind in view.sidecars} for view in views]
        self._samples = Indexes("json_offset", "json_length")
        self._embeddings = Indexes("offset", "length", "lengths")
        self._ranges = Ranges()

    def read(self, view: int, number: int) -> dict[str, Any]:
        """One example as a row: `key`, `turns` (JSON), `system`, and by sidecar kind `.npy` bytes and lengths."""
        return self.read_all([(view, number)])[0]

    def read_all(self, pairs: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
        """The examples at (view, number), as rows in the order given."""
        places = [divmod(number, self._views[view].manifest.most_captions) for view, number in pairs]
        entries = [self._entries(view, sample) for (view, _), (sample, _) in zip(pairs, places, strict=True)]
        data = iter(self._ranges.read([entry.range for found in entries for entry in found.values()]))
        return [
            _row(self._views[view], found, self._filled(view, found, {name: next(data) for name in found}), *place)
            for (view, _), place, found in zip(pairs, places, entries, strict=True)
        ]

    def _filled(self, view: int, entries: Mapping[str, IndexEntry], data: dict[str, bytes]) -> dict[str, bytes]:
        """What was read, each embedding with all its positions."""
        for kind, (size, positions) in self._whole[view].items():
            if not takes_media(kind):
                data[kind] = with_zeros(data[kind], size * len(entries[kind].lengths), positions)
        return data

    def _entries(self, view: int, sample: int) -> dict[str, IndexEntry]:
        """Where the sample's document (`json`) and its embeddings (by kind) stand."""
        shard, place = divmod(sample, self._views[view].manifest.samples_per_shard)
        document = self._samples.entry(self._tars[view][shard], place)
        found = {"json": document}
        for kind, tars in self._sidecars[view].items():
            found[kind] = self._embeddings.entry(tars[shard], place)
            if found[kind].key != document.key:
                raise ValueError(
                    f"{tars[shard]}: sample {place} is {found[kind].key}, expected {document.key}; "
                    "delete it and run jobs/embed.py"
                )
            if NOT_ENCODED in found[kind].lengths:
                raise ValueError(f"{tars[shard]}: {document.key} has a medium that could not be encoded; leave it out")
        return found


def _whole(view: PlannedView, kind: str) -> tuple[int, int]:
    """The bytes of one of a sidecar's embeddings with all its positions, and how many these are."""
    manifest = sidecar_of(view, kind)
    return record_type(manifest.dtype, manifest.shape).itemsize, manifest.shape[0] if manifest.shape else 0


def _row(
    view: PlannedView, entries: Mapping[str, IndexEntry], data: Mapping[str, bytes], number: int, caption: int
) -> dict[str, Any]:
    document = view.worded(*divmod(number, view.manifest.samples_per_shard), from_members({"json": data["json"]}))
    sample = apply_view(view.kind, example(document, caption))
    row: dict[str, Any] = {
        "key": f"{view.name}/{entries['json'].key}",
        "turns": turns_to_json(sample.turns),
        "system": list(sample.system),
    }
    has_several = num_examples(document) > 1
    for kind in ROW_KINDS:
        row[kind] = data.get(kind, b"")
        row[f"{kind}_lengths"] = entries[kind].lengths if kind in entries else []
        if has_several and kind in entries and not takes_media(kind):
            row[kind] = to_npy(from_npy(row[kind])[caption : caption + 1])
            row[f"{kind}_lengths"] = row[f"{kind}_lengths"][caption : caption + 1]
    return row


class ReadSteps:
    """A Ray Data step: from step numbers to the samples one rank takes at those steps, in order."""

    def __init__(self, plan: Plan, views: list[PlannedView], rank: int, world_size: int) -> None:
        self._plan = plan
        self._reader = SampleReader(views=views)
        self._rank = rank
        self._world_size = world_size

    def __call__(self, batch: dict[str, Any]) -> Iterator[pa.Table]:
        """Yields one table per step, and none for a step without samples for this rank."""
        for step in batch["id"]:
            places = self._plan.rank_batch(int(step), self._rank, self._world_size)
            found = self._reader.read_all([(view, number) for _, view, number in places])
            rows = [{"step": int(step), "micro": micro} | row for (micro, *_), row in zip(places, found, strict=True)]
            if rows:
                yield pa.Table.from_pylist(rows, schema=ROW_SCHEMA)


def sample_embeddings(views: list[PlannedView], kind: str, limit: int) -> Iterator[tuple[Any, list[int]]]:
    """Caption embeddings (num_items, L, D) with lengths of about `limit` samples, spread evenly over the views."""
    reader = SampleReader(views=views)
    having = [index for index, view in enumerate(views) if kind in view.sidecars]
    for index in having:
        count = views[index].manifest.samples
        for sample in range(0, count, max(1, count * len(having) // limit)):
            row = reader.read(index, views[index].number(sample))
            if row[f"{kind}_lengths"]:
                yield from_npy(row[kind]), row[f"{kind}_lengths"]
