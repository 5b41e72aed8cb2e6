"""Chunks of rows into part tars, and parts into exact shards: plain work on files, for a task of its own each.

A row can be rejected only once its media are read, so which rows stand in which shard is known only afterwards.
Shards are therefore put together from byte ranges of parts: nothing is decoded twice.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from pipelines.files import atomic_path, read_json, read_rows, write_json, write_rows
from pipelines.media_folder import load_rows
from pipelines.sample import Modality, Reject, Sample
from pipelines.shards import (
    INDEX_SCHEMA,
    Shard,
    TarShardWriter,
    copy_range,
    end_of_archive,
    hash_file,
    hash_members,
    hash_strings,
    index_path,
    json_range,
    members,
    shard_name,
)
from pipelines.staging import Source, part_path, staged_rows
from pipelines.state import Outcome
from pipelines.views import Kind, sidecar_items


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Rows `start` to `stop` of the accepted samples of part `part`: a slice of a shard."""

    part: int
    start: int
    stop: int


def prepare_part(source: Source, part: int, fingerprint: str, retry_rejected: bool = False) -> Outcome:
    """Loads, checks and writes the rows of one chunk as a part tar; one that is done already is not made again."""
    tar = part_path(source, part)
    done = _finished_part(tar, fingerprint)
    if done and not (retry_rejected and done.rejects):
        return done
    stand_in = source.entry.missing_media == "caption"
    results = load_rows(staged_rows(source, part), source.media, source.policy, captions_stand_in=stand_in)
    return write_part(source, part, fingerprint, results)


def write_part(source: Source, part: int, fingerprint: str, results: Iterable[Sample | Reject]) -> Outcome:
    """Writes samples as a part tar with its index, and last what became of the rows."""
    tar, kinds = part_path(source, part), [view.kind for view in source.entry.views.values()]
    index, rejects, items = [], list[Reject](), Counter[str]()
    with atomic_path(tar) as temporary, TarShardWriter(temporary) as writer:
        for result in results:
            if isinstance(result, Reject):
                rejects.append(result)
                continue
            index.append(_write_sample(writer, result))
            items.update(_count_items(result, kinds))
    write_rows(index_path(tar), index, INDEX_SCHEMA)
    outcome = Outcome(
        fingerprint=fingerprint,
        accepted=len(index),
        result=hash_strings([str(row["sha256"]) for row in index]),
        rejects=rejects,
        items=dict(items),
    )
    write_json(tar.with_suffix(".json"), asdict(outcome))
    return outcome


def is_made(source: Source, part: int, fingerprint: str) -> bool:
    """Whether the tar of a chunk is there."""
    return _finished_part(part_path(source, part), fingerprint) is not None


def assemble_shard(source: Source, index: int, pieces: Iterable[Piece]) -> Shard:
    """Copies byte ranges of parts into the shard at `index`, writes its index beside it, and returns its entry."""
    tar, rows, offset = source.directory / shard_name(index), [], 0
    digest = hashlib.sha256()
    with atomic_path(tar) as temporary, temporary.open("wb") as target:
        for piece in pieces:
            part = part_path(source, piece.part)
            slice_ = read_rows(index_path(part))[piece.start : piece.stop]
            begin = slice_[0]["offset"]
            length = slice_[-1]["offset"] + slice_[-1]["length"] - begin
            with part.open("rb") as file:  # the samples of a piece stand one after the other
                copy_range(file, target, begin, length, digest)
            shift = offset - begin
            moved = ("offset", "json_offset")
            rows += [row | {name: row[name] + shift for name in moved} for row in slice_]
            offset += length
        end = end_of_archive(offset)
        digest.update(end)
        target.write(end)
    write_rows(index_path(tar), rows, INDEX_SCHEMA)
    return Shard(
        name=tar.name,
        samples=len(rows),
        bytes=offset + len(end),
        sha256=digest.hexdigest(),
        index_sha256=hash_file(index_path(tar)),
    )


def plan_shards(accepted: Iterable[int], samples_per_shard: int) -> list[list[Piece]]:
    """Which rows of which parts make up each shard: exactly `samples_per_shard` each but the last."""
    shards: list[list[Piece]] = []
    room = 0
    for part, count in enumerate(accepted):
        start = 0
        while start < count:
            if room == 0:
                shards.append([])
                room = samples_per_shard
            stop = min(count, start + room)
            shards[-1].append(Piece(part=part, start=start, stop=stop))
            room -= stop - start
            start = stop
    return shards


def _finished_part(tar: Path, fingerprint: str) -> Outcome | None:
    done = tar.with_suffix(".json")
    if not all(path.is_file() for path in (tar, index_path(tar), done)):
        return None
    outcome = Outcome.from_fields(read_json(done))
    return outcome if outcome.fingerprint == fingerprint else None


def _write_sample(writer: TarShardWriter, sample: Sample) -> dict[str, object]:
    values = members(sample)
    offset, length = writer.write(sample.key, values)
    json_offset, json_length = json_range(values, offset)
    return {
        "key": sample.key,
        "source": sample.source,
        "caption": next((item.caption for item in sample.items() if item.caption), ""),
        "offset": offset,
        "length": length,
        "json_offset": json_offset,
        "json_length": json_length,
        "media": json.dumps(sample.meta.get("media", {}), ensure_ascii=False),
        "sha256": hash_members(values),
    }


def _count_items(sample: Sample, kinds: list[Kind]) -> dict[str, int]:
    """How many items of a sample each sidecar will hold."""
    counts = {modality.value: len(sidecar_items(sample, kinds, modality)) for modality in Modality}
    return counts | {"input": len(sidecar_items(sample, kinds, None))}
