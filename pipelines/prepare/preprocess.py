"""From a catalog entry to exact shards, on Ray Data: chunks of rows become parts, parts become shards.

Neither the number of workers nor a crash changes a byte, and a rerun does only what is missing or has changed: see
`staging` for what is compared, `part_tars` for the work itself, `state` for what is remembered.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import chain, islice
from typing import Any

import ray

from pipelines.prepare.ledger import check_rejected
from pipelines.prepare.part_tars import assemble_shard, is_made, keep_rejects, part_rejects, prepare_part
from pipelines.prepare.pieces import Piece, plan_pieces
from pipelines.prepare.reading import in_process
from pipelines.prepare.staging import Source, Staged, part_path, source_stamp, stage_rows, staged_media
from pipelines.prepare.state import CAPTIONS, MOST, PartSummary, State, StoredShard, finished
from pipelines.progress import track
from pipelines.ray_steps import count, map_rows
from pipelines.sample import Modality
from pipelines.storage.files import remove_tree, stamp, write_many_rows
from pipelines.storage.shards import (
    MANIFEST,
    REJECT_SCHEMA,
    REJECTS,
    Manifest,
    Shard,
    hash_file,
    hash_strings,
    remove_others,
    shard_name,
)

WAITING_TASKS = 1000
_FEW_REJECTS = 1 << 14
_REJECTS_AT_ONCE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A finished dataset, how many shards were written now, and what that took."""

    manifest: Manifest
    shards: int
    rows: int
    bytes: int
    seconds: float


def prepare(source: Source, max_rejected: float = 1.0, retry_rejected: bool = False) -> Prepared:
    """Writes what is missing of a dataset's shards, or has changed.

    With `retry_rejected`, chunks with rejected rows are made again though nothing they are made from has changed.

    Raises:
        TooManyRejected: more than this share of the rows is rejected, with the three commonest reasons.
    """
    started = time.monotonic()
    source.directory.mkdir(parents=True, exist_ok=True)
    manifest = finished(source)
    if manifest and not (retry_rejected and _has_media_rejects(source)):
        remove_tree(source.work)
        check_rejected(manifest.dataset, manifest.rows, manifest.rejected, max_rejected)
        return Prepared(manifest=manifest, shards=0, rows=0, bytes=0, seconds=time.monotonic() - started)
    (source.directory / MANIFEST).unlink(missing_ok=True)
    stamped = source_stamp(source.path)
    with track(f"{source.entry.name}: read", None, "rows") as bar:
        staged = stage_rows(source, bar, run=map_rows)
    state = State.read(source.directory)
    outcomes, rows = _outcomes(source, staged, state, retry_rejected)
    rejected = _write_rejects(source, staged, outcomes)
    check_rejected(source.entry.name, staged.rows, rejected, max_rejected)
    shards, made = _shards(source, staged, outcomes, state)
    state = State(
        settings=source.settings,
        source=stamped,
        outcomes=outcomes,
        shards=shards,
        rejects=stamp(source.directory / REJECTS),
    )
    manifest = _finish(source, staged, rejected, state)
    written = sum(shards[name].shard.bytes for name in made)
    return Prepared(manifest=manifest, shards=len(made), rows=rows, bytes=written, seconds=time.monotonic() - started)


def assemble_shards(source: Source, plan: Mapping[int, list[Piece]]) -> Iterator[Shard]:
    """Puts shards together, a Ray task each, in whatever order they end.

    Plain tasks: they move files and hand no rows on, so that an execution of Ray Data would only add its start.
    """
    task, left, running = ray.remote(assemble_shard), iter(plan.items()), list[Any]()
    try:
        while running := running + [task.remote(source, *job) for job in islice(left, WAITING_TASKS - len(running))]:
            (done,), running = ray.wait(running)
            yield ray.get(done)
    finally:
        for reference in running:
            ray.cancel(reference)


def _outcomes(
    source: Source, staged: Staged, state: State | None, retry_rejected: bool
) -> tuple[list[PartSummary], int]:
    """What became of every chunk, and how many rows were worked on now; known chunks are not made again."""
    known = {outcome.fingerprint: outcome for outcome in state.outcomes} if state else {}
    outcomes = [known.get(chunk.fingerprint) for chunk in staged.chunks]
    if retry_rejected:
        outcomes = [None if outcome and outcome.rejected else outcome for outcome in outcomes]
    todo = [part for part, outcome in enumerate(outcomes) if outcome is None]
    keep_rejects(source, {outcome.fingerprint: part for part, outcome in enumerate(outcomes) if outcome})
    made = _run_parts(source, staged, todo, retry_rejected)
    complete = [outcome or made[part] for part, outcome in enumerate(outcomes)]
    return complete, sum(staged.chunks[part].rows for part in todo)


def _shards(
    source: Source, staged: Staged, outcomes: list[PartSummary], state: State | None
) -> tuple[dict[str, StoredShard], list[str]]:
    """All shards by name, and the names of those that had to be put together now."""
    plan = plan_pieces([outcome.accepted for outcome in outcomes], source.samples_per_shard)
    recipes = {shard_name(index): _recipe(outcomes, pieces) for index, pieces in enumerate(plan)}
    shards = {
        name: state.shards[name]
        for name, recipe in recipes.items()
        if state and state.holds(source.directory, name, recipe)
    }
    todo = [index for index in range(len(plan)) if shard_name(index) not in shards]
    parts = sorted({piece.part for index in todo for piece in plan[index]})
    missing = [part for part in parts if not is_made(source, part, staged.chunks[part].fingerprint)]
    for part, outcome in _run_parts(source, staged, missing, False).items():
        if outcome.result != outcomes[part].result:
            raise ValueError(f"{source.entry.name}: media changed while they were read; run it again")
    with track(f"{source.entry.name}: write", len(todo), "shards") as bar:
        for shard in assemble_shards(source, {index: plan[index] for index in todo}):
            shards[shard.name] = StoredShard.at(source.directory, shard, recipes[shard.name])
            bar.advance(1)
    return {name: shards[name] for name in recipes}, [shard_name(index) for index in todo]


def _run_parts(source: Source, staged: Staged, parts: list[int], retry_rejected: bool) -> dict[int, PartSummary]:
    chunks = [{"part": part, "fingerprint": staged.chunks[part].fingerprint} for part in parts]

    def work(chunk: dict[str, Any]) -> dict[str, Any]:
        outcome = prepare_part(source, chunk["part"], chunk["fingerprint"], retry_rejected)
        size = part_path(source, chunk["part"]).stat().st_size
        count(source.entry.name, rows=outcome.accepted, rejects=len(outcome.rejects), bytes=size)
        return {"part": chunk["part"], "outcome": json.dumps(asdict(outcome.summary))}

    outcomes = {}
    with track(f"{source.entry.name}: prepare", sum(staged.chunks[part].rows for part in parts), "rows") as bar:
        for row in map_rows(chunks, work):
            outcome = outcomes[row["part"]] = PartSummary(**json.loads(row["outcome"]))
            samples = staged.chunks[row["part"]].rows
            bar.advance(samples, rejected=samples - outcome.accepted)
    return outcomes


def _write_rejects(source: Source, staged: Staged, outcomes: list[PartSummary]) -> dict[str, int]:
    """Writes the rows that were rejected, in a task where there are many; returns how many for which reason."""
    rejected = Counter(staged.rejected)
    for outcome in outcomes:
        rejected.update(outcome.rejected)
    parts = [(part, outcome.fingerprint) for part, outcome in enumerate(outcomes) if outcome.rejected]

    def work(row: dict[str, Any]) -> dict[str, Any]:
        rejects = chain(staged.rejects(), chain.from_iterable(part_rejects(source, *part) for part in parts))
        write_many_rows(source.directory / REJECTS, map(asdict, rejects), REJECT_SCHEMA, _REJECTS_AT_ONCE)
        return row

    list((map_rows if rejected.total() > _FEW_REJECTS else in_process)([{"part": 0}], work))
    return dict(sorted(rejected.items()))


def _recipe(outcomes: list[PartSummary], pieces: list[Piece]) -> str:
    """A hash of what a shard is put together from: equal recipes give equal bytes."""
    return hash_strings([f"{outcomes[piece.part].result} {piece.start} {piece.stop}" for piece in pieces])


def _finish(source: Source, staged: Staged, rejected: dict[str, int], state: State) -> Manifest:
    """Clears away what is left of earlier runs, then writes the memory and, last, the manifest."""
    directory, items = source.directory, Counter[str]()
    for outcome in state.outcomes:
        items.update(outcome.items)
    entries = [stored.shard for stored in state.shards.values()]
    samples = sum(shard.samples for shard in entries)
    manifest = Manifest(
        dataset=source.entry.name,
        rows=staged.rows,
        samples=samples,
        samples_per_shard=source.samples_per_shard,
        rejected=rejected,
        shards=entries,
        views={name: view.kind for name, view in source.entry.views.items()},
        output_items={modality.value: items[modality] for modality in Modality if items[modality]},
        input_items=items["input"],
        licence=source.entry.licence,
        source=source.entry.source,
        stages={name: view.stage for name, view in source.entry.views.items()},
        media_policy=source.policy.model_dump(mode="json"),
        rejects_sha256=hash_file(directory / REJECTS),
        **_captions(state.outcomes),
        one_caption=[name for name, view in source.entry.views.items() if view.captions == "one"],
        where={name: view.where for name, view in source.entry.views.items() if view.where},
    )
    remove_others(directory, set(state.shards))
    # A shard may be a part by another name: when the part goes, the stamp of both changes. Killed in between, the
    # first memory is good enough: content decides where stamps differ.
    chunks = (
        (chunk, part_rejects(source, part, chunk.fingerprint), staged_media(source, part))
        for part, chunk in enumerate(staged.chunks)
    )
    state.write(directory, chunks)
    remove_tree(source.work)
    state.restamp(directory)
    manifest.write(directory)
    return manifest


def _captions(outcomes: list[PartSummary]) -> dict[str, int]:
    """How many captions there are, and the most of a medium; nothing where none has several."""
    most = max((outcome.items.get(MOST, 1) for outcome in outcomes), default=1)
    captions = sum(outcome.items.get(CAPTIONS, outcome.accepted) for outcome in outcomes)
    return {"captions": captions, "most_captions": most} if most > 1 else {}


def _has_media_rejects(source: Source) -> bool:
    state = State.read(source.directory)
    return state is None or any(outcome.rejected for outcome in state.outcomes)
