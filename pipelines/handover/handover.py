"""Feeds the planned samples to the training workers: Ray Data reads, each rank gets its own dataset in plan order.

`streaming_split` would drop rows and change their order, so a `DataConfig` of our own gives every rank a dataset
of the steps it has to do. A row is one sample: its turns and the embeddings of its items from the sidecars.
"""

import time
from collections.abc import Mapping
from typing import Any

import ray.data
import ray.train
from ray.data._internal.execution.execution_callback import ExecutionCallback

from pipelines.handover.mixture import Plan
from pipelines.handover.stage_samples import PlannedView, ReadSteps

STEPS_PER_BLOCK = 8
MAX_BLOCKS = 4096  # each is an object in Ray's store, put there before training begins
# Reading is light. A worker on the CPU leaves a tenth of its core to the readers of two datasets, and to those of the
# workers before it, which may take a while to end.
READ_CPUS = 0.02
BREATH = 0.02  # seconds


def step_dataset(first: int, last: int) -> ray.data.Dataset:
    """The dataset passed to the trainer: the numbers of the steps to run, in order."""
    # Items in the object store, not `ray.data.range`: its read tasks want whole cores, which the workers hold.
    blocks = min(MAX_BLOCKS, -(-(last - first) // STEPS_PER_BLOCK))
    return ray.data.from_items([{"id": step} for step in range(first, last)], override_num_blocks=max(1, blocks))


class PlannedDataConfig(ray.train.DataConfig):
    """Gives each rank its planned samples in the plan's order; `plans` are by dataset name."""

    def __init__(self, plans: Mapping[str, Plan], views: list[PlannedView]) -> None:
        super().__init__()
        self._plans = dict(plans)
        self._views = views

    def configure(
        self, datasets: dict[str, Any], world_size: int, *args: Any, **kwargs: Any
    ) -> list[dict[str, ray.data.DataIterator]]:
        """One iterator per rank for each dataset of step numbers."""
        # A plan of millions of samples is put into Ray's store once, and readers on a node share it.
        plans = {name: ray.put(self._plans[name]) for name in datasets}
        return [
            {
                name: self._rank_dataset(plans[name], steps, rank, world_size).iterator()
                for name, steps in datasets.items()
            }
            for rank in range(world_size)
        ]

    def _rank_dataset(self, plan: Any, steps: ray.data.Dataset, rank: int, world_size: int) -> ray.data.Dataset:
        steps.context.execution_options.preserve_order = True
        steps.context.custom_execution_callback_classes = [Breather]
        # One actor, not tasks: it keeps the plan of the epoch and the shards' indexes, which a task would make anew.
        return steps.map_batches(
            _Reader,
            fn_constructor_args=(plan, self._views, rank, world_size),
            compute=ray.data.ActorPoolStrategy(size=1),
            batch_size=None,
            num_cpus=READ_CPUS,
        )


class Breather(ExecutionCallback):
    """Throttles Ray Data's loop, which runs in a thread of the worker.

    While rows are ready and nobody wants them yet, it would go round without a pause, and take half of the worker's
    time from the training.
    """

    def on_execution_step(self, executor: Any) -> None:
        """Called in each iteration of the loop."""
        time.sleep(BREATH)


class _Reader(ReadSteps):
    """The actor of a rank: fetches the plan from Ray's object store."""

    def __init__(self, plan: Any, views: list[PlannedView], rank: int, world_size: int) -> None:
        super().__init__(ray.get(plan), views, rank, world_size)
