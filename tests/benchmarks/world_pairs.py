"""Pairs of the small world for trainings in one process: subjects and captions, rows in steps, a trainer."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jobs.common.settings import deepspeed_settings, load_settings
from model.core.losses import caption_scale, mean_predictor_error
from model.parts.devices import best_device
from model.runs.run_state import TrainState
from model.training.engine import Rank
from model.training.feed import Row
from model.training.trainer import Job, Trainer
from pipelines.sample import Modality
from pipelines.world.captions import caption
from pipelines.world.scenes import Subject, draw
from tests.benchmarks.arms import Budget

PRESET = "world"
PAIRS = 600  # of each modality, as the shipped model was trained on
EXAMINED = 64  # held-out pairs of each modality
_AT_A_TIME = 8  # held-out pairs of a modality in a batch
_WORDINGS = 31  # held-out captions are worded otherwise than those of the pairs that begin the world

# The row of a pair: its modality, whether it is held out, and its number.
RowOf = Callable[[Modality, bool, int], Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A subject and the caption that describes it."""

    subject: Subject
    text: str


def pairs(modality: Modality, *, held_out: bool) -> list[Pair]:
    """The pairs that are trained on, or those of held-out combinations, without the harder ones."""
    if not held_out:
        subjects = [draw(0, index)[modality] for index in range(PAIRS)]
        return [Pair(subject=subject, text=caption(subject, index)) for index, subject in enumerate(subjects)]
    subjects = [draw(0, index, held_out=True, hard=False)[modality] for index in range(EXAMINED)]
    return [Pair(subject=subject, text=caption(subject, _WORDINGS * index)) for index, subject in enumerate(subjects)]


def shares(graded: Sequence[Mapping[str, bool]]) -> dict[str, float]:
    """The share of pairs of which each attribute is right, and `all` of them."""
    each = {name: sum(found[name] for found in graded) / len(graded) for name in graded[0]}
    return each | {"all": sum(all(found.values()) for found in graded) / len(graded)}


def training_rows(modalities: Iterable[Modality], row: RowOf, seed: int, budget: Budget) -> Iterator[Row]:
    """As many pairs of each modality in each step, in an order of the seed, anew in each epoch."""
    each = budget.each
    per_epoch = PAIRS // each
    for step in range(budget.steps):
        epoch, place = divmod(step, per_epoch)
        for modality in modalities:
            order = np.random.default_rng([seed, epoch, list(Modality).index(modality)]).permutation(PAIRS)
            for number in order[place * each : (place + 1) * each]:
                yield {"step": step, "micro": 0, **row(modality, False, int(number))}


def held_out_rows(modalities: Iterable[Modality], row: RowOf) -> list[Row]:
    """The held-out pairs, in steps as those of training."""
    return [
        {"step": step, "micro": 0, **row(modality, True, step * _AT_A_TIME + place)}
        for step in range(EXAMINED // _AT_A_TIME)
        for modality in modalities
        for place in range(_AT_A_TIME)
    ]


def make_trainer(
    run: Path,
    stage: int,
    overrides: Sequence[str],
    *,
    modalities: Sequence[Modality],
    captions: Mapping[Modality, Sequence[tuple[Any, Any]]],
    seed: int,
    budget: Budget,
    states: list[TrainState],
) -> Trainer:
    """A trainer of a stage of preset world from scratch, which is told the embedded `captions` of its outputs."""
    size = budget.each * len(modalities)
    sizes = (f"batch_size={size}", f"micro_batch_size={size}", f"max_steps={budget.steps}", f"seed={seed}")
    settings = load_settings(stage, PRESET, [*sizes, *overrides])
    padding = settings.loss.padding_weight
    job = Job(
        settings=settings,
        deepspeed=deepspeed_settings(settings),
        num_steps=budget.steps,
        held_out_steps=EXAMINED // _AT_A_TIME,
        alignment_variance={m: mean_predictor_error(found, padding) for m, found in captions.items()},
        run=run / "run",
        init=None,
        history={},
        card={},
        caption_scale={modality: caption_scale(found) for modality, found in captions.items()},
    )
    rank = Rank(rank=0, world_size=1, device=best_device())
    return Trainer(job, rank, lambda _, state: states.append(state))
