"""Before training, every example of a view is measured once: how many tokens it takes, and the hash of its key.

An example is a sample, or a medium with one of its captions where it has several.

Ray Data reads the documents of the shards, a shard a row; no media are read. What was measured is kept beside the
shards, `<dataset>/lengths/<view>-<hash>.parquet`, a row an example, and read back while shards and measure
stay the same.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray.data

from pipelines.embed.embedding import plan_pool
from pipelines.handover.mixture import Candidates, run_starts
from pipelines.handover.stage_samples import LENGTHS, PlannedView, sidecar_of
from pipelines.progress import track
from pipelines.ray_steps import map_rows
from pipelines.sample import Sample
from pipelines.storage.files import atomic_path, is_sound, read_table
from pipelines.storage.random_access import Range, Ranges
from pipelines.storage.shards import from_members, hash_strings, index_path
from pipelines.views import apply_view, example, num_examples

# Loading a tokenizer takes an actor seconds, in which another measures about so many samples.
SAMPLES_PER_ACTOR = 10_000
SAMPLES_AT_ONCE = 10_000  # so few are measured here before an actor would have begun

# Maps a sample as its view shows it to the tokens it takes and those it would take if nothing were cut; a ValueError
# says why it cannot be encoded.
Measure = Callable[[Sample], tuple[int, int]]

# `uncut` is the length nothing were cut at; `key` and `reason` are those of samples that cannot be encoded.
SCHEMA = pa.schema(
    [
        ("length", pa.int32()),
        ("uncut", pa.int32()),
        ("key_hash", pa.uint64()),
        ("key", pa.string()),
        ("reason", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Survey:
    """The examples of a view: their tokens as the model will see them (n,), 0 where one cannot be encoded.

    `key_hashes` (n,) are of the samples' keys without the view's name; `truncated` counts the examples that are longer
    than fits; `left_out` names those that cannot be encoded, with the reason. `numbers` (n,) are the examples' own, see
    `PlannedView.number`; with `one_caption` an epoch takes one example of each sample.
    """

    lengths: npt.NDArray[np.int32]
    key_hashes: npt.NDArray[np.uint64]
    truncated: int
    left_out: list[tuple[str, str]]
    numbers: npt.NDArray[np.int64]
    one_caption: bool = False

    def split(
        self,
        weight: float,
        fraction: float,
        selected: npt.NDArray[np.bool_] | None = None,
        weights: npt.NDArray[np.float64] | None = None,
    ) -> tuple[Candidates, Candidates]:
        """The samples to train on, and about `fraction` of all that is held out of training; none that was left out.

        Of both only those `selected` (n,), and of `weights` (n,) above 0, where these are given: what is held out is
        told by the key, as ever.
        """
        apart, usable = held_out(self.key_hashes, fraction), self.lengths > 0
        usable = usable if selected is None else usable & selected
        usable = usable if weights is None else usable & (weights > 0)
        return self._candidates(usable & ~apart, weight, weights), self._candidates(usable & apart, weight, weights)

    def _candidates(
        self, mask: npt.NDArray[np.bool_], weight: float, weights: npt.NDArray[np.float64] | None
    ) -> Candidates:
        return Candidates(
            samples=self.numbers[mask],
            lengths=self.lengths[mask],
            weight=weight,
            key_hashes=self.key_hashes[mask] if self.one_caption else None,
            weights=None if weights is None else weights[mask],
        )


def held_out(key_hashes: npt.NDArray[np.uint64], fraction: float) -> npt.NDArray[np.bool_]:
    """Which samples are held out: a pure function of the key, so the same in every view and stage."""
    return key_hashes * 2.0**-64 < fraction


def hash_key(key: str) -> int:
    """The 64 bits of a sample's key that decide whether it is held out."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8])


def survey_views(views: Sequence[PlannedView], measure: Callable[[], Measure], measure_id: str) -> list[Survey]:
    """Measures the views, large ones on all cores of the cluster; what the same measure measured before is read back.

    `measure` makes a measure in each actor; `measure_id` says all that its results depend on.
    """
    tables = [_read(_cache(view, measure_id), view.manifest.num_examples) for view in views]
    todo = [number for number, table in enumerate(tables) if table is None]
    for number, table in zip(todo, _measured([views[number] for number in todo], measure), strict=True):
        tables[number] = table
        with suppress(OSError):  # the shards may lie where one may only read
            _write(_cache(views[number], measure_id), table)
    found = zip(views, tables, strict=True)
    return [_survey(view, table, not_encoded(view)) for view, table in found if table is not None]


def not_encoded(view: PlannedView) -> dict[int, tuple[str, str]]:
    """The samples of a view that hold a medium which could not be encoded, by number: key and reason of each."""
    found: dict[int, tuple[str, str]] = {}
    numbers = {shard.name: number for number, shard in enumerate(view.manifest.shards)}
    for kind in view.sidecars:
        for failure in sidecar_of(view, kind).failed:
            sample = numbers[failure.shard] * view.manifest.samples_per_shard + failure.sample
            found.setdefault(sample, (failure.key, failure.reason))
    return found


def measure_shard(view: PlannedView, shard: int, measure: Measure) -> pa.Table:
    """The rows of a shard's examples, in order."""
    tar = view.directory / view.manifest.shards[shard].name
    documents = (view.worded(shard, place, found) for place, found in enumerate(_documents(tar)))
    examples = (example(found, number) for found in documents for number in range(num_examples(found)))
    return pa.Table.from_pylist([_row(view, found, measure) for found in examples], schema=SCHEMA)


def _documents(tar: Path) -> Iterator[Sample]:
    index = read_table(index_path(tar), ["json_offset", "json_length"])
    places = zip(index["json_offset"].to_pylist(), index["json_length"].to_pylist(), strict=True)
    for data in Ranges().read([Range(tar, offset, length) for offset, length in places]):
        yield from_members({"json": data})


def _row(view: PlannedView, document: Sample, measure: Measure) -> dict[str, Any]:
    row: dict[str, Any] = {"key_hash": hash_key(document.key)}
    try:
        length, uncut = measure(apply_view(view.kind, document))
    except ValueError as error:
        return row | {"length": 0, "uncut": 0, "key": document.key, "reason": str(error)}
    return row | {"length": length, "uncut": uncut}


class _Actor:
    """The actor: measures one shard per row."""

    def __init__(self, views: Sequence[PlannedView], measure: Callable[[], Measure]) -> None:
        self._views, self._measure = views, measure()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        table = measure_shard(self._views[row["view"]], row["shard"], self._measure)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, SCHEMA) as stream:
            stream.write_table(table)
        return row | {"rows": sink.getvalue().to_pybytes()}


def _measured(views: Sequence[PlannedView], measure: Callable[[], Measure]) -> list[pa.Table]:
    """Measures each view's samples; returns their rows."""
    rows = [
        {"view": number, "shard": shard}
        for number, view in enumerate(views)
        for shard in range(len(view.manifest.shards))
    ]
    total = sum(view.manifest.num_examples for view in views)
    parts: list[dict[int, pa.Table]] = [{} for _ in views]
    with track("measure", total, "samples") as bar:
        for row in _measurements(rows, views, measure, total):
            table = parts[row["view"]][row["shard"]] = pa.ipc.open_stream(row["rows"]).read_all()
            bar.advance(len(table))
    return [pa.concat_tables([SCHEMA.empty_table(), *(found[shard] for shard in sorted(found))]) for found in parts]


def _measurements(
    rows: list[dict[str, Any]], views: Sequence[PlannedView], measure: Callable[[], Measure], samples: int
) -> Iterable[dict[str, Any]]:
    if not rows:
        return ()
    if samples <= SAMPLES_AT_ONCE:
        return map(_Actor(views, measure), rows)
    pool = plan_pool(gpus=0)
    size = max(1, min(pool.actors, len(rows), -(-samples // SAMPLES_PER_ACTOR)))
    actors = ray.data.ActorPoolStrategy(size=size)
    return map_rows(rows, _Actor, fn_constructor_args=(views, measure), compute=actors, num_cpus=pool.num_cpus)


def _cache(view: PlannedView, measure_id: str) -> Path:
    worded = [view.captions.identity] if view.captions else []
    known = hash_strings([view.name, view.kind, view.manifest.content, measure_id, *worded])
    return view.directory / LENGTHS / f"{view.name}-{known[:12]}.parquet"


def _read(path: Path, samples: int) -> pa.Table | None:
    """Reads an earlier measurement; None if there is none or it is damaged."""
    if not is_sound(path):
        return None
    table = read_table(path)
    return table if table.schema.equals(SCHEMA) and len(table) == samples else None


def _write(path: Path, table: pa.Table) -> None:
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, write_page_checksum=True)


def _survey(view: PlannedView, table: pa.Table, failed: Mapping[int, tuple[str, str]]) -> Survey:
    lengths, uncut = table["length"].to_numpy().copy(), table["uncut"].to_numpy().copy()
    key_hashes = table["key_hash"].to_numpy()
    numbers = _numbers(key_hashes, view.manifest.most_captions)
    unusable = table.filter(pc.is_valid(table["reason"]))
    samples = numbers // view.manifest.most_captions
    is_lost = np.isin(samples, list(failed)) & (lengths > 0)
    lost = set(samples[is_lost].tolist())
    lengths[is_lost] = uncut[is_lost] = 0
    return Survey(
        lengths=lengths,
        key_hashes=key_hashes,
        numbers=numbers,
        one_caption=view.name in view.manifest.one_caption,
        truncated=int(np.count_nonzero(uncut > lengths)),
        left_out=[
            *zip(unusable["key"].to_pylist(), unusable["reason"].to_pylist(), strict=True),
            *(said for sample, said in failed.items() if sample in lost),
        ],
    )


def _numbers(key_hashes: npt.NDArray[np.uint64], most_captions: int) -> npt.NDArray[np.int64]:
    """The numbers of examples that are grouped by sample."""
    every = np.arange(len(key_hashes))
    if most_captions == 1:
        return every
    starts = run_starts(key_hashes)
    samples = np.searchsorted(starts, every, side="right") - 1
    return samples * most_captions + every - starts[samples]
