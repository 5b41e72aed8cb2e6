"""How many workers train a stage, and on which devices: as set, else as the cluster allows."""

from dataclasses import dataclass

from jobs.common.cli import UsageError
from model.training.train_settings import TrainSettings

# The share of a core that a CPU worker reserves; the rest is for the tasks that read its data.
CPU_SHARE = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """The workers of a run: how many (a pair: Ray chooses between the two), their devices, all cores, and a note."""

    count: int | tuple[int, int]
    use_gpu: bool
    cores: int
    note: str | None = None

    @property
    def most(self) -> int:
        """The largest number of workers."""
        return self.count[1] if isinstance(self.count, tuple) else self.count

    @property
    def threads(self) -> int:
        """Threads per worker: on CPUs the workers share all cores; Ray would give each only the one it reserves."""
        return 1 if self.use_gpu else max(1, self.cores // self.most)

    @property
    def resources(self) -> dict[str, float]:
        """The resources that Ray reserves for each worker."""
        return {"GPU": 1, "CPU": 1} if self.use_gpu else {"CPU": CPU_SHARE}


def choose_workers(settings: TrainSettings) -> Workers:
    """As set, else one per GPU, else one per core, but no more than there are micro-batches.

    Where GPUs are wanted but this machine has none, the CPU trains.

    Raises:
        UsageError: the cluster has no GPU yet, and the number of workers is not set.
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
    """A local Ray never gets GPUs; a cluster may start some, but Ray does not say whether it can."""
    if started_here():
        # One, since each worker has a copy of the weights, and presets for GPUs are large.
        count = settings.workers or 1
        note = (
            f"no GPU on this machine: the CPU trains, workers={count}; from the second step on, each line estimates "
            "the remaining time"
        )
        return Workers(count=count, use_gpu=False, cores=cores, note=note)
    if not settings.workers:
        raise UsageError(
            "workers: no GPU is available; set how many the cluster is to start, such as workers=4, or train on "
            "CPUs with use_gpu=false"
        )
    note = "no GPU is available: waiting until the cluster has started one per worker; use_gpu=false trains on CPUs"
    return Workers(count=settings.workers, use_gpu=True, cores=cores, note=note)


def started_here() -> bool:
    """Whether this process started Ray on this machine only, so that its resources will not grow."""
    from ray._private import worker  # there is no public API for this

    return bool(worker._global_node and worker._global_node.is_head())
