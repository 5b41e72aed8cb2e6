"""A stage's training: a DeepSpeed engine, the step, the loop. Knows nothing of where rows come from, nor of Ray."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from model.batch import Example, collate
from model.checkpoint import load_weights, save_pretrained
from model.dialogue import IGNORE, encode_dialogue
from model.losses import Counts, Criterion, Losses, LossWeights, total
from model.nextgpt import NextGPT
from model.settings import TrainSettings
from model.tokenizer import load_tokenizer
from pipelines.sample import Modality, turns_from_json

Row = Mapping[str, Any]
Report = Callable[[dict[str, float], bool], None]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """This process among the workers."""

    rank: int
    world_size: int
    device: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a worker is to train.

    `alignment_variance` is the variance of the caption embeddings by modality, which normalises the alignment loss:
    predicting their mean scores 1. `history` is what checkpoints remember of this stage, `card` goes into the model
    card.
    """

    settings: TrainSettings
    deepspeed: Mapping[str, Any]
    num_steps: int
    alignment_variance: Mapping[Modality, float]
    init: Path | None
    history: Mapping[str, Any]
    card: Mapping[str, Any]


class Trainer:
    """One worker's part of a run: model, engine, and how rows become batches."""

    def __init__(self, job: Job, rank: Rank) -> None:
        settings = job.settings
        self.job, self.rank = job, rank
        self.tokenizer = load_tokenizer(settings.model)
        self.model = self._build()
        self.manifest = self.model.set_stage(settings.stage)
        self.criterion = Criterion(
            alignment_variance=job.alignment_variance,
            padding_weight=settings.loss.padding_weight,
            legacy=settings.loss.alignment == "l2",
        )
        self.weights = LossWeights(tokens=settings.loss.text_weight, alignment=settings.loss.alignment_weights)
        self.accumulation = _accumulation(settings, rank.world_size)
        self.engine = self._engine()

    def run(self, rows: Iterable[Row], report: Report) -> None:
        """Trains over rows that come sorted by `step`; reports each step, and whether a checkpoint is due."""
        every = self.job.settings.checkpoint_every
        waited = time.perf_counter()
        for step, examples in self._steps(rows):
            started = time.perf_counter()
            learning_rate = self.engine.get_lr()[0]
            losses = self.step(examples)
            figures = {
                "step": step + 1,
                "loss": self.loss_of(losses),
                **losses.means(),
                "learning_rate": learning_rate,
                "data_seconds": started - waited,
                "step_seconds": time.perf_counter() - started,
            }
            waited = time.perf_counter()
            done = step + 1
            report(figures, done == self.job.num_steps or (every is not None and done % every == 0))

    def step(self, examples: list[Example]) -> Losses:
        """One update on this rank's share of a global batch; returns the losses of the whole of it.

        Every term is divided by its count over the global batch, so that how samples are split over ranks and
        micro-batches changes nothing.
        """
        batches = [collate(part, self._pad_id).to(self.rank.device) for part in _split(examples, self.accumulation)]
        counts = sum((self.criterion.count(batch) for batch in batches), Counts())
        counts = Counts.from_list(self._sum(counts.to_list()))
        seen: list[float] = []
        for batch in batches:
            losses = self.criterion(self.engine(batch), batch)
            # DeepSpeed averages over ranks and over micro-batches; ours are shares of one sum.
            self.engine.backward(total(losses, counts, self.weights) * self.rank.world_size * self.accumulation)
            self.engine.step()
            figures = losses.to_list()
            seen = [a + b for a, b in zip(seen, figures, strict=True)] if seen else figures
        return Losses.from_list(self._sum(seen))

    def loss_of(self, losses: Losses) -> float:
        """The weighted sum that is minimised."""
        return float(total(losses, losses.counts, self.weights))

    def save(self, directory: Path, metrics: Mapping[str, float]) -> None:
        """Writes what was trained; one rank does."""
        stage = {"stage": self.job.settings.stage, **self.job.history, "steps": int(metrics["step"])}
        card = {**self.job.card, "metrics": dict(metrics)}
        save_pretrained(self.model, directory, self.tokenizer, stages=[*self.stages, stage], card=card)

    def encode(self, row: Row) -> Example:
        """A row of the hand-over, its embeddings as arrays (None where there are none), as the model takes it."""
        config = self.job.settings.model
        dialogue = encode_dialogue(
            turns_from_json(row["turns"]),
            self.tokenizer,
            self.model.vocabulary,
            config.input_projection.num_input_tokens,
            config.max_length,
        )
        if self.job.settings.stage == 2:
            # The caption stands in the prompt already; what is learned is which signal tokens follow it.
            first = self.model.vocabulary.base_size
            dialogue = replace(dialogue, labels=[label if label >= first else IGNORE for label in dialogue.labels])
        targets = {
            modality: (row[modality.value], list(row[f"{modality.value}_lengths"]))
            for modality in Modality
            if row[modality.value] is not None
        }
        return Example(key=row["key"], dialogue=dialogue, features_NE=row["encoder"], targets=targets)

    def _steps(self, rows: Iterable[Row]) -> Iterator[tuple[int, list[Example]]]:
        """Every step in turn; a rank that has no sample at a step takes part with none."""
        groups = groupby(rows, key=lambda row: int(row["step"]))
        pending = next(groups, None)
        for step in range(self.job.num_steps):
            examples = []
            if pending is not None and pending[0] == step:
                examples = [self.encode(row) for row in pending[1]]
                pending = next(groups, None)
            yield step, examples
        assert pending is None, "rows come sorted by step, and none beyond the last"

    def _build(self) -> NextGPT:
        settings = self.job.settings
        adapter = settings.stage == 3 or (self.job.init is not None and (self.job.init / "adapter").is_dir())
        model = NextGPT.from_config(
            settings.model,
            adapter=adapter,
            seed=settings.seed,
            dtype=DTYPES[settings.precision],
            gradient_checkpointing=settings.gradient_checkpointing,
        )
        self.stages = load_weights(model, self.job.init) if self.job.init is not None else []
        return model.to(self.rank.device)

    def _engine(self) -> Any:
        settings = self.job.settings
        trainable = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(
            trainable,
            lr=settings.optimizer.learning_rate * settings.optimizer.learning_rate_scale,
            betas=settings.optimizer.betas,
            weight_decay=settings.optimizer.weight_decay,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._schedule)
        config = {
            **self.job.deepspeed,
            "train_batch_size": settings.micro_batch_size * self.accumulation * self.rank.world_size,
            "train_micro_batch_size_per_gpu": settings.micro_batch_size,
            "gradient_accumulation_steps": self.accumulation,
            "bf16": {"enabled": settings.precision == "bf16"},
        }
        torch.manual_seed(settings.seed + self.rank.rank)
        import deepspeed  # late, so that best_device() can tell it what there is

        with redirect_stdout(StringIO()):  # it announces each extension it has built
            engine, *_ = deepspeed.initialize(
                model=self.model, optimizer=optimizer, lr_scheduler=schedule, config=config, dist_init_required=False
            )
        return engine

    def _schedule(self, step: int) -> float:
        warmup = round(self.job.num_steps * self.job.settings.optimizer.warmup_ratio)
        if step < warmup:
            return (step + 1) / warmup
        return max(0.0, (self.job.num_steps - step) / max(1, self.job.num_steps - warmup))

    def _sum(self, values: list[float]) -> list[float]:
        """Adds up numbers over all ranks."""
        if self.rank.world_size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self.rank.device)
        dist.all_reduce(tensor)
        return tensor.tolist()

    @property
    def _pad_id(self) -> int:
        return int(self.tokenizer.pad_token_id or 0)


def _accumulation(settings: TrainSettings, world_size: int) -> int:
    """How many micro-batches a rank takes a step."""
    share = -(-settings.batch_size // world_size)
    return -(-share // settings.micro_batch_size)


def _split(examples: list[Example], parts: int) -> list[list[Example]]:
    """Parts as equal as can be; there may be empty ones, since every rank takes the same number of micro-batches."""
    return [examples[part::parts] for part in range(parts)]
