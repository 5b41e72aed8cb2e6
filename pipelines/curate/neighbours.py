"""Near duplicates by the embeddings that jobs/embed.py has stored: which sample of each group of near ones stays.

Each sample is told by the features of its first medium, as short records: the signs of 64 random projections, by which
near ones are found at n log n, and 128 projections of 8 bits, by which they are compared. Their cosine is that of the
features up to about (1 - cosine ** 2) / 11. The driver holds about 250 bytes a sample; no medium is read.
"""

from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.curate.columns import KEY, ColumnsWork, begin
from pipelines.curate.curating import Curated, finished
from pipelines.curate.duplicates import Prints, others, write_found
from pipelines.curate.groups import first_of_group, near_vectors
from pipelines.progress import track
from pipelines.ray_steps import map_rows
from pipelines.storage.files import read_rows
from pipelines.storage.random_access import Range, Ranges
from pipelines.storage.shards import Manifest, hash_strings, index_path
from pipelines.storage.sidecars import (
    ENCODER,
    NOT_ENCODED,
    embed_command,
    find_sidecars,
    from_npy,
    needs,
    sidecar_folder,
)

VERSION = "1"
NAME = "neighbours"
COLUMNS = {"neighbour_of": "str"}
PROJECTIONS = 128
VECTOR = np.dtype([("hash", "<u8"), ("parts", "i1", (PROJECTIONS,))])
_WIDEST = 4.0  # standard deviations of a projection that 8 bits hold


def write_neighbours(directories: Sequence[Path], least_cosine: float) -> list[Curated]:
    """Writes which samples are near which by their features, among these datasets.

    Raises:
        ValueError: a dataset has no features of this encoder, or of other shards than these; one line.
    """
    found = sorted(((directory, Manifest.read(directory)) for directory in directories), key=lambda one: one[0].name)
    folders = [_features(directory, manifest) for directory, manifest in found]
    encoders = sorted({folder.name for folder in folders if folder})
    if len(encoders) > 1:
        raise ValueError(f"{NAME}: the datasets' features are by several encoders ({', '.join(encoders)}); embed anew")
    facts = [f"{directory.name} {manifest.content}" for directory, manifest in found]
    context = hash_strings([*facts, *encoders, str(least_cosine)])
    works = [
        ColumnsWork(
            directory=directory,
            shards=tuple(manifest.shards),
            scorer=NAME,
            version=VERSION,
            columns=COLUMNS,
            context=context,
        )
        for directory, manifest in found
    ]
    todo = [begin(work) for work in works]
    if any(todo):
        tables = _vectors(works, folders)
        prints, places = Prints.of([work.directory.name for work in works if work.shards], tables)
        pairs = near_vectors(*prints.fixed("vector", VECTOR), least_cosine)
        write_found(works, todo, places, {"neighbour_of": others(prints, first_of_group(len(prints), [pairs]))})
    return [finished(work, len(numbers)) for work, numbers in zip(works, todo, strict=True)]


def _features(directory: Path, manifest: Manifest) -> Path | None:
    """The sidecar of pooled features of a dataset; None where it has no input media."""
    if not needs(manifest, ENCODER):
        return None
    found = {name: one for name, one in find_sidecars(directory, ENCODER).items() if len(one.shape) == 1}
    command = embed_command(directory.parent, ENCODER)
    if len(found) != 1:
        what = f"features by several encoders ({', '.join(found)})" if found else "no features of its media"
        raise ValueError(f"{directory}: {NAME}: it has {what}; {command} makes them")
    ((name, sidecar),) = found.items()
    if sidecar.of_shards != [shard.sha256 for shard in manifest.shards]:
        raise ValueError(f"{directory}: the features {name} are of other shards than these; run {command}")
    return sidecar_folder(directory, name)


def _vectors(works: Sequence[ColumnsWork], folders: Sequence[Path | None]) -> list[pa.Table]:
    """The keys and records of all samples, a table a dataset; shards are read in tasks."""
    rows = [{"work": number, "shard": shard} for number, work in enumerate(works) for shard in range(len(work.shards))]
    parts: dict[tuple[int, int], pa.Table] = {}
    with track("look at features", len(rows), "shards", announce=True) as bar:
        for row in map_rows(rows, partial(_shard_row, works=works, folders=folders)):
            parts[row["work"], row["shard"]] = pa.ipc.open_stream(row["table"]).read_all()
            bar.advance()
    return [
        pa.concat_tables([parts[number, shard] for shard in range(len(work.shards))])
        for number, work in enumerate(works)
        if work.shards
    ]


def _shard_row(row: dict[str, Any], works: Sequence[ColumnsWork], folders: Sequence[Path | None]) -> dict[str, Any]:
    table = shard_vectors(works[row["work"]].source(row["shard"]), folders[row["work"]])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return row | {"table": sink.getvalue().to_pybytes()}


def shard_vectors(tar: Path, folder: Path | None) -> pa.Table:
    """The key and the record of each sample of a shard; null where its first medium has no features."""
    keys = [row[KEY] for row in read_rows(index_path(tar), [KEY])]
    records: list[bytes | None] = [None] * len(keys)
    if folder is not None:
        rows = read_rows(index_path(folder / tar.name), [KEY, "offset", "length", "lengths"])
        if [row[KEY] for row in rows] != keys:
            raise ValueError(f"{folder / tar.name}: has other samples than {tar}; delete it and run jobs/embed.py")
        having = [place for place, row in enumerate(rows) if row["lengths"] and row["lengths"][0] != NOT_ENCODED]
        data = Ranges().read([Range(folder / tar.name, rows[n]["offset"], rows[n]["length"]) for n in having])
        if having:
            made = to_records(np.stack([from_npy(one)[0] for one in data]))
            for place, record in zip(having, made, strict=True):
                records[place] = record.tobytes()
    return pa.table({KEY: pa.array(keys, pa.string()), "vector": pa.array(records, pa.binary())})


def to_records(features: npt.NDArray[np.float32]) -> npt.NDArray[np.void]:
    """Features (n, E) as records of `VECTOR` (n,)."""
    projected = features.astype(np.float64) @ _projections(features.shape[1])
    projected /= np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    found = np.zeros(len(features), VECTOR)
    found["hash"] = np.packbits(projected[:, :64] > 0, axis=1).view(">u8")[:, 0]
    found["parts"] = np.rint(np.clip(projected / _WIDEST, -1, 1) * 127)
    return found


@cache
def _projections(width: int) -> npt.NDArray[np.float64]:
    return np.random.Generator(np.random.PCG64(23)).standard_normal((width, PROJECTIONS))
