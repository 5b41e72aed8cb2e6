"""Writing shards, against `Dataset.write_webdataset` on the same rows in the same Ray.

Both sides start from one Ray dataset in the object store, with rows of `__key__`, `jpg` (25 kB, typical of a 256-pixel
photograph), `txt` and `json`, in blocks of one shard each, and write tars of one shard each to this disk.

* `write_webdataset` writes the four columns unchanged, one file per block.
* Ours does all that `jobs/prepare.py` does after reading a row's media: it builds the sample and its JSON, writes and
  syncs part tars with their indexes and content hashes, and then the exact shards with theirs.

Neither decodes images; `images` measures that.
"""

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data

from jobs.common import cli
from pipelines.prepare.part_tars import write_part
from pipelines.prepare.pieces import Piece
from pipelines.prepare.preprocess import assemble_shards
from pipelines.prepare.staging import Source
from pipelines.sample import Item, Media, Modality, Sample, Turn
from pipelines.sources.entry import Entry, View
from pipelines.storage.files import remove_tree
from tests.benchmarks import Row, compare, say, timed

SHARDS, ROWS_PER_SHARD, JPG_BYTES = 40, 1000, 25_000
REPEATS = 5
TARGET = 2.0


def run(scale: float) -> list[Row]:
    """Rows written per second by both sides, medians of interleaved repeats after an untimed warm-up."""
    count = max(1, round(ROWS_PER_SHARD * scale))
    cli.start_ray()
    with tempfile.TemporaryDirectory(prefix="bench-shards-") as folder:
        say(f"shards: {SHARDS} shards of {count} rows into the object store")
        dataset = rows(count)
        ours = _rate(Path(folder, "ours"), lambda out: write_ours(dataset, out, count), SHARDS * count)
        peer = _rate(Path(folder, "peer"), lambda out: dataset.write_webdataset(str(out), encoder=None), SHARDS * count)
        ours(), peer()  # workers start and import
        rate, peer_rate = compare(ours, peer, REPEATS, title="shards: rows/s")
    return [
        Row(
            name="shard writing / write_webdataset",
            ours=rate,
            peer=peer_rate,
            ratio=rate / peer_rate,
            target=TARGET,
            unit="rows/s",
            note=f"{SHARDS * count} rows of {JPG_BYTES // 1000} kB in the object store; ours adds index and hashes",
        )
    ]


def rows(rows_per_shard: int) -> ray.data.Dataset:
    """The rows in the object store, one block per shard."""
    blocks = ray.data.range(SHARDS * rows_per_shard, override_num_blocks=SHARDS)
    return blocks.map_batches(_members, batch_size=None).materialize()


def write_ours(dataset: ray.data.Dataset, out: Path, rows_per_shard: int) -> None:
    """Writes the rows as `prepare` does: one part per block, then the shards from the parts."""
    source = _source(out, rows_per_shard)

    def part(block: pa.Table) -> pa.Table:
        index = int(block["__key__"][0].as_py()) // rows_per_shard
        outcome = write_part(source, index, "", _samples(block))
        return pa.table({"part": [index], "rows": [outcome.accepted]})

    parts = dataset.map_batches(part, batch_size=None, batch_format="pyarrow").take_all()
    plan = {row["part"]: [Piece(part=row["part"], start=0, stop=row["rows"])] for row in parts}
    written = list(assemble_shards(source, plan))
    assert len(written) == len(plan)
    remove_tree(source.work)


def _members(batch: dict[str, Any]) -> dict[str, Any]:
    """The members of each row: incompressible bytes, a caption, and a JSON about both."""
    keys = [f"{index:09d}" for index in batch["id"]]
    noise = np.random.default_rng(int(batch["id"][0])).bytes(JPG_BYTES + len(keys))
    captions = [f"a photograph of number {key}, with a caption of the usual length" for key in keys]
    return {
        "__key__": keys,
        "jpg": [noise[index : index + JPG_BYTES] for index in range(len(keys))],
        "txt": captions,
        "json": [json.dumps({"key": key, "caption": caption}) for key, caption in zip(keys, captions, strict=True)],
    }


def _samples(block: pa.Table) -> Iterator[Sample]:
    columns = (block[name].to_pylist() for name in ("__key__", "txt", "jpg"))
    for key, caption, data in zip(*columns, strict=True):
        item = Item(modality=Modality.IMAGE, name="jpg", caption=caption)
        yield Sample(
            key=key,
            source=f"rows#{key}",
            turns=(Turn(role="user", parts=(item,)), Turn(role="assistant", parts=(caption,))),
            media={"jpg": Media(modality=Modality.IMAGE, data=data, format="jpg")},
        )


def _source(out: Path, rows_per_shard: int) -> Source:
    entry = Entry(
        name="rows",
        reader="pairs",
        paths=["rows.json"],
        modality=Modality.IMAGE,
        views={"rows_enc": View(stage=1, kind="caption"), "rows_dec": View(stage=2, kind="generate")},
    )
    return Source(entry=entry, path=out / "rows.json", media=None, directory=out, samples_per_shard=rows_per_shard)


def _rate(out: Path, write: Callable[[Path], object], count: int) -> Callable[[], float]:
    def measure() -> float:
        remove_tree(out)
        with timed() as watch:
            write(out)
        return count / watch.seconds

    return measure
