"""One worker of a run without Ray, in a process of its own with the environment that torchrun would give it."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path

os.environ["DS_ACCELERATOR"] = "cpu"

import torch
import torch.distributed as dist
from training_cases import make_rows, make_trainer

from model.runs.run_log import RunLog
from model.training.engine import Rank
from model.training.feed import Row

NUM_STEPS = 9


def work(environment: Mapping[str, str], run: str, stage: int, until: int, *overrides: str) -> None:
    """Trains from where the run stands, and dies when the sample of step `until` comes; prints into `RUN-RANK.out`."""
    os.environ |= environment
    output = os.open(f"{run}-{environment['RANK']}.out", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    _train(Path(run), stage, until, *overrides)


def _train(run: Path, stage: int, until: int, *overrides: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = Rank(rank=dist.get_rank(), world_size=dist.get_world_size(), device="cpu")
    trainer = make_trainer(stage, run, "log_samples=true", *overrides, rank=rank, num_steps=NUM_STEPS)
    rows = make_rows(rank, first=trainer.first_step, num_steps=NUM_STEPS)
    log = nullcontext()
    if rank.rank == 0:
        log = RunLog(run, first_step=trainer.first_step, tracker=None, name="test", settings={})
    with log as opened:
        trainer.run(_until(rows, run, until), log=opened)
    dist.barrier()
    dist.destroy_process_group()


def _until(rows: list[Row], run: Path, until: int) -> Iterator[Row]:
    """Rows, up to the second one of step `until`; by then the checkpoint after the step before is finished."""
    checkpoint = run / f"checkpoint-{until - 1:06d}"
    seen = 0
    for row in rows:
        if row["step"] == until:
            # The first row ends the step before, which finishes the checkpoint, once its files are written.
            _wait_for(checkpoint / ("config.json" if seen else "engine/state.json"))
            if seen:
                os._exit(9)
            seen += 1
        yield row


def _wait_for(path: Path) -> None:
    while not path.is_file():
        time.sleep(0.05)
