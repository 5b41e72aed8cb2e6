"""Verification: reads every byte of a prepared dataset, and names what is damaged, down to the sample.

The manifest has a checksum of itself and the hash of every other file, so every flipped byte is found.
"""

import hashlib
import itertools
import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pipelines.handover.stage_samples import LENGTHS
from pipelines.inspect.damage import Extent, Problem, Row, check_tar, read_checked, read_index, repeated_keys, strays
from pipelines.progress import track
from pipelines.storage.files import is_sound, read_rows
from pipelines.storage.new_captions import COLUMNS, find_new_captions, shard_identities
from pipelines.storage.shards import (
    INDEX_SCHEMA,
    MANIFEST,
    REJECT_SCHEMA,
    REJECTS,
    STATE,
    Manifest,
    Shard,
    hash_members,
    index_path,
    shard_name,
)
from pipelines.storage.sidecars import NOT_ENCODED, SIDECAR_SCHEMA, SidecarManifest, from_npy

EMBEDDINGS = "embeddings"
# Any of these makes a folder a dataset, if only an unfinished one.
_SIGNS = (MANIFEST, REJECTS, EMBEDDINGS, ".work", shard_name(0))


def verify(dataset: Path) -> Iterator[Problem]:
    """Reads a whole prepared dataset with its sidecars; one sample and one index are in memory at a time.

    If the manifest is damaged, that is the only problem reported: there is nothing to compare the rest with.
    """
    manifest, problems = read_checked(dataset / MANIFEST, Manifest.read)
    yield from problems
    if manifest is None:
        return
    yield from _check_counts(dataset / MANIFEST, manifest)
    yield from _check_rejects(dataset / REJECTS, manifest)
    with track(f"verify {dataset.name}", manifest.samples, "samples") as bar:
        for shard in manifest.shards:
            yield from _check_shard(dataset / shard.name, shard)
            bar.advance(shard.samples)
    for folder in sorted((dataset / EMBEDDINGS).iterdir()) if (dataset / EMBEDDINGS).is_dir() else []:
        yield from _check_sidecar(dataset, manifest, folder)
    yield from strays(dataset, manifest.shards, {MANIFEST, REJECTS, STATE, EMBEDDINGS, COLUMNS, LENGTHS})


def verify_all(shards: Path) -> Iterator[Problem]:
    """Verifies every dataset below a folder of shards, unfinished ones too.

    Raises:
        FileNotFoundError: the folder does not exist or holds no dataset.
    """
    for dataset in dataset_folders(shards):
        yield from verify(dataset)


def print_problems(shards: Path) -> int:
    """Verifies all datasets in a folder; prints each problem and a line per dataset. Returns the number of problems."""
    total = 0
    for dataset in dataset_folders(shards):
        count = 0
        for problem in verify(dataset):
            print(problem, flush=True)
            count += 1
        total += count
        print(f"{dataset.name}: {_plural(count, 'problem') if count else _whole(dataset)}", flush=True)
    return total


def dataset_folders(shards: Path) -> list[Path]:
    """The folders below a folder of shards that hold a finished or unfinished dataset.

    Raises:
        FileNotFoundError: the folder does not exist or holds no dataset.
    """
    if not shards.is_dir():
        raise FileNotFoundError(f"{shards}: no such folder; give the --out of jobs/prepare.py")
    folders = [path for path in sorted(shards.iterdir()) if path.is_dir() and any((path / s).exists() for s in _SIGNS)]
    if not folders:
        raise FileNotFoundError(f"{shards}: holds no dataset; run jobs/prepare.py --out {shards} first")
    return folders


def _whole(dataset: Path) -> str:
    manifest = Manifest.read(dataset)
    counts = f"{_plural(manifest.samples, 'sample')} in {_plural(len(manifest.shards), 'shard')}"
    return f"{counts}, every byte as it was written"


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _check_counts(path: Path, manifest: Manifest) -> Iterator[Problem]:
    wrong = []
    rejected, held = sum(manifest.rejected.values()), sum(shard.samples for shard in manifest.shards)
    # More rows than samples are in order only where media have several captions.
    if manifest.taken < manifest.samples or (manifest.taken > manifest.samples and not manifest.captions):
        wrong.append(f"{manifest.rows} rows, but {manifest.samples} samples and {rejected} rejected")
    if held != manifest.samples:
        wrong.append(f"{manifest.samples} samples, but {held} in its shards")
    size = manifest.samples_per_shard
    for number, shard in enumerate(manifest.shards):
        last = number == len(manifest.shards) - 1
        if not (0 < shard.samples <= size if last else shard.samples == size):
            wrong.append(f"{shard.samples} samples in {shard.name}, but {size} a shard")
        if shard.name != shard_name(number):
            wrong.append(f"shard {number} is called {shard.name}, not {shard_name(number)}")
    for what in wrong:
        yield Problem(file=path, what=f"the counts do not add up: {what}")


def _check_rejects(path: Path, manifest: Manifest) -> Iterator[Problem]:
    rows, problems = read_index(path, manifest.rejects_sha256, None, REJECT_SCHEMA)
    yield from problems
    reasons = Counter(row["reason"].partition(":")[0] for row in rows)
    for reason in sorted(reasons.keys() | manifest.rejected.keys() if not problems else ()):
        counted = manifest.rejected.get(reason, 0)
        if reasons[reason] != counted:
            yield Problem(file=path, what=f"has {reasons[reason]} rows of {reason!r}, the manifest counts {counted}")


def _check_shard(tar: Path, shard: Shard) -> Iterator[Problem]:
    rows, problems = read_index(index_path(tar), shard.index_sha256, shard.samples, INDEX_SCHEMA)
    yield from problems
    yield from repeated_keys(index_path(tar), rows)
    extents = [Extent(row, row["offset"], row["length"]) for row in rows]
    yield from check_tar(tar, shard, extents, _check_sample, indexed=not problems)


def _check_sample(row: Row, values: dict[str, bytes]) -> str:
    if hash_members(values) != row["sha256"]:
        return "damaged: its content is not what was written"
    document = json.loads(values["json"])
    for name in ("key", "source"):
        if document[name] != row[name]:
            return f"mismatched {name}: {row[name]!r} in the index, {document[name]!r} in the tar"
    return ""


def _check_sidecar(dataset: Path, manifest: Manifest, folder: Path) -> Iterator[Problem]:
    """Checks a folder of embeddings against its dataset: same shards, same keys, same order."""
    sidecar, problems = read_checked(folder / MANIFEST, SidecarManifest.read)
    yield from problems
    if sidecar is None:
        return
    if sidecar.encoder_id != folder.name:
        yield Problem(file=folder / MANIFEST, what=f"is of the encoder {sidecar.encoder_id}, not of its folder's name")
    items = failed = 0
    with track(f"verify {dataset.name}/{folder.name}", manifest.samples, "samples") as bar:
        owners = zip(manifest.shards, _identities(dataset, manifest, sidecar), strict=True)
        for shard, owned, of in itertools.zip_longest(sidecar.shards, owners, sidecar.of_shards):
            owner, identity = owned or (None, "")
            if shard is None or owner is None:
                name = (shard or owner or Shard(name=MANIFEST, samples=0, bytes=0, sha256="")).name
                what = "orphaned: the dataset has no such shard" if owner is None else "missing: the dataset has it"
                yield Problem(file=folder / name, what=what)
                continue
            if of != identity or shard.name != owner.name:
                which = "shard or new captions" if sidecar.captions != "original" else "shard"
                what = f"orphaned: made for another {which} than {dataset / owner.name} is"
                yield Problem(file=folder / shard.name, what=what)
            found, rows = _check_embeddings(folder / shard.name, shard, dataset / owner.name)
            yield from found
            items += sum(len(row["lengths"]) for row in rows)
            failed += sum(row["lengths"].count(NOT_ENCODED) for row in rows)
            bar.advance(shard.samples)
    if items != sidecar.items:
        what = f"the counts do not add up: {sidecar.items} items, but {items} in its indexes"
        yield Problem(file=folder / MANIFEST, what=what)
    if failed != len(sidecar.failed):
        what = f"the counts do not add up: {len(sidecar.failed)} failed, but {failed} in its indexes"
        yield Problem(file=folder / MANIFEST, what=what)
    yield from strays(folder, sidecar.shards, {MANIFEST, STATE})


def _identities(dataset: Path, manifest: Manifest, sidecar: SidecarManifest) -> list[str]:
    """What a sidecar has to be of, shard by shard; nothing fits where new captions are gone."""
    try:
        return shard_identities(manifest, find_new_captions(dataset, manifest, sidecar.captions))
    except (ValueError, OSError):
        return [""] * len(manifest.shards)


def _check_embeddings(tar: Path, shard: Shard, owner: Path) -> tuple[list[Problem], list[Row]]:
    """The problems of one tar of embeddings, and the rows of its index; `owner` is the dataset's tar it belongs to."""
    rows, problems = read_index(index_path(tar), shard.index_sha256, shard.samples, SIDECAR_SCHEMA)
    found = [*problems, *repeated_keys(index_path(tar), rows)]
    if not problems:
        found += _mismatched_keys(index_path(tar), [row["key"] for row in rows], index_path(owner))
    extents = [_extent(row) for row in rows]
    return [*found, *check_tar(tar, shard, extents, _check_arrays, indexed=not problems)], rows


def _mismatched_keys(path: Path, keys: list[str], owner: Path) -> Iterator[Problem]:
    if not is_sound(owner):  # reported with the dataset's shards
        return
    expected = [row["key"] for row in read_rows(owner, ["key"])]
    for key in sorted(set(keys) - set(expected)):
        yield Problem(file=path, key=key, what="orphaned: the dataset has no such sample in this shard")
    for key in sorted(set(expected) - set(keys)):
        yield Problem(file=path, key=key, what="missing: the dataset has this sample in this shard")
    if keys != expected and sorted(keys) == sorted(expected):
        place = next(place for place, (one, other) in enumerate(zip(keys, expected, strict=True)) if one != other)
        what = f"mismatched key: sample {place} of the dataset's shard is {expected[place]!r}"
        yield Problem(file=path, key=keys[place], what=what)


def _check_arrays(row: Row, values: dict[str, bytes]) -> str:
    data = values.get("npy", b"")
    if hashlib.sha256(data).hexdigest() != row["sha256"]:
        return "damaged: its embeddings are not what was written"
    try:
        count = len(from_npy(data))
    except (ValueError, EOFError, TypeError) as error:
        return f"damaged: no array can be read ({str(error).partition(chr(10))[0]})"
    return "" if count == len(row["lengths"]) else f"{count} embeddings, the index says {len(row['lengths'])}"


def _extent(row: Row) -> Extent:
    """The range of a sidecar's member: its index has the array's, which follows a header block and is padded."""
    padded = row["length"] + -row["length"] % tarfile.BLOCKSIZE
    return Extent(row, row["offset"] - tarfile.BLOCKSIZE, tarfile.BLOCKSIZE + padded)
