"""Shared by the training benchmarks: shards made by the real commands, a model, rows and batches, a bare loop.

The model is the preset `tiny` around a base LLM that is large enough for a step not to be all overhead: a Llama with 4
layers of width 256, Vicuna's vocabulary of 32,000, and random weights (20 million).
"""

import json
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from jobs import embed, prepare
from jobs.common import cli
from jobs.common.settings import deepspeed_settings, load_settings
from jobs.training.stage import StagePlan, order_samples, plan_stage
from model.core.batch import Batch
from model.core.losses import Criterion, LossWeights, total
from model.core.nextgpt import NextGPT
from model.parts.builtin import resolve
from model.parts.devices import best_device
from model.parts.library_logs import quiet_libraries
from model.training.engine import Rank
from model.training.feed import Row, micro_batches
from model.training.train_settings import TrainSettings
from model.training.trainer import Job, Trainer
from pipelines.handover.stage_samples import ReadSteps
from pipelines.sample import Modality
from pipelines.storage.sidecars import ROW_KINDS, from_npy
from pipelines.world.dataset import write_world
from tests.benchmarks import host_bytes, say

WORLD_SIZE = 32  # pairs of each modality
SAMPLES_PER_SHARD = 8
LLAMA = {
    "vocab_size": 32_000,
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 1024,
}
WARMUP_STEPS = 2
MANY_STEPS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """The inputs of the sections: prepared and embedded shards, a folder for runs, and settings that name the LLM."""

    shards: Path
    folder: Path
    overrides: tuple[str, ...]

    def settings(self, stage: int, *overrides: str) -> TrainSettings:
        """The settings of a stage with more steps than any section runs."""
        return load_settings(stage, "tiny", [*self.overrides, f"max_steps={MANY_STEPS}", *overrides])

    def trainer(self, settings: TrainSettings) -> Trainer:
        """The trainer of a run with this process as its only worker."""
        job = Job(
            settings=settings,
            deepspeed=deepspeed_settings(settings),
            num_steps=MANY_STEPS,
            held_out_steps=0,
            alignment_variance=dict.fromkeys(Modality, 1.0),
            run=self.folder / f"stage-{settings.stage}",
            init=None,
            history={},
            card={},
        )
        return Trainer(job, Rank(rank=0, world_size=1, device=best_device()))

    def plan(self, settings: TrainSettings) -> StagePlan:
        """The views of the stage, checked as `jobs/train_stage.py` checks them."""
        return plan_stage(settings, self.shards, self.folder / f"stage-{settings.stage}", None)


def reader(plan: StagePlan) -> ReadSteps:
    """The reader of each step's rows, in the order of `jobs/train_stage.py`."""
    return ReadSteps(order_samples(plan).mixture, plan.views, rank=0, world_size=1)


@contextmanager
def ground(data: Path | None) -> Iterator[Ground]:
    """Prepares and embeds a data folder, or by default a small world, in a temporary folder.

    The commands' output goes to standard error.
    """
    with (
        tempfile.TemporaryDirectory(prefix="bench-training-", ignore_cleanup_errors=True) as name,
        redirect_stdout(sys.stderr),
    ):
        folder = Path(name)
        if data is None:
            data = folder / "world"
            say(f"drawing a world of {WORLD_SIZE} pairs of each modality")
            write_world(data, count=WORLD_SIZE)
        shards = folder / "shards"
        cli.start_ray()
        prepare.main(["--data", str(data), "--out", str(shards), "--samples-per-shard", str(SAMPLES_PER_SHARD)])
        embed.main(["--shards", str(shards), "--preset", "tiny"])
        with process_group(folder / "group"):
            yield Ground(shards=shards, folder=folder, overrides=write_llm(folder / "llm"))


def write_llm(folder: Path) -> tuple[str, ...]:
    """Writes the base LLM with the tiny tokenizer; returns the settings that name it."""
    best_device()  # before transformers imports DeepSpeed, which otherwise searches for an accelerator
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    with quiet_libraries(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**LLAMA)).save_pretrained(folder)
        AutoTokenizer.from_pretrained(resolve("builtin:tiny/llm")).save_pretrained(folder)
    return llm_settings(folder)


def llm_settings(folder: Path) -> tuple[str, ...]:
    """The settings for the LLM in a folder: its name, and the sizes in its configuration."""
    config = json.loads((folder / "config.json").read_text())
    sizes = {"hidden_size": "hidden_size", "vocab_size": "vocab_size", "num_layers": "num_hidden_layers"}
    return f"model.llm.name={folder}", *(f"model.llm.{setting}={config[size]}" for setting, size in sizes.items())


@contextmanager
def process_group(file: Path) -> Iterator[None]:
    """A process group of this process only, as DeepSpeed needs; `file` must not exist yet."""
    backend = "nccl" if best_device() == "cuda" else "gloo"
    before = os.environ.get("LOCAL_RANK")
    os.environ["LOCAL_RANK"] = "0"  # as torchrun and Ray Train set it
    dist.init_process_group(backend, init_method=file.absolute().as_uri(), rank=0, world_size=1)
    try:
        yield
    finally:
        import deepspeed  # late, so that best_device() runs first

        # DeepSpeed's own function if it knows the group: it caches groups, and would reuse these with the next one.
        (deepspeed.comm if deepspeed.comm.is_initialized() else dist).destroy_process_group()
        if before is None:
            del os.environ["LOCAL_RANK"]
        else:
            os.environ["LOCAL_RANK"] = before


def held_bytes() -> tuple[int, int]:
    """The current and peak memory of this process: of the GPU if it has one."""
    if best_device() == "cuda":
        return torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
    return host_bytes()


def rows_of(read: ReadSteps, steps: range) -> Iterator[Row]:
    """The rows of some steps as for a training worker, with embeddings as arrays."""
    for table in read({"id": steps}):
        for row in table.to_pylist():
            yield row | {kind: from_npy(row[kind]) if row[kind] else None for kind in ROW_KINDS}


def batches_of(trainer: Trainer, rows: Iterable[Row], steps: range) -> Iterator[list[Batch]]:
    """Each step's micro-batches, created lazily."""
    pad_id = int(trainer.tokenizer.pad_token_id or 0)
    return micro_batches(rows, trainer.encode, steps, trainer.accumulation, pad_id)


class BareLoop:
    """The training step in plain PyTorch: forward, loss, backward, clipping, AdamW; no engine, schedule or log."""

    def __init__(self, model: NextGPT, settings: TrainSettings, criterion: Criterion, weights: LossWeights) -> None:
        self.model = model.to(best_device())
        self.model.set_stage(settings.stage)
        self._criterion, self._weights = criterion, weights
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._clip: float = deepspeed_settings(settings)["gradient_clipping"]
        self._optimizer = torch.optim.AdamW(
            self._trained,
            lr=settings.optimizer.learning_rate * settings.optimizer.learning_rate_scale,
            betas=settings.optimizer.betas,
            weight_decay=settings.optimizer.weight_decay,
        )

    def step(self, batches: Sequence[Batch]) -> float:
        """One update on a global batch; returns its loss."""
        counts_T: Any = sum(map(self._criterion.count, batches))
        loss = 0.0
        for batch in batches:
            moved = batch.to(best_device())
            share = total(self._criterion(self.model(moved), moved), counts_T, self._weights)
            share.backward()  # type: ignore[no-untyped-call]
            loss += float(share.detach())
        torch.nn.utils.clip_grad_norm_(self._trained, self._clip)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss
