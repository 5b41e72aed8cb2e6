"""Rows as the hand-over gives them, and a trainer of the tiny model on this process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jobs.common.settings import deepspeed_settings, load_settings
from model.parts.config import load_preset
from model.parts.families import latent_shape
from model.training.engine import Rank
from model.training.feed import Row
from model.training.trainer import Job, Trainer
from pipelines.sample import Item, Modality, Turn, turns_to_json

STEPS = 4
BATCH, MICRO = 8, 2
HERE = Rank(rank=0, world_size=1, device="cpu")
SHAPES = {"encoder": (32,), "image": (77, 64), "video": (77, 48), "audio": (1, 32)}


def make_trainer(
    stage: int,
    run: Path,
    *overrides: str,
    rank: Rank = HERE,
    init: Path | None = None,
    num_steps: int = STEPS,
    held_out_steps: int = 0,
    asked_to_stop: Callable[[], bool] = lambda: False,
) -> Trainer:
    """Goes on with `run` where it holds a checkpoint."""
    sizes = [f"batch_size={BATCH}", f"micro_batch_size={MICRO}"]
    settings = load_settings(stage, "tiny", [*sizes, "validation.generate=false", *overrides])
    job = Job(
        settings=settings,
        deepspeed=deepspeed_settings(settings),
        num_steps=num_steps,
        held_out_steps=held_out_steps,
        alignment_variance=dict.fromkeys(Modality, 1.0),
        run=run,
        init=init,
        history={"configuration": "test"},
        card={},
        caption_scale=dict.fromkeys(Modality, 0.5),
    )
    return Trainer(job, rank, asked_to_stop=asked_to_stop)


def make_rows(rank: Rank = HERE, first: int = 0, num_steps: int = STEPS, count: int = BATCH) -> list[Row]:
    """A rank's rows from step `first` on: samples with all three media in, others with all three out, in turn."""
    result = []
    for step in range(first, num_steps):
        for place in range(count):
            micro = place // MICRO
            if micro % rank.world_size == rank.rank:
                result.append({"step": step, "micro": micro, **_sample(step * BATCH + place)})
    return result


def with_latents(rows: list[Row]) -> list[Row]:
    """The rows with latents for what they make."""
    names = {modality: output.decoder for modality, output in load_preset("tiny").outputs.items()}
    shapes = {modality: latent_shape(modality, name) for modality, name in names.items()}
    found = []
    for row in rows:
        generator = np.random.default_rng(int(row["key"][1:]))
        made = [modality for modality in Modality if row[modality.value] is not None]
        latents = {f"{m}_latents": generator.normal(size=(1, *shapes[m])).astype(np.float32) for m in made}
        found.append({**row, **latents})
    return found


def _sample(number: int) -> dict[str, Any]:
    generator = np.random.default_rng(number)
    inputs = [Item(modality=m, name=m.value) for m in Modality] if number % 2 else []
    outputs = [Item(modality=m, name="made", caption=f"a {m.value}") for m in Modality] if number % 2 == 0 else []
    turns = (
        Turn(role="user", parts=(*inputs, f"number {number} of them")),
        Turn(role="assistant", parts=("Here." if outputs else f"I see {number}.", *outputs)),
    )
    row: dict[str, Any] = {"key": f"k{number:04d}", "turns": turns_to_json(turns)}
    for kind, shape in SHAPES.items():
        items = len(inputs) if kind == "encoder" else len(outputs) // len(Modality)
        row[kind] = generator.normal(size=(items, *shape)).astype(np.float32) if items else None
        row[f"{kind}_lengths"] = [1 if shape[0] == 1 else 9] * items
    return row
