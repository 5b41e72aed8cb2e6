"""From a catalog entry to shards: rows are staged in chunks, chunks become parts, parts become exact shards.

A row can be rejected only once its media are read, so which rows stand in which shard is known only afterwards.
Chunks of rows are therefore preprocessed into part tars (in parallel, on Ray Data), and the shards are put
together from byte ranges of the parts: nothing is decoded twice, and neither the number of workers nor a crash
changes a byte. A part that is finished is not made again.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import ray
import ray.data

from pipelines.catalog import Entry
from pipelines.files import atomic_path, read_json, read_rows, remove_tree, write_json, write_rows
from pipelines.media_folder import load_media, state_of
from pipelines.progress import track
from pipelines.readers import READERS
from pipelines.sample import Modality, Reject, Sample, turns_from_json, turns_to_json
from pipelines.shards import (
    INDEX_SCHEMA,
    MANIFEST,
    REJECT_SCHEMA,
    REJECTS,
    Manifest,
    Shard,
    TarShardWriter,
    copy_range,
    end_of_archive,
    hash_members,
    hash_strings,
    index_path,
    is_whole,
    json_range,
    members,
    remove_others,
    shard_name,
)
from pipelines.views import sidecar_items

WORK = ".work"
# What a dataset was made from, as this machine sees it; beside the manifest, which is the same on every machine.
STATE = "source.json"
# Raised when the same input would give other bytes, so that nothing old is taken for finished.
PREPROCESS_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where one dataset's rows and media lie, and where its shards go."""

    entry: Entry
    path: Path
    media: Path | None
    directory: Path
    samples_per_shard: int

    @property
    def work(self) -> Path:
        """The folder of unfinished work; gone once the manifest is written."""
        return self.directory / WORK


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Rows `start` to `stop` of the accepted samples of part `part`: a slice of a shard."""

    part: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """Rows laid out for preprocessing: how many, each chunk's fingerprint, and the rejects found while reading (JSON).

    A fingerprint covers the settings, a chunk's rows and the size and time of the media they name.
    """

    rows: int
    fingerprints: list[str]
    rejects: list[str]


def prepare(source: Source) -> tuple[Manifest, bool]:
    """Writes a dataset's shards; returns its manifest and whether anything had to be made."""
    source.directory.mkdir(parents=True, exist_ok=True)
    staged = stage_rows(source)
    fingerprint = hash_strings([*_settings(source), *staged.fingerprints, *staged.rejects])
    finished = _finished(source.directory, fingerprint)
    if finished:
        remove_tree(source.work)
        return finished, False
    (source.directory / MANIFEST).unlink(missing_ok=True)
    _run_parts(source, staged)
    shards = _run_shards(source, len(staged.fingerprints))
    return _finish(source, fingerprint, shards, staged), True


def stage_rows(source: Source) -> Staged:
    """Reads the source once, in order, and lays its rows out in chunk files of `samples_per_shard` rows."""
    fingerprints, rejects, seen, chunk = list[str](), list[str](), set[str](), list[Sample]()
    remove_tree(source.work / "rows")
    for row in READERS[source.entry.reader](source.entry, source.path):
        if isinstance(row, Sample) and row.key in seen:
            row = Reject(source=row.source, key=row.key, stage="read", reason="duplicate key")
        if isinstance(row, Reject):
            rejects.append(json.dumps(asdict(row), ensure_ascii=False))
            continue
        seen.add(row.key)
        chunk.append(row)
        if len(chunk) == source.samples_per_shard:
            fingerprints.append(_stage_chunk(source, len(fingerprints), chunk))
            chunk = []
    if chunk:
        fingerprints.append(_stage_chunk(source, len(fingerprints), chunk))
    return Staged(rows=len(seen), fingerprints=fingerprints, rejects=rejects)


def prepare_part(source: Source, part: int, fingerprint: str) -> dict[str, int]:
    """Loads, checks and writes the rows of one chunk as a part tar; returns the number of accepted and rejected."""
    tar = _part_path(source, part)
    done = tar.with_suffix(".json")
    if all(path.is_file() for path in (tar, index_path(tar), done)) and read_json(done)["fingerprint"] == fingerprint:
        return read_json(done)["counts"]
    index, rejects = [], []
    with atomic_path(tar) as temporary, TarShardWriter(temporary) as writer:
        for row in _staged_rows(source, part):
            try:
                sample = load_media(row, source.media)
            except (ValueError, OSError) as error:
                reason = str(error).splitlines()[0]
                rejects.append(asdict(Reject(source=row.source, key=row.key, stage="media", reason=reason)))
                continue
            index.append(_write_sample(writer, sample))
    write_rows(index_path(tar), index, INDEX_SCHEMA)
    counts = {"accepted": len(index), "rejected": len(rejects)}
    items = _count_items(source, part, {str(row["key"]) for row in index})
    write_json(done, {"fingerprint": fingerprint, "counts": counts, "rejects": rejects, "items": items})
    return counts


def assemble_shard(source: Source, index: int, pieces: list[Piece]) -> Shard:
    """Copies byte ranges of parts into the shard at `index`, writes its index beside it, and returns its entry."""
    tar, rows, offset = source.directory / shard_name(index), [], 0
    digest = hashlib.sha256()
    with atomic_path(tar) as temporary, temporary.open("wb") as target:
        for piece in pieces:
            part = _part_path(source, piece.part)
            with part.open("rb") as file:
                for row in read_rows(index_path(part))[piece.start : piece.stop]:
                    copy_range(file, target, row["offset"], row["length"], digest)
                    rows.append(row | {"offset": offset, "json_offset": row["json_offset"] - row["offset"] + offset})
                    offset += row["length"]
        end = end_of_archive(offset)
        digest.update(end)
        target.write(end)
    write_rows(index_path(tar), rows, INDEX_SCHEMA)
    return Shard(name=tar.name, samples=len(rows), bytes=offset + len(end), sha256=digest.hexdigest())


def plan_shards(accepted: list[int], samples_per_shard: int) -> list[list[Piece]]:
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


def _run_parts(source: Source, staged: Staged) -> None:
    chunks = [{"part": part, "fingerprint": value} for part, value in enumerate(staged.fingerprints)]
    if not chunks:
        return
    dataset = ray.data.from_items(chunks, override_num_blocks=len(chunks))
    results = dataset.map(lambda chunk: prepare_part(source, chunk["part"], chunk["fingerprint"])).iter_rows()
    with track(f"prepare {source.entry.name}", staged.rows, "rows") as bar:
        for counts in results:
            bar.advance(counts["accepted"] + counts["rejected"], rejected=counts["rejected"])


def _run_shards(source: Source, parts: int) -> list[Shard]:
    accepted = [read_json(_part_path(source, part).with_suffix(".json"))["counts"]["accepted"] for part in range(parts)]
    plan = plan_shards(accepted, source.samples_per_shard)
    if not plan:
        return []
    jobs = [{"index": index, "pieces": [asdict(p) for p in pieces]} for index, pieces in enumerate(plan)]
    dataset = ray.data.from_items(jobs, override_num_blocks=len(jobs)).map(
        lambda job: asdict(assemble_shard(source, job["index"], [Piece(**piece) for piece in job["pieces"]]))
    )
    with track(f"write {source.entry.name}", len(jobs), "shards") as bar:
        shards = []
        for row in dataset.iter_rows():
            shards.append(Shard(**row))
            bar.advance(1)
    return sorted(shards, key=lambda shard: shard.name)


def _finish(source: Source, fingerprint: str, shards: list[Shard], staged: Staged) -> Manifest:
    items: Counter[str] = Counter()
    rejects = [json.loads(reject) for reject in staged.rejects]
    for part in range(len(staged.fingerprints)):
        state = read_json(_part_path(source, part).with_suffix(".json"))
        rejects.extend(state["rejects"])
        items.update(state["items"])
    remove_others(source.directory, {shard.name for shard in shards})
    write_rows(source.directory / REJECTS, rejects, REJECT_SCHEMA)
    samples = sum(shard.samples for shard in shards)
    manifest = Manifest(
        dataset=source.entry.name,
        rows=samples + len(rejects),
        samples=samples,
        samples_per_shard=source.samples_per_shard,
        rejected=dict(sorted(Counter(reject["reason"].partition(":")[0] for reject in rejects).items())),
        shards=shards,
        views={name: view.kind for name, view in source.entry.views.items()},
        output_items={name: items[name] for name in ("image", "video", "audio") if items[name]},
        input_items=items["input"],
        licence=source.entry.licence,
    )
    write_json(source.directory / STATE, {"fingerprint": fingerprint})
    manifest.write(source.directory)
    remove_tree(source.work)
    return manifest


def _finished(directory: Path, fingerprint: str) -> Manifest | None:
    """The manifest, if it is of the same input and every file it names is there, whole."""
    try:
        manifest = Manifest.read(directory)
    except (FileNotFoundError, ValueError):
        return None
    whole = all(is_whole(directory / shard.name, shard) for shard in manifest.shards)
    state = directory / STATE
    return manifest if whole and state.is_file() and read_json(state)["fingerprint"] == fingerprint else None


def _stage_chunk(source: Source, chunk: int, rows: list[Sample]) -> str:
    lines = [
        json.dumps([row.key, row.source, turns_to_json(row.turns), dict(row.meta)], ensure_ascii=False) for row in rows
    ]
    with atomic_path(_rows_path(source, chunk)) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    state = [f"{item.name} {state_of(source.media, item.name)}" for row in rows for item in row.items() if item.name]
    return hash_strings([*_settings(source), *lines, *state])


def _settings(source: Source) -> list[str]:
    """What the bytes of shards depend on beside rows and media."""
    return [str(PREPROCESS_VERSION), str(source.samples_per_shard), source.entry.model_dump_json()]


def _staged_rows(source: Source, chunk: int) -> Iterator[Sample]:
    with _rows_path(source, chunk).open(encoding="utf-8") as file:
        for line in file:
            key, origin, turns, meta = json.loads(line)
            yield Sample(key=key, source=origin, turns=turns_from_json(turns), meta=meta)


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
        "sha256": hash_members(values),
    }


def _count_items(source: Source, part: int, keys: set[str]) -> dict[str, int]:
    """How many items of the accepted rows each sidecar will hold."""
    kinds = [view.kind for view in source.entry.views.values()]
    counts: Counter[str] = Counter()
    for row in _staged_rows(source, part):
        if row.key in keys:
            counts["input"] += len(sidecar_items(row, kinds, None))
            for modality in Modality:
                counts[modality.value] += len(sidecar_items(row, kinds, modality))
    return dict(counts)


def _rows_path(source: Source, chunk: int) -> Path:
    return source.work / "rows" / f"{chunk:05d}.jsonl"


def _part_path(source: Source, part: int) -> Path:
    return source.work / "parts" / shard_name(part)
