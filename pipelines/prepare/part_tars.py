"""Chunks of rows into part tars, and parts into exact shards: plain work on files, for a task of its own each.

A row can be rejected only once its media are read, so which rows stand in which shard is known only afterwards.
Shards are therefore put together from byte ranges of parts: nothing is decoded twice.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from pipelines.media.folder import load_rows
from pipelines.prepare.pieces import Piece
from pipelines.prepare.staging import Source, part_path, staged_rows
from pipelines.prepare.state import CAPTIONS, MOST, Outcome, stored_rejects
from pipelines.sample import Reject, Sample
from pipelines.storage.files import (
    atomic_path,
    is_local,
    read_json,
    read_rows,
    remove_tree,
    share_file,
    write_json,
    write_rows,
)
from pipelines.storage.shards import (
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
from pipelines.views import num_examples, sidecar_counts


def prepare_part(source: Source, part: int, fingerprint: str, retry_rejected: bool = False) -> Outcome:
    """Loads, checks and writes the rows of one chunk as a part tar; one that is done already is not made again."""
    tar = part_path(source, part)
    done = _finished_part(tar, fingerprint)
    if done and not (retry_rejected and done.rejects):
        return done
    stand_in = source.entry.missing_media == "caption"
    results = load_rows(staged_rows(source, part), source.media, source.policy, stand_in, source.links)
    return write_part(source, part, fingerprint, results)


def write_part(source: Source, part: int, fingerprint: str, results: Iterable[Sample | Reject]) -> Outcome:
    """Writes samples as a part tar with its index, and last what became of the rows."""
    tar, kinds = part_path(source, part), [view.kind for view in source.entry.views.values()]
    index, rejects, items, captions = [], list[Reject](), Counter[str](), list[int]()
    with atomic_path(tar) as temporary, TarShardWriter(temporary) as writer:
        for result in results:
            if isinstance(result, Reject):
                rejects += [replace(result, source=row) for row in result.source.split("\n")]
                continue
            index.append(_write_sample(writer, result))
            items.update(sidecar_counts(result, kinds))
            captions.append(num_examples(result))
    write_rows(index_path(tar), index, INDEX_SCHEMA)
    outcome = Outcome(
        fingerprint=fingerprint,
        accepted=len(index),
        result=hash_strings([str(row["sha256"]) for row in index]),
        rejects=rejects,
        items=dict(items) | ({CAPTIONS: sum(captions), MOST: max(captions)} if max(captions, default=1) > 1 else {}),
    )
    write_json(tar.with_suffix(".json"), asdict(outcome))
    return outcome


def keep_rejects(source: Source, parts: Mapping[str, int]) -> None:
    """Puts the rejects that are remembered of chunks where `part_rejects` finds them, by the fingerprints of these."""
    remove_tree(source.work / "known")
    if parts:
        for fingerprint, rejects in stored_rejects(source.directory):
            if fingerprint in parts:
                write_json(_known_path(source, parts[fingerprint]), rejects)


def part_rejects(source: Source, part: int, fingerprint: str) -> list[Reject]:
    """The rejected rows of a chunk that was made now, or before."""
    known, done = _known_path(source, part), part_path(source, part).with_suffix(".json")
    if known.is_file():
        return [Reject(**reject) for reject in read_json(known)]
    outcome = Outcome.from_fields(read_json(done)) if done.is_file() else None
    return outcome.rejects if outcome and outcome.fingerprint == fingerprint else []


def is_made(source: Source, part: int, fingerprint: str) -> bool:
    """Whether the tar of a chunk is there."""
    return _finished_part(part_path(source, part), fingerprint) is not None


def assemble_shard(source: Source, index: int, pieces: Sequence[Piece]) -> Shard:
    """Puts the shard at `index` together from parts, writes its index beside it, and returns its entry."""
    tar = source.directory / shard_name(index)
    whole = _whole_part(source, pieces)
    if whole:  # its bytes, and those of its index, are the shard's
        share_file(whole, tar)
        share_file(index_path(whole), index_path(tar))
        digest = hash_file(tar)
    else:
        digest = _copy_pieces(source, pieces, tar)
    return Shard(
        name=tar.name,
        samples=sum(piece.stop - piece.start for piece in pieces),
        bytes=tar.stat().st_size,
        sha256=digest,
        index_sha256=hash_file(index_path(tar)),
    )


def _known_path(source: Source, part: int) -> Path:
    return source.work / "known" / f"{part:05d}.json"


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
        "caption": "\n".join(next((item.captions for item in sample.items() if item.caption), ())),
        "offset": offset,
        "length": length,
        "json_offset": json_offset,
        "json_length": json_length,
        "media": json.dumps(sample.meta.get("media", {}), ensure_ascii=False),
        "sha256": hash_members(values),
    }


def _whole_part(source: Source, pieces: Sequence[Piece]) -> Path | None:
    """The part that is the shard as it stands, if there is one, and both are on a disk of this machine."""
    part = part_path(source, pieces[0].part)
    if len(pieces) > 1 or pieces[0].start or not is_local(part):
        return None
    return part if pieces[0].stop == read_json(part.with_suffix(".json"))["accepted"] else None


def _copy_pieces(source: Source, pieces: Iterable[Piece], tar: Path) -> str:
    """Copies byte ranges of parts into a tar and their rows into its index; returns the hash of the tar."""
    rows, offset, digest = [], 0, hashlib.sha256()
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
    return digest.hexdigest()
