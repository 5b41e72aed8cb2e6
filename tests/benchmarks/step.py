"""Our training step, `Trainer.step` on a DeepSpeed engine, against a bare PyTorch loop on the same batches."""

from itertools import cycle, islice
from typing import Any

from model.core.nextgpt import NextGPT
from model.parts.devices import best_device
from tests.benchmarks import Row, compare, timed
from tests.benchmarks.training import WARMUP_STEPS, BareLoop, Ground, batches_of, reader, rows_of

STEPS = 8
REPEATS = 5
TARGET = 0.9


def run(scale: float, ground: Ground) -> list[Row]:
    """Steps per second of stage 3 on both sides, with micro-batches in memory."""
    steps = max(2, round(STEPS * scale))
    settings = ground.settings(3)
    trainer = ground.trainer(settings)
    bare = BareLoop(
        NextGPT.from_config(settings.model, adapter=True, seed=settings.seed),
        settings,
        trainer.objective.last.criterion,
        trainer.objective.last.weights,
    )
    batches = list(batches_of(trainer, rows_of(reader(ground.plan(settings)), range(steps)), range(steps)))

    def rate(step: Any) -> float:
        with timed() as watch:
            for number, batch in enumerate(batches):
                step(number, batch)
        return steps / watch.seconds

    for number, batch in enumerate(islice(cycle(batches), WARMUP_STEPS)):
        trainer.step(number, batch)
        bare.step(batch)
    ours, peer = compare(
        lambda: rate(trainer.step), lambda: rate(lambda _, batch: bare.step(batch)), REPEATS, title="step: steps/s"
    )
    return [
        Row(
            name="step / bare PyTorch",
            ours=ours,
            peer=peer,
            ratio=ours / peer,
            target=TARGET,
            unit="steps/s",
            note=f"stage 3, {settings.batch_size} samples in {trainer.accumulation} micro-batches, one process on "
            f"{best_device()}; peer: forward, the same loss, backward, clip, AdamW",
        )
    ]
