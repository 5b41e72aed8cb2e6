"""The training loop of a stage, with validation and checkpoints. Independent of Ray and of where rows come from."""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from model.checkpoints.base_rows import save_base_rows
from model.checkpoints.checkpoint import load_weights, trained_state, write_files
from model.core.batch import Batch, Example
from model.core.chat_template import chat_template
from model.core.dialogue import IGNORE, encode_dialogue
from model.core.losses import TERMS, Losses, total
from model.core.nextgpt import NextGPT
from model.core.tokenizer import load_tokenizer
from model.runs.meter import Meter
from model.runs.run_checkpoints import RunCheckpoints
from model.runs.run_log import RunLog
from model.runs.run_state import TrainState, resumable
from model.training.divergence import Diverged, LossGuard
from model.training.engine import DTYPES, Rank, accumulation, build_engine, gather, restore, snapshot
from model.training.feed import Row, features_of, micro_batches, prefetch
from model.training.held_out import HeldOut
from model.training.objective import Objective
from model.training.train_settings import TrainSettings
from pipelines.sample import Modality, turns_from_json

_MICRO_BATCHES = 1 << 20  # more than a step has: micro-batch seeds are numbered consecutively


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The training job of a worker.

    `run` is the folder of the run: if it holds a checkpoint, training resumes from it; otherwise it starts from the
    checkpoint `init`, or from scratch. `alignment_variance` is the variance of the caption embeddings by modality,
    which normalises the alignment loss so that predicting the mean scores 1, and `caption_scale` their root mean
    square, which connectors take. `history` is the stage's entry in checkpoints, `card` goes into the model card.
    """

    settings: TrainSettings
    deepspeed: Mapping[str, Any]
    num_steps: int
    held_out_steps: int
    alignment_variance: Mapping[Modality, float]
    run: Path
    init: Path | None
    history: Mapping[str, Any]
    card: Mapping[str, Any]
    caption_scale: Mapping[Modality, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """The losses of a global batch, and its numbers of samples, of tokens without padding and with it.

    `stops` says whether the run is to end after this step.
    """

    loss: float
    losses: Losses
    gradient_norm: float | None
    samples: int
    tokens: int
    positions: int
    stops: bool


class Trainer:
    """One worker's part of a run: model, engine and training loop.

    `on_checkpoint` is called for each finished checkpoint, on every rank. `asked_to_stop` is called in each step; where
    it is true on any rank, the run is saved after this step and ends.
    """

    def __init__(
        self,
        job: Job,
        rank: Rank,
        on_checkpoint: Callable[[Path, TrainState], None] | None = None,
        asked_to_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        settings = job.settings
        self._asked_to_stop = asked_to_stop
        self.job, self.rank = job, rank
        self.tokenizer = load_tokenizer(settings.model)
        self._template = chat_template(settings.model.llm.template, self.tokenizer, settings.model.llm.system)
        checkpoint = resumable(job.run)
        state = TrainState.read(checkpoint) if checkpoint is not None else None
        self.model = self._build(checkpoint or job.init)
        self.stages = list(self.model.stages)[: -1 if checkpoint is not None else None]
        self.model.measure_scales(job.caption_scale)
        self.manifest = self.model.set_stage(settings.stage)
        if rank.rank == 0:
            save_base_rows(self.model, job.run)
        self.first_step = state.step if state is not None else 0
        self._seconds = state.seconds if state is not None else 0.0
        self._started = time.monotonic()
        self._guard = LossGuard(settings.loss.stop_above)
        if state is not None:
            self._guard.load(state.guard)
        self.objective = Objective(
            settings.loss, job.num_steps, self.model.vocabulary, job.alignment_variance, self._denoiser
        )
        self.accumulation = accumulation(settings, rank.world_size)
        universal = state is not None and state.needs_conversion(rank.world_size)
        self.engine = build_engine(self.model, settings, job.deepspeed, job.num_steps, rank, universal=universal)
        if checkpoint is not None:
            restore(self.engine, checkpoint, universal=universal)
        self._checkpoints = RunCheckpoints(
            job.run,
            rank=rank.rank,
            keep_last=settings.keep_last,
            all_done=lambda done: self._sum([float(done)])[0] == rank.world_size,
            on_finished=on_checkpoint or (lambda folder, state: None),
        )

    def run(self, rows: Iterable[Row], held_out: Iterable[Row] = (), log: RunLog | None = None) -> None:
        """Trains on rows sorted by `step` and `micro`, from `first_step` on; only rank 0 passes a log.

        `held_out` are the validation rows, in the same form. Ends early where it is asked to. Raises Diverged, after
        saving, if the loss diverges.
        """
        settings, num_steps = self.job.settings, self.job.num_steps
        validation = self._held_out(held_out)
        meter = Meter(num_steps)
        feed = prefetch(self._micro_batches(rows, range(self.first_step, num_steps)))
        waited, other = time.perf_counter(), 0.0
        for step, batches in enumerate(feed, self.first_step):
            if settings.shuffle_items:
                batches = [batch.with_items_shuffled() for batch in batches]
            started = time.perf_counter()
            learning_rate = self.engine.get_lr()[0]
            result = self._guarded(step, batches)
            done, ended = step + 1, time.perf_counter()
            times = {"data_seconds": started - waited, "step_seconds": ended - started}
            figures = {
                "step": done,
                "loss": result.loss,
                **result.losses.means(),
                "learning_rate": learning_rate,
                **({} if result.gradient_norm is None else {"gradient_norm": result.gradient_norm}),
                **times,
                **meter.step(
                    samples=result.samples,
                    tokens=result.tokens,
                    positions=result.positions,
                    other_seconds=other,
                    **times,
                ),
            }
            keys = self._keys(batches) if settings.log_samples else None
            if log is not None:
                log.step(done, figures | ({} if keys is None else {"samples": keys}))
                if done <= self.first_step + 2 or done % settings.log_every == 0 or done == num_steps:
                    print(meter.line(settings.stage, done, figures), flush=True)
            saves = done == num_steps or _every(settings.checkpoint_every, done)
            validates = validation is not None and (saves or _every(settings.validation.every, done))
            scores = validation.score(done, log) if validation is not None and validates else {}
            if saves or result.stops:
                self._save(done, log, figures, scores)
            samples = validation is not None and validates and validation.makes_samples
            # Samples may take minutes: a run stopped meanwhile must already have its checkpoint.
            self._checkpoints.poll(wait=done == num_steps or result.stops or (saves and samples))
            if validation is not None and samples:
                validation.sample(done, log)
            if result.stops:
                break
            waited = time.perf_counter()
            other = waited - ended
        self._checkpoints.close()

    def step(self, step: int, batches: Sequence[Batch]) -> StepResult:
        """Makes one update on this rank's share of a global batch; returns the figures of the whole batch.

        Every term is divided by its count over the global batch, and random numbers are seeded by micro-batch, so that
        the result does not depend on how a global batch is split over ranks. Raises Diverged before the update.
        """
        phase = self.objective.at(step)
        if step == self.objective.switch:
            self._guard.load([])  # losses before and after do not compare
        counts_T = sum(map(phase.criterion.count, batches), torch.zeros(len(TERMS), dtype=torch.float64))
        counts_T = torch.tensor(self._sum(counts_T.tolist()), dtype=torch.float64)
        seen: list[list[float]] = []
        for place, batch in enumerate(batches):
            seed = self._seed(step, place)
            torch.manual_seed(seed)  # for the adapter's dropout
            moved = batch.to(self.rank.device)
            losses = phase.criterion(self.engine(moved), moved, torch.Generator().manual_seed(seed))
            # DeepSpeed averages over ranks and micro-batches; these are shares of one sum.
            share = total(losses, counts_T, phase.weights) * self.rank.world_size * self.accumulation
            self.engine.backward(share)
            seen.append([*losses.to_list(), *batch.sizes])
            if place < len(batches) - 1:
                self.engine.step()
        sums = [math.fsum(column) for column in zip(*seen, strict=True)]
        *values, samples, tokens, positions, asked = self._sum([*sums, float(self._asked_to_stop())])
        losses = Losses.from_list(values)
        loss = float(total(losses, losses.counts_F, phase.weights))
        self._guard.check(step + 1, loss, int(samples))
        self.engine.step()
        norm = self.engine.get_global_grad_norm()
        return StepResult(
            loss=loss,
            losses=losses,
            gradient_norm=None if norm is None else float(norm),
            samples=int(samples),
            tokens=int(tokens),
            positions=int(positions),
            stops=asked > 0,
        )

    def encode(self, row: Row) -> Example:
        """Encodes a row of the hand-over, with its embeddings as arrays (or None), for the model."""
        config = self.job.settings.model
        system, turns = self._template.without_system(turns_from_json(row["turns"]), row.get("system") or ())
        dialogue = encode_dialogue(
            turns,
            self.tokenizer,
            self.model.vocabulary,
            config.input_projection.num_input_tokens,
            config.max_length,
            template=self._template,
            system=system,
        )
        if self.job.settings.stage == 2:
            # The caption is already in the prompt; only the signal tokens that follow it are learned.
            first = self.model.vocabulary.base_size
            dialogue = replace(dialogue, labels=[label if label >= first else IGNORE for label in dialogue.labels])
        return Example(
            key=row["key"],
            dialogue=dialogue,
            features=features_of(row),
            targets={m: (row[m.value], list(row[f"{m.value}_lengths"])) for m in Modality if row[m.value] is not None},
            latents={m: row[f"{m.value}_latents"] for m in Modality if row.get(f"{m.value}_latents") is not None},
        )

    def _guarded(self, step: int, batches: Sequence[Batch]) -> StepResult:
        """Runs a step; if the loss diverges, saves the run as of before the step and names the samples."""
        try:
            return self.step(step, batches)
        except Diverged as error:
            self._checkpoints.poll(wait=True)
            if resumable(self.job.run) is None or step > self.first_step:
                self._save(step, None, {}, {})
                self._checkpoints.poll(wait=True)
            raise Diverged(error.step, error.loss, self._keys(batches), error.reason) from None

    def _micro_batches(self, rows: Iterable[Row], steps: range) -> Iterable[list[Batch]]:
        return micro_batches(rows, self.encode, steps, self.accumulation, int(self.tokenizer.pad_token_id or 0))

    def _held_out(self, rows: Iterable[Row]) -> HeldOut | None:
        """The validation, with its samples kept in memory; None if there are no held-out samples."""
        if not self.job.held_out_steps:
            return None
        kept = list(rows)
        steps = self._micro_batches(kept, range(self.job.held_out_steps))
        return HeldOut(
            self.engine,
            self.objective.held_out,
            self.tokenizer,
            settings=self.job.settings,
            rank=self.rank,
            batches=[batch for step in steps for batch in step],
            rows=kept,
            reduce=self._sum,
        )

    def _save(self, step: int, log: RunLog | None, figures: Mapping[str, float], scores: Mapping[str, float]) -> None:
        """Copies the state for a checkpoint and writes it in the background; every rank calls it."""
        self._checkpoints.poll(wait=True)
        if log is not None:
            log.flush()
        self._checkpoints.clear(step)  # before DeepSpeed's barrier, after which the other ranks write
        files = snapshot(self.engine)
        tensors = gather(self.model, trained_state(self.model), sharded=self.job.settings.zero == 3)
        seconds = self._seconds + time.monotonic() - self._started
        stage = {
            "stage": self.job.settings.stage,
            **self.job.history,
            "steps": step,
            "metrics": dict(figures),
            "validation": dict(scores),
            "seconds": round(seconds, 1),
        }
        write = partial(
            write_files,
            self.model,
            tokenizer=self.tokenizer,
            stages=[*self.stages, stage],
            card=self.job.card,
            state=tensors,
            base_rows=False,
        )
        state = TrainState(
            step=step,
            world_size=self.rank.world_size,
            zero=self.job.settings.zero,
            seconds=seconds,
            guard=self._guard.state(),
            metrics=figures,
            validation=scores,
        )
        self._checkpoints.start(state, files, write if self.rank.rank == 0 else None)

    def _build(self, checkpoint: Path | None) -> NextGPT:
        settings = self.job.settings
        model = NextGPT.from_config(
            settings.model,
            adapter=settings.stage == 3,
            seed=settings.seed,
            dtype=DTYPES[settings.precision],
            gradient_checkpointing=settings.gradient_checkpointing,
            device=self.rank.device,
        )
        if checkpoint is not None:
            load_weights(model, checkpoint)
        return model

    def _denoiser(self, modality: Modality) -> Any:
        from model.decoders.denoising import Denoiser  # late: it loads diffusers

        settings = self.job.settings
        return Denoiser(
            modality,
            settings.model.outputs[modality].decoder,
            self.rank.device,
            DTYPES[settings.precision],
            settings.gradient_checkpointing,
        )

    def _seed(self, step: int, place: int) -> int:
        """The seed of a micro-batch, by its number in the global batch: independent of the rank."""
        micro = place * self.rank.world_size + self.rank.rank
        return (self.job.settings.seed * 1_000_003 + step) * _MICRO_BATCHES + micro

    def _keys(self, batches: Sequence[Batch]) -> list[str]:
        """The keys of the global batch, in order; every rank calls it."""
        mine = [list(batch.keys) for batch in batches]
        everyone: list[list[list[str]]] = [mine]
        if self.rank.world_size > 1:
            everyone = [[] for _ in range(self.rank.world_size)]
            dist.all_gather_object(everyone, mine)
        return [key for place in range(len(mine)) for keys in everyone for key in keys[place]]

    def _sum(self, values: list[float]) -> list[float]:
        """Sums numbers over all ranks."""
        if self.rank.world_size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self.rank.device)
        dist.all_reduce(tensor)
        return tensor.tolist()


def _every(steps: int | None, done: int) -> bool:
    return steps is not None and done % steps == 0
