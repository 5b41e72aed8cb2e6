"""Media per second of each decoder in batches, against one at a time."""

from time import perf_counter

import numpy as np

from model.checkpoints.hub import read_model_config
from model.decoders.decoder import Decoder
from model.decoders.rendering import most_at_once
from model.decoders.wish import Wish
from model.parts.devices import best_device
from tests.benchmarks import Row, compare

COUNT = 16
REPEATS = 3


def run(scale: float, checkpoint: str) -> list[Row]:
    """One row per modality, with the same wishes and steps on both sides."""
    config = read_model_config(checkpoint)
    return [
        _row(Decoder(modality, output.decoder, best_device(), config.decoders), scale)
        for modality, output in config.outputs.items()
    ]


def _row(decoder: Decoder, scale: float) -> Row:
    random, count = np.random.default_rng(0), max(2, round(COUNT * scale))
    wishes = [
        Wish(decoder.modality, random.standard_normal(decoder.condition_shape).astype(np.float32), seed)
        for seed in range(count)
    ]
    room = min(count, most_at_once(decoder, {}))
    ours, peer = compare(
        lambda: _rate(decoder, wishes, room),
        lambda: _rate(decoder, wishes, 1),
        REPEATS,
        f"{decoder.modality}: media/s",
    )
    return Row(
        name=f"{decoder.modality} decoder, {room} at once / one at a time",
        ours=ours,
        peer=peer,
        ratio=ours / peer,
        target=1.0,
        unit="media/s",
        note=f"{count} media",
    )


def _rate(decoder: Decoder, wishes: list[Wish], at_once: int) -> float:
    started = perf_counter()
    for start in range(0, len(wishes), at_once):
        some = wishes[start : start + at_once]
        decoder.generate_batch(np.stack([wish.condition for wish in some]), [wish.seed for wish in some])
    return len(wishes) / (perf_counter() - started)
