"""Takes over embeddings that NExT-GPT's own tools made, one `.npy` a medium, as a sidecar beside the shards.

An output item's file is `<original name of its medium>.npy` in one folder, or the one that its row names, as
`meta["embeddings"]`. The files do not tell how many positions are a caption's own, so all of them
count: padding is aimed at as the rest is.
"""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.embed.embedding import Embedded, Sidecar, sidecar_work
from pipelines.embed.identities import EncoderIdentity
from pipelines.embed.plan import ShardItems
from pipelines.embed.sidecar_shards import ShardState, SidecarWork, open_spool, to_identities, write_shard
from pipelines.embed.units import read_samples
from pipelines.progress import track
from pipelines.ray_steps import map_rows
from pipelines.sample import Item, Sample
from pipelines.storage.files import is_local
from pipelines.storage.precision import store
from pipelines.storage.shards import Manifest, hash_strings
from pipelines.storage.sidecars import IDENTITY_BYTES, needs

# 77 positions of 1024 numbers of 8 bytes are 0.6 MB.
MAX_FILE_BYTES = 16 * 2**20
EXAMPLES = 3
ITEM_TYPES = ("float16", "float32", "float64")

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What the files of one shard's items are: a hash of their numbers, how many of each shape, what is wrong."""

    digest: str
    shapes: dict[Shape, int]
    mistakes: list[str]


def import_embeddings(directories: Sequence[Path], source: Path, kind: str, dtype: str, name: str) -> list[Embedded]:
    """Writes sidecars of the datasets' items of a modality from the files of a folder; `name` is their encoder's.

    Raises:
        ValueError: a file is missing, unreadable or not finite, or shapes differ: a sidecar has every item or is none.
    """
    datasets = [(directory, Manifest.read(directory)) for directory in directories]
    datasets = [(directory, dataset) for directory, dataset in datasets if needs(dataset, kind)]
    checked = _check([sidecar_work(directory, dataset, kind, dtype, "") for directory, dataset in datasets], source)
    digest = hash_strings([shard.digest for shard in checked])
    encoder = EncoderIdentity(id=f"{kind}-imported-{digest[:12]}", name=name, untrained=False)
    sidecars = [Sidecar(directory, dataset, kind, dtype, encoder) for directory, dataset in datasets]
    rows = [{"sidecar": index, "shard": number} for index, one in enumerate(sidecars) for number in one.todo]
    with track("import", len(rows), "shards") as bar:
        for row in map_rows(rows, partial(_import_row, works=[one.work for one in sidecars], source=source)):
            sidecars[row["sidecar"]].take(row["shard"], ShardState.from_json(row["state"]))
            bar.advance()
    return [sidecar.finish() for sidecar in sidecars]


def check_shard(work: SidecarWork, shard: int, source: Path) -> Checked:
    """Reads the file of every item of a shard."""
    digest, shapes, mistakes = hashlib.sha256(), Counter[Shape](), list[str]()
    for sample, items in _samples(work, shard):
        for number in range(len(items)):
            try:
                array = read_array(find_file(source, file_name(sample, items, number, work.kind)))
            except (ValueError, OSError) as error:
                mistakes.append(f"{str(error).splitlines()[0]} (for {sample.source})")
                continue
            digest.update(_content(array))
            shapes[array.shape] += 1
    return Checked(digest=digest.hexdigest(), shapes=dict(shapes), mistakes=mistakes)


def import_shard(work: SidecarWork, shard: int, source: Path) -> ShardState:
    """Writes a shard of a sidecar from the files of its items."""
    counts, names = [], list[str]()
    for sample, items in _samples(work, shard):
        counts.append(len(items))
        names += [file_name(sample, items, number, work.kind) for number in range(len(items))]
    identities = []
    with open_spool(len(names), work.dtype) as spool:
        for number, name in enumerate(names):
            array = read_array(find_file(source, name))
            identities.append(hashlib.sha256(_content(array)).digest()[:IDENTITY_BYTES])
            stored, cost = store(array[None].astype(np.float32), work.dtype, name)
            losses = cost.max_error, cost.min_cosine
            spool.put(number, stored.tobytes(), len(array), losses, array.shape)
        shard_items = ShardItems(counts=np.array(counts, np.int32), identities=to_identities(identities))
        return write_shard(work, shard, shard_items, np.arange(len(names), dtype=np.int32), spool)


def file_name(sample: Sample, items: Sequence[Item], number: int, kind: str) -> str:
    """The file of an item's embedding: as its row names it, else by the original name of its medium.

    Raises:
        ValueError: there is no such name.
    """
    named = sample.meta.get("embeddings", {}).get(kind, [])
    if named:
        if len(named) != len(items):
            raise ValueError(f"bad field: names {len(named)} {kind} embeddings for {len(items)} items")
        return str(named[number])
    item = items[number]
    if item.name and any(other.name == item.name and other.caption != item.caption for other in items):
        raise ValueError(f"several captions: a file named after a medium holds the embedding of one ({kind} {number})")
    medium = sample.meta.get("media", {}).get(item.name)
    if medium is None:
        raise ValueError(f"missing field: neither a medium nor a file of embeddings is named for {kind} {number}")
    return f"{medium['file']}.npy"


def find_file(folder: Path, name: str) -> Path:
    """The path of a named file below a folder, or right in it where the name has folders that are not there.

    Raises:
        ValueError: there is none, or it lies outside of the folder.
    """
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts or "\0" in name:
        raise ValueError(f"path outside the root: {name}")
    path = next((path for path in (folder / name, folder / relative.name) if path.is_file()), None)
    if path is None:
        raise ValueError(f"missing file: {name}")
    if is_local(path) and not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"path outside the root: {name} is a link that leaves the folder")
    return path


def read_array(path: Path) -> npt.NDArray[Any]:
    """Reads a `.npy` file of embeddings (L, D), or (D,) as (1, D); its header is trusted in nothing.

    Raises:
        ValueError: it is too large, no plain array of floating-point numbers, or not finite.
    """
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise ValueError(f"too large: {path.name} has {size} bytes, the limit is {MAX_FILE_BYTES}")
    file = io.BytesIO(path.read_bytes())
    try:
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, is_fortran, dtype = read_header(file)
    except (ValueError, KeyError, SyntaxError) as error:
        raise ValueError(f"unreadable: {path.name} is no .npy file ({type(error).__name__})") from None
    data = file.read()
    if dtype.name not in ITEM_TYPES or len(shape) not in (1, 2) or 0 in shape:
        raise ValueError(f"unreadable: {path.name} holds {dtype} of shape {shape}, not embeddings")
    if len(data) != int(np.prod(shape, dtype=object)) * dtype.itemsize:
        raise ValueError(f"unreadable: {path.name} is cut off, or longer than its header says")
    array = np.frombuffer(data, dtype).reshape(shape, order="F" if is_fortran else "C")
    if not np.isfinite(array).all():
        raise ValueError(f"not finite: {path.name}")
    return array if array.ndim == 2 else array[None]


def _check(works: Sequence[SidecarWork], source: Path) -> list[Checked]:
    """Reads every file once, in tasks; what is wrong with any of them is told in one line."""
    rows = [{"sidecar": index, "shard": n} for index, work in enumerate(works) for n in range(len(work.shards))]
    found: dict[tuple[int, int], Checked] = {}
    with track("check", len(rows), "shards") as bar:
        for row in map_rows(rows, partial(_check_row, works=works, source=source)):
            digest, shapes, mistakes = json.loads(row["checked"])
            shapes = {tuple(shape): count for shape, count in shapes}
            found[row["sidecar"], row["shard"]] = Checked(digest=digest, shapes=shapes, mistakes=mistakes)
            bar.advance()
    checked = [found[row["sidecar"], row["shard"]] for row in rows]
    mistakes = [mistake for shard in checked for mistake in shard.mistakes]
    shapes = sum((Counter(shard.shapes) for shard in checked), Counter[Shape]())
    if mistakes:
        reasons = Counter(mistake.partition(":")[0] for mistake in mistakes)
        counts = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        raise ValueError(
            f"{source}: nothing imported, for {len(mistakes)} of {len(mistakes) + shapes.total()} items have no "
            f"embedding there ({counts}): {'; '.join(mistakes[:EXAMPLES])}"
        )
    if len(shapes) > 1:
        counts = ", ".join(f"{count} of {'x'.join(map(str, shape))}" for shape, count in shapes.most_common())
        raise ValueError(f"{source}: nothing imported, for the embeddings are not of one shape: {counts}")
    return checked


def _check_row(row: dict[str, Any], works: Sequence[SidecarWork], source: Path) -> dict[str, Any]:
    checked = check_shard(works[row["sidecar"]], row["shard"], source)
    return row | {"checked": json.dumps([checked.digest, list(checked.shapes.items()), checked.mistakes])}


def _import_row(row: dict[str, Any], works: Sequence[SidecarWork], source: Path) -> dict[str, Any]:
    return row | {"state": import_shard(works[row["sidecar"]], row["shard"], source).to_json()}


def _samples(work: SidecarWork, shard: int) -> Iterator[tuple[Sample, list[Item]]]:
    for sample in read_samples(work, shard):
        yield sample, work.items(sample)


def _content(array: npt.NDArray[Any]) -> bytes:
    """What an array is, for a hash: its shape and numbers, in whatever order and type the file had them."""
    return f"{array.shape}\0".encode() + np.ascontiguousarray(array, "<f8").tobytes()
