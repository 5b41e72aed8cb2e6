"""How many workers train a stage, and on what: as set, else by what the cluster has."""

from dataclasses import dataclass

from jobs.common.cli import UsageError
from model.training.train_settings import TrainSettings

# What a training worker takes of a core where it has no GPU; the rest is for the tasks that read for it.
CPU_SHARE = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """The workers of a run, a pair where Ray may choose between, all cores, and what the user is told of the choice."""

    count: int | tuple[int, int]
    use_gpu: bool
    cores: int
    note: str | None = None

    @property
    def most(self) -> int:
        """As many as there may be."""
        return self.count[1] if isinstance(self.count, tuple) else self.count

    @property
    def threads(self) -> int:
        """Of each worker's arithmetic: on CPUs they share all cores; Ray would give each the one it counts."""
        return 1 if self.use_gpu else max(1, self.cores // self.most)

    @property
    def resources(self) -> dict[str, float]:
        """What each takes of its node, as Ray counts."""
        return {"GPU": 1, "CPU": 1} if self.use_gpu else {"CPU": CPU_SHARE}


def choose_workers(settings: TrainSettings) -> Workers:
    """As set, else one a GPU, else one a core, as far as there are micro-batches for them.

    Where GPUs are asked for, none is up and none can come, the CPU trains.

    Raises:
        UsageError: no GPU is up, some may come, and how many are wanted is not set.
    """
    import ray

    resources = ray.cluster_resources()
    gpus, cores = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
    wants_gpu = gpus > 0 if settings.use_gpu is None else settings.use_gpu
    if wants_gpu and not gpus:
        return _without_gpus(settings, cores)
    count = settings.workers or max(1, min(gpus if wants_gpu else cores, settings.num_micro_batches))
    return Workers(count=count, use_gpu=wants_gpu, cores=cores)


def _without_gpus(settings: TrainSettings, cores: int) -> Workers:
    """On a Ray of this command's own none will come; what another cluster may start, Ray does not say."""
    if started_here():
        # One, since each has a copy of the weights, and a preset that asks for GPUs has many.
        count = settings.workers or 1
        note = (
            f"no GPU on this machine: the CPU trains, workers={count}; from the second step on, each line says about "
            "how long it will take"
        )
        return Workers(count=count, use_gpu=False, cores=cores, note=note)
    if not settings.workers:
        raise UsageError(
            "workers: no GPU is up to count; say how many the cluster is to start, such as workers=4, or train on "
            "CPUs with use_gpu=false"
        )
    note = "no GPU is up: waits until the cluster has started the GPUs of the workers; use_gpu=false trains on CPUs"
    return Workers(count=settings.workers, use_gpu=True, cores=cores, note=note)


def started_here() -> bool:
    """Whether Ray was started by this process, on this machine alone, and so will never have more than it has."""
    from ray._private import worker  # nothing public tells

    return bool(worker._global_node and worker._global_node.is_head())
