"""Prepared datasets with all that belongs to one: facts of media, rejects, hashes, embeddings; written without Ray."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.sample import Reject, Sample
from pipelines.storage.files import write_rows
from pipelines.storage.shards import (
    INDEX_SCHEMA,
    REJECT_SCHEMA,
    REJECTS,
    Manifest,
    Shard,
    TarShardWriter,
    hash_file,
    hash_members,
    index_path,
    json_range,
    members,
    shard_name,
)
from pipelines.storage.sidecars import SIDECAR_SCHEMA, SidecarManifest, sidecar_folder, to_npy
from pipelines.views import Kind


def write_whole(
    directory: Path,
    samples: Sequence[Sample],
    rejects: Sequence[Reject] = (),
    samples_per_shard: int = 4,
    views: Mapping[str, Kind] | None = None,
    **about: str,
) -> Manifest:
    """Writes what preparation writes for these samples and rejects; `about` are licence and source."""
    directory.mkdir(parents=True, exist_ok=True)
    shards = [
        _write_shard(directory / shard_name(number), samples[start : start + samples_per_shard])
        for number, start in enumerate(range(0, len(samples), samples_per_shard))
    ]
    write_rows(directory / REJECTS, [asdict(reject) for reject in rejects], REJECT_SCHEMA)
    manifest = Manifest(
        dataset=directory.name,
        rows=len(samples) + len(rejects),
        samples=len(samples),
        samples_per_shard=samples_per_shard,
        rejected=dict(Counter(reject.reason.partition(":")[0] for reject in rejects)),
        shards=shards,
        views=dict(views or {"pictures_enc": "caption", "pictures_dec": "generate"}),
        output_items={},
        input_items=0,
        licence=about.get("licence", "none"),
        source=about.get("source", ""),
        rejects_sha256=hash_file(directory / REJECTS),
    )
    manifest.write(directory)
    return manifest


def _write_shard(tar: Path, samples: Sequence[Sample]) -> Shard:
    rows = []
    with TarShardWriter(tar) as writer:
        for sample in samples:
            values = members(sample)
            offset, length = writer.write(sample.key, values)
            json_offset, json_length = json_range(values, offset)
            rows.append(
                {
                    "key": sample.key,
                    "source": sample.source,
                    "caption": next((item.caption for item in sample.items() if item.caption), ""),
                    "offset": offset,
                    "length": length,
                    "json_offset": json_offset,
                    "json_length": json_length,
                    "media": json.dumps(sample.meta.get("media", {})),
                    "sha256": hash_members(values),
                }
            )
    write_rows(index_path(tar), rows, INDEX_SCHEMA)
    return _shard(tar, len(rows))


def write_embeddings(dataset: Path, manifest: Manifest, encoder_id: str, keys: Sequence[Sequence[str]]) -> Path:
    """Writes a sidecar of one embedding of (3, 2) a key for the shards of a dataset; returns its folder."""
    folder = sidecar_folder(dataset, encoder_id)
    folder.mkdir(parents=True, exist_ok=True)
    shards = []
    for number, names in enumerate(keys):
        rows, tar = [], folder / shard_name(number)
        with TarShardWriter(tar) as writer:
            for place, key in enumerate(names):
                data = to_npy(np.full((1, 3, 2), number + place, np.float32))
                offset, _ = writer.write(key, {"npy": data})
                rows.append(_embedding_row(key, offset, data))
        write_rows(index_path(tar), rows, SIDECAR_SCHEMA)
        shards.append(_shard(tar, len(rows)))
    fields: dict[str, Any] = {"kind": "image", "encoder_id": encoder_id, "encoder_name": "numbers", "untrained": True}
    SidecarManifest(
        **fields,
        shape=[3, 2],
        dtype="float32",
        max_error=0.0,
        min_cosine=1.0,
        items=sum(map(len, keys)),
        shards=shards,
        of_shards=[shard.sha256 for shard in manifest.shards],
    ).write(folder)
    return folder


def _embedding_row(key: str, offset: int, data: bytes) -> dict[str, Any]:
    sha256 = hashlib.sha256(data)
    row = {"key": key, "offset": offset + 512, "length": len(data), "lengths": [3], "sha256": sha256.hexdigest()}
    return row | {"identities": [sha256.digest()[:16]]}


def _shard(tar: Path, samples: int) -> Shard:
    size, index = tar.stat().st_size, hash_file(index_path(tar))
    return Shard(name=tar.name, samples=samples, bytes=size, sha256=hash_file(tar), index_sha256=index)
