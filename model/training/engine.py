"""The DeepSpeed engine of a stage: optimizer, schedule, ZeRO and precision from the settings."""

from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from io import StringIO
from typing import Any

import torch

from model.core.nextgpt import NextGPT
from model.training.train_settings import OptimizerSettings, TrainSettings

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """This process among the workers."""

    rank: int
    world_size: int
    device: str


def accumulation(settings: TrainSettings, world_size: int) -> int:
    """How many micro-batches a rank takes a step."""
    return -(-settings.num_micro_batches // world_size)


def engine_config(
    settings: TrainSettings, deepspeed: Mapping[str, Any], world_size: int, *, universal: bool = False
) -> dict[str, Any]:
    """DeepSpeed's configuration: `deepspeed` is what the stage's JSON file says, the settings overrule it.

    `universal` says that the engine will load a checkpoint of another number of workers.
    """
    zero = {**deepspeed.get("zero_optimization", {}), "stage": settings.zero}
    if settings.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    steps = accumulation(settings, world_size)
    return {
        **deepspeed,
        "zero_optimization": zero,
        # PyTorch's AdamW updates what is offloaded, too: the same numbers with and without.
        "zero_force_ds_cpu_optimizer": False,
        "train_batch_size": settings.micro_batch_size * steps * world_size,
        "train_micro_batch_size_per_gpu": settings.micro_batch_size,
        "gradient_accumulation_steps": steps,
        "bf16": {"enabled": settings.precision == "bf16"},
        "checkpoint": {"load_universal": universal},
    }


def build_engine(
    model: NextGPT,
    settings: TrainSettings,
    deepspeed: Mapping[str, Any],
    num_steps: int,
    rank: Rank,
    *,
    universal: bool = False,
) -> Any:
    """Wraps a model, whose trainable tensors are set, in a DeepSpeed engine; every rank calls it."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trainable,
        lr=settings.optimizer.learning_rate * settings.optimizer.learning_rate_scale,
        betas=settings.optimizer.betas,
        weight_decay=settings.optimizer.weight_decay,
    )
    factor = partial(learning_rate_factor, settings=settings.optimizer, num_steps=num_steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    config = engine_config(settings, deepspeed, rank.world_size, universal=universal)
    import deepspeed as library  # late, so that best_device() can tell it what there is

    # On CPUs DeepSpeed would compile an extension of its own for sums over ranks. Gloo does these as well, without a
    # compiler, and without the lock that a worker killed while it compiles leaves for all others to wait at.
    library.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    with redirect_stdout(StringIO()):  # it announces each extension it has built
        engine, *_ = library.initialize(
            model=model, optimizer=optimizer, lr_scheduler=schedule, config=config, dist_init_required=False
        )
    return engine


def learning_rate_factor(step: int, settings: OptimizerSettings, num_steps: int) -> float:
    """Linear warm-up to 1, then linear decay to 0 at the end."""
    warmup = round(num_steps * settings.warmup_ratio)
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (num_steps - step) / max(1, num_steps - warmup))
