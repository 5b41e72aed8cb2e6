"""Embedding with stand-ins of given speeds: is the device always busy, and if it cannot be, are all cores?

Preparing a picture and encoding a batch sleep for as long as they are to take, so that what else the machine does
matters little. All else is what `jobs/embed.py` does: Ray Data, shards, the object store, packs, sidecars. The serial
actor, which read, prepared and encoded unit after unit, is the same steps one after the other in this process.
"""

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jobs import prepare
from jobs.common import cli
from pipelines.embed.embedding import Pool, embed, sidecar_work
from pipelines.embed.encoding import Embeddings, EmbedTask
from pipelines.embed.plan import EncodingPlan
from pipelines.embed.steps import EncodeRow, cut_shard, prepare_row, shard_row, write_row
from pipelines.embed.units import shard_items
from pipelines.media.codecs import encode
from pipelines.sample import Image
from pipelines.storage.files import remove_tree
from pipelines.storage.shards import Manifest
from pipelines.storage.sidecars import ENCODER
from tests.benchmarks import Row, cores, say, timed

PICTURES, PER_UNIT, PER_SHARD = 400, 10, 100
SERIAL_UNITS = 4
BUSY, USED = 0.95, 0.9
POOL = Pool(actors=1, num_cpus=0, num_gpus=0)


@dataclass(frozen=True)
class Speeds:
    """Seconds that a core takes for a unit, and the device."""

    core: float
    device: float


@dataclass(frozen=True)
class SlowCore:
    """Prepares a picture in a given time."""

    seconds: float

    def __call__(self, inputs: Sequence[Any]) -> list[Any]:
        """The pictures, which are small."""
        time.sleep(self.seconds * len(inputs))
        return [one.pixels for one in inputs]


class Device:
    """Encodes a unit in a given time, and notes when it did."""

    id, name, untrained, precision = "encoder-stand-in", "stand-in", True, "float32"

    def __init__(self, seconds: float, log: Path) -> None:
        self._seconds, self._log = seconds, log

    def send(self, inputs: Sequence[Any]) -> Sequence[Any]:
        """Nothing is moved."""
        return inputs

    def __call__(self, sent: Sequence[Any]) -> Embeddings:
        """One number a picture."""
        start = time.time()
        time.sleep(self._seconds)
        with self._log.open("a") as file:
            file.write(json.dumps([start, time.time()]) + "\n")
        return np.array([[one.mean()] for one in sent], np.float32), np.ones(len(sent), np.int32)


def run(scale: float) -> list[Row]:
    """Where cores are enough: the device's share of the time it works; where they are not: the cores'."""
    cli.start_ray()
    with tempfile.TemporaryDirectory(prefix="embedding") as folder:
        shards = _prepare(Path(folder), max(10 * PER_UNIT, round(PICTURES * scale)))
        enough, few = Speeds(core=0.25 * cores(), device=1.0), Speeds(core=5.0, device=0.2)
        busy, rate, serial = _piped(shards, enough), _piped(shards, few), _serial(shards, few)
    return [
        Row(
            name="device, with cores enough",
            ours=busy.busy,
            peer=busy.span,
            ratio=busy.busy / busy.span,
            target=BUSY,
            unit="s",
            note=f"seconds that it encoded of those from its first unit to its last; {enough.device:g} s a unit, for "
            f"which {cores()} cores take {enough.core / cores():g} s",
        ),
        Row(
            name="units, with too few cores",
            ours=rate.rate,
            peer=cores() / few.core,
            ratio=rate.rate * few.core / cores(),
            target=USED,
            unit="units/s",
            note=f"against what {cores()} cores give that take {few.core:g} s a unit; the device: {few.device:g} s",
        ),
        Row(
            name="the same / one unit after the other",
            ours=rate.rate,
            peer=serial,
            ratio=rate.rate / serial,
            target=None,
            unit="units/s",
            note="as the serial actor read, prepared, encoded and kept them",
        ),
    ]


@dataclass(frozen=True)
class Measured:
    """Seconds that the device was busy, of how many, and units a second in the middle of the run."""

    busy: float
    span: float
    rate: float


def _piped(shards: Path, speeds: Speeds) -> Measured:
    log = shards.parent / f"device-{speeds.device}.log"
    say(f"embedding: a core takes {speeds.core:g} s a unit, the device {speeds.device:g} s")
    embed([shards], [_task(speeds, log)], POOL)
    remove_tree(shards / "embeddings")
    times = np.array(sorted(map(json.loads, log.read_text().splitlines())))
    starts, ends = times.T
    first, last = len(ends) // 5, len(ends) * 9 // 10  # workers start, and a last unit is alone
    return Measured(
        busy=float((ends - starts).sum()),
        span=float(ends[-1] - starts[0]),
        rate=float((last - first) / (ends[last] - ends[first])),
    )


def _serial(shards: Path, speeds: Speeds) -> float:
    task = _task(speeds, shards.parent / "serial.log")
    tasks, works = {ENCODER: task}, [sidecar_work(shards, Manifest.read(shards), ENCODER, "float32", Device.id)]
    items = shard_items(works[0], 0)
    row, encode_row = shard_row(EncodingPlan([items], [False]), 0, 0, 0, items), EncodeRow(works, tasks)
    assert row, "nothing is embedded yet"
    units = list(cut_shard(row, works, tasks))[:SERIAL_UNITS]
    with timed() as watch:
        for unit in units:
            write_row(encode_row(prepare_row(unit, works, tasks)), works, {ENCODER: Device.name})
    return len(units) / watch.seconds


def _task(speeds: Speeds, log: Path) -> EmbedTask:
    core = SlowCore(speeds.core / PER_UNIT)
    factory = partial(Device, speeds.device, log)
    return EmbedTask(kind=ENCODER, factory=factory, dtype="float32", batch_size=PER_UNIT, preprocess=Made(core))


@dataclass(frozen=True)
class Made:
    """Makes a given `Preprocess`."""

    core: SlowCore

    def __call__(self) -> SlowCore:
        """Gives it."""
        return self.core


def _prepare(folder: Path, count: int) -> Path:
    """A dataset of so many pictures, each another."""
    pairs = folder / "data" / "T-X_pair_data" / "cc3m"
    (pairs / "images").mkdir(parents=True)
    rows = [{"id": f"{n:07d}", "caption": f"picture {n}", "image_name": f"{n:07d}.png"} for n in range(count)]
    (pairs / "cc3m.json").write_text(json.dumps(rows))
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
        (pairs / "images" / f"{number:07d}.png").write_bytes(encode(Image(pixels=pixels)).data)
    say(f"embedding: preparing {count} pictures")
    out = folder / "shards"
    prepare.main(["--data", str(folder / "data"), "--out", str(out), "--samples-per-shard", str(PER_SHARD)])
    return out / "cc3m"
