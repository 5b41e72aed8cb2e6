"""Reading a shuffled epoch, as for a training rank, against the webdataset library on the same tars."""

import json
from collections.abc import Iterator
from pathlib import Path
from tarfile import BLOCKSIZE
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import webdataset

from pipelines.handover.mixture import Candidates, Mixture
from pipelines.handover.stage_samples import PlannedView, ReadSteps, plan_view
from pipelines.sample import Item, Media, Modality, Sample, Turn
from pipelines.storage.files import write_rows
from pipelines.storage.shards import (
    INDEX_SCHEMA,
    Manifest,
    Shard,
    TarShardWriter,
    hash_file,
    index_path,
    json_range,
    members,
    shard_name,
)
from pipelines.storage.sidecars import ENCODER, SIDECAR_SCHEMA, SidecarManifest, sidecar_folder, to_npy
from pipelines.world.captions import caption
from pipelines.world.scenes import draw
from tests.benchmarks import Row, compare, timed

REPEATS = 5
SAMPLES, SAMPLES_PER_SHARD = 10_000, 1000
LONG_EPOCH = 3_000_000  # samples: the captions of CC3M
BATCH_SIZE = 32
WINDOW = 16  # batches whose samples are sorted together
MAX_TOKENS = 512
MEDIA_BYTES = 2048  # a small image; larger ones slow only the peer, since ours does not read them
FEATURES = 1024  # ImageBind's


def run(scale: float) -> list[Row]:
    """Writes caption pairs with a feature sidecar, and reads an epoch of them both ways."""
    count = max(BATCH_SIZE, round(SAMPLES * scale))
    with TemporaryDirectory() as folder:
        directory = Path(folder) / "shards" / "pictures"
        view = _dataset(directory, count)
        urls = [str(directory / shard.name) for shard in view.manifest.shards]
        ours, peer = compare(
            lambda: _rate(_planned(view, _mixture(view)), count), lambda: _rate(_webdataset(urls), count), REPEATS
        )
        return [_epoch_row(ours, peer), _start_row(view, LONG_EPOCH * scale)]


def _epoch_row(ours: float, peer: float) -> Row:
    note = (
        "ours: shuffled, JSON and ImageBind features of each sample, as Arrow tables; webdataset: in tar "
        "order, all members undecoded, JSON parsed, no features"
    )
    return Row(
        name="reading an epoch", ours=ours, peer=peer, ratio=ours / peer, target=1.0, unit="samples/s", note=note
    )


def _start_row(view: PlannedView, length: float) -> Row:
    """Time to the first sample; the epoch is long because it repeats every sample many times."""
    weight = max(1.0, length / view.manifest.samples)

    def seconds(share: float) -> float:
        mixture = _mixture(view, weight)
        with timed() as watch:
            next(_planned(view, mixture, int(mixture.epoch_steps * share)))
        return watch.seconds

    late, early = compare(lambda: seconds(0.9), lambda: seconds(0.0), REPEATS)
    samples = _mixture(view, weight).epoch_samples
    return Row(
        name="starting at 90 % of an epoch",
        ours=late,
        peer=early,
        ratio=late - early,
        target=1.0,
        unit="s",
        at_most=True,
        note=f"time to the first sample of an epoch of {samples:,}; peer: from its start; ratio: difference in seconds",
    )


def _mixture(view: PlannedView, weight: float = 1.0) -> Mixture:
    count = view.manifest.samples
    # With lengths, as in training: sorting is part of the work.
    lengths = np.random.default_rng(0).integers(MAX_TOKENS, size=count, dtype=np.int32)
    return Mixture(
        [Candidates(samples=np.arange(count), lengths=lengths, weight=weight)],
        batch_size=BATCH_SIZE,
        micro_batch_size=BATCH_SIZE,
        window=WINDOW,
        seed=0,
        epochs=1,
    )


def _planned(view: PlannedView, mixture: Mixture, first: int = 0) -> Iterator[Any]:
    """The parsed turns of the samples that the single rank of a run gets from step `first` on."""
    read = ReadSteps(mixture, [view], rank=0, world_size=1)
    for table in read({"id": range(first, mixture.epoch_steps)}):
        for row in table.to_pylist():
            yield json.loads(row["turns"])


def _webdataset(urls: list[str]) -> Iterator[Any]:
    for sample in webdataset.WebDataset(urls, shardshuffle=False):
        yield json.loads(sample["json"])["turns"]


def _rate(turns: Iterator[Any], count: int) -> float:
    with timed() as watch:
        seen = sum(1 for _ in turns)
    assert seen == count, f"{seen} samples read of {count}"
    return seen / watch.seconds


def _dataset(directory: Path, count: int) -> PlannedView:
    """Writes a prepared dataset of caption pairs, with the sidecar that a training stage reads."""
    directory.mkdir(parents=True)
    sidecar = sidecar_folder(directory, "encoder-0")
    sidecar.mkdir(parents=True)
    starts = range(0, count, SAMPLES_PER_SHARD)
    chunks = [range(start, min(start + SAMPLES_PER_SHARD, count)) for start in starts]
    shards = [_shard(directory / shard_name(place), numbers) for place, numbers in enumerate(chunks)]
    features = [_sidecar_shard(sidecar / shard_name(place), numbers) for place, numbers in enumerate(chunks)]
    Manifest(
        dataset="pictures",
        rows=count,
        samples=count,
        samples_per_shard=SAMPLES_PER_SHARD,
        rejected={},
        shards=shards,
        views={"pictures_enc": "caption"},
        output_items={},
        input_items=count,
        licence="",
    ).write(directory)
    SidecarManifest(
        kind=ENCODER,
        encoder_id="encoder-0",
        encoder_name="features drawn at random",
        untrained=True,
        shape=[FEATURES],
        dtype="float32",
        items=count,
        shards=features,
        of_shards=[shard.sha256 for shard in shards],
    ).write(sidecar)
    return plan_view("pictures_enc", "caption", directory, 1.0, {})


def _shard(tar: Path, numbers: range) -> Shard:
    rows = []
    with TarShardWriter(tar) as writer:
        for number in numbers:
            values = members(_pair(number))
            offset, _ = writer.write(_key(number), values)
            start, length = json_range(values, offset)
            rows.append({"key": _key(number), "json_offset": start, "json_length": length})
    write_rows(index_path(tar), rows, INDEX_SCHEMA)
    return _described(tar, len(numbers))


def _sidecar_shard(tar: Path, numbers: range) -> Shard:
    rows = []
    with TarShardWriter(tar) as writer:
        for number in numbers:
            data = to_npy(np.random.default_rng(number).standard_normal((1, FEATURES), np.float32))
            offset, _ = writer.write(_key(number), {"npy": data})
            rows.append({"key": _key(number), "offset": offset + BLOCKSIZE, "length": len(data), "lengths": [1]})
    write_rows(index_path(tar), rows, SIDECAR_SCHEMA)
    return _described(tar, len(numbers))


def _described(tar: Path, samples: int) -> Shard:
    return Shard(name=tar.name, samples=samples, bytes=tar.stat().st_size, sha256=hash_file(tar))


def _key(number: int) -> str:
    return f"k{number:09d}"


def _pair(number: int) -> Sample:
    text = caption(draw(0, number)[Modality.IMAGE], number)
    item = Item(modality=Modality.IMAGE, name="jpg", caption=text)
    turns = (Turn(role="user", parts=(item,)), Turn(role="assistant", parts=(text,)))
    # Neither reader decodes the image: bytes of an image's size will do.
    media = {"jpg": Media(modality=Modality.IMAGE, data=number.to_bytes(8) * (MEDIA_BYTES // 8), format="jpg")}
    return Sample(key=_key(number), source=f"rows.json#{number}", turns=turns, media=media)
