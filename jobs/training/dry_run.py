"""The output of `train_stage --dry-run`: what would train, the memory that each worker needs, and whether it fits."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from jobs.common.cli import UsageError
from model.training.train_settings import TrainSettings

GB = 1e9
# Ray's names of GPUs, in resources `accelerator_type:NAME`, and the smallest memory sold under each name, in GB.
_GPU_MEMORY = {"B200": 180, "H200": 141, "H100": 80, "A100-80G": 80, "A100": 40, "L40S": 48, "L4": 24, "A10G": 24}
_SMALL_WEIGHTS = 100_000_000  # published decoders have more
_MICRO_BATCHES = (1, 2, 4, 8, 16, 32)
_ROWS = {
    "process": "process",
    "frozen": "frozen weights",
    "trained": "trained weights",
    "optimizer": "optimizer",
    "decoders": "decoders of sample replies",
    "gradients": "gradients",
    "buckets": "buckets to reduce them in",
    "activations": "activations",
    "update": "or, updating the weights",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The memory of a worker in bytes: of its device (a GPU or main memory), and of main memory beside a GPU."""

    gpu: bool
    device: float
    host: float | None
    workers: int
    what: str


class DryRun:
    """The footprint of a run on a machine, and of the same run with other settings."""

    def __init__(self, settings: TrainSettings, deepspeed: Mapping[str, Any], machine: Machine) -> None:
        self.settings, self.deepspeed, self.machine = settings, deepspeed, machine
        self._steps: dict[tuple[bool, int], int] = {}
        self.decoders, self.unknown = _decoders(settings, machine)
        self.found = self._measure(settings)

    def lines(self) -> Iterator[str]:
        """All lines but the verdict."""
        yield from self._trained()
        yield ""
        yield from self._table()
        yield ""
        yield from self._by_micro_batch()
        copies = self.settings.keep_last + 2
        one = self.found.checkpoint
        yield (
            f"checkpoint: {one / GB:.2f} GB each; up to {copies} at a time (keep_last, the best, the one being "
            f"written): {copies * one / GB:.1f} GB of disk"
        )

    @property
    def fits(self) -> bool:
        """Whether each worker has enough memory."""
        return self._fits(self.found)

    def verdict(self) -> str:
        """One line."""
        most, device = self.found.peak / GB, self.machine.device / GB
        if self.fits:
            return f"fits: {most:.1f} GB at most, of {device:.0f} GB ({self.machine.what})"
        if self.found.fits(round(self.machine.device)) and self.machine.host is not None:
            return f"does not fit: {self.found.host / GB:.1f} GB of main memory, of {self.machine.host / GB:.0f} GB"
        return f"does not fit: {most:.1f} GB at most, of {device:.0f} GB ({self.machine.what})"

    def advice(self) -> Iterator[str]:
        """Settings that make it fit, the cheapest first, one line each."""
        found = False
        for overrides, footprint in self._changes():
            if self._fits(footprint):
                found = True
                yield f"{overrides}: {footprint.peak / GB:.1f} GB at most"
        if not found:
            yield "no setting makes it fit: use a smaller LLM, or a device with more memory"

    def _changes(self) -> Iterator[tuple[str, Any]]:
        settings, machine = self.settings, self.machine
        if self.decoders:
            yield "validation.generate=false", replace(self.found, decoders=0)
        for size in self._smaller():
            fewer = self._with(settings.gradient_checkpointing, size)
            if self._fits(fewer):
                yield f"micro_batch_size={size}", fewer
                break
        if not settings.gradient_checkpointing:
            for size in (settings.micro_batch_size, *self._smaller()):
                slower = self._with(True, size)
                if self._fits(slower):
                    smaller = f" micro_batch_size={size}" * (size != settings.micro_batch_size)
                    yield f"gradient_checkpointing=true{smaller}", slower
                    break
        least = {"gradient_checkpointing": True, "micro_batch_size": 1}
        if machine.gpu and not settings.offload_optimizer:
            yield from self._changed("offload_optimizer=true", least | {"offload_optimizer": True})
        if machine.gpu and not settings.model.llm.load_in_4bit:
            llm = settings.model.llm.model_copy(update={"load_in_4bit": True})
            model = settings.model.model_copy(update={"llm": llm})
            yield from self._changed("model.llm.load_in_4bit=true", least | {"model": model})
        if not machine.gpu and machine.workers > 1:
            one = replace(machine, device=machine.device * machine.workers, workers=1)
            alone = DryRun(settings.model_copy(update={"workers": 1}), self.deepspeed, one)
            if alone.fits:
                yield "workers=1", alone.found

    def _changed(self, name: str, update: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        changed = self.settings.model_copy(update=dict(update))
        yield f"{name} gradient_checkpointing=true micro_batch_size=1", self._measure(changed)

    def _smaller(self) -> Sequence[int]:
        return [size for size in reversed(_MICRO_BATCHES) if size < self.settings.micro_batch_size]

    def _fits(self, footprint: Any) -> bool:
        machine = self.machine
        return footprint.fits(round(machine.device)) and (machine.host is None or footprint.host <= machine.host)

    def _measure(self, settings: TrainSettings) -> Any:
        from model.footprint.footprint import measure

        step = self._step(settings.gradient_checkpointing, settings.micro_batch_size)
        return measure(
            settings,
            self.deepspeed,
            world_size=self.machine.workers,
            gpu=self.machine.gpu,
            decoders=self.decoders,
            step=step,
        )

    def _with(self, checkpointing: bool, size: int) -> Any:
        """The footprint with another micro-batch size, in which it is linear."""
        now = self._step(self.settings.gradient_checkpointing, self.settings.micro_batch_size)
        return replace(self.found, activations=max(0, self.found.activations + self._linear(checkpointing, size) - now))

    def _linear(self, checkpointing: bool, size: int) -> int:
        least, most = 1, max(2, self.settings.micro_batch_size)
        first, last = self._step(checkpointing, least), self._step(checkpointing, most)
        return first + round((size - least) * (last - first) / (most - least))

    def _step(self, checkpointing: bool, size: int) -> int:
        from model.footprint.meta_step import step_bytes
        from model.training.engine import accumulation

        key = checkpointing, size
        if key not in self._steps:
            update = {"gradient_checkpointing": checkpointing, "micro_batch_size": size}
            accumulates = accumulation(self.settings, self.machine.workers) > 1
            self._steps[key] = step_bytes(
                self.settings.model_copy(update=update), gpu=self.machine.gpu, accumulates=accumulates
            )
        return self._steps[key]

    @cached_property
    def _model(self) -> Any:
        from model.footprint.meta_step import meta_model

        return meta_model(self.settings.model, adapter=self.settings.stage == 3)

    def _trained(self) -> Iterator[str]:
        from jobs.training.trainable import format_manifest, num_weights, trainable_table

        rows = trainable_table(self._model, self._model.set_stage(self.settings.stage))
        yield f"stage {self.settings.stage} of {self.settings.model.preset} would train:"
        yield format_manifest(rows, num_weights(self._model))

    def _table(self) -> Iterator[str]:
        settings, machine = self.settings, self.machine
        checkpointing = "with" if settings.gradient_checkpointing else "without"
        yield (
            f"GB of each of {machine.workers} worker(s), {machine.what}; {settings.precision}, ZeRO-{settings.zero}, "
            f"micro-batches of {settings.micro_batch_size} x {settings.model.max_length} tokens, {checkpointing} "
            "gradient checkpointing:"
        )
        for name, title in _ROWS.items():
            if value := getattr(self.found, name):
                yield f"  {title:<28}{value / GB:8.2f}"
        yield f"  {'at most at one time':<28}{self.found.peak / GB:8.2f}"
        if self.found.host:
            yield f"  {'main memory':<28}{self.found.host / GB:8.2f}"
        if self.unknown:
            yield f"  not included: {', '.join(self.unknown)}, of unknown size"

    def _by_micro_batch(self) -> Iterator[str]:
        sizes = sorted({*_MICRO_BATCHES, self.settings.micro_batch_size})
        yield f"  {'at most, by micro-batch':<28}" + "".join(f"{size:8}" for size in sizes)
        for checkpointing in (False, True):
            peaks = [self._with(checkpointing, size).peak / GB for size in sizes]
            title = f"{'with' if checkpointing else 'without'} checkpointing"
            yield f"  {title:<28}" + "".join(f"{peak:8.1f}" for peak in peaks)


def _decoders(settings: TrainSettings, machine: Machine) -> tuple[int, list[str]]:
    """The bytes of the decoders of sample replies, and the decoders of unknown size."""
    from model.parts.families import decoder_weights
    from model.training.held_out import makes_samples

    if not settings.validation.fraction or not makes_samples(settings, "cuda" if machine.gpu else "cpu"):
        return 0, []
    names = [output.decoder for output in settings.model.outputs.values()]
    counts = {name: decoder_weights(name) for name in names}
    known = sum(count for count in counts.values() if count is not None)
    precision = settings.model.decoders.precision
    if precision == "auto":  # published decoders are loaded in float16 on a GPU
        precision = "float16" if machine.gpu and known > _SMALL_WEIGHTS else "float32"
    return known * (4 if precision == "float32" else 2), [name for name, count in counts.items() if count is None]


def cpu_notes(settings: TrainSettings, deepspeed: Mapping[str, Any], workers: int) -> Iterator[str]:
    """Notes for a GPU preset that trains on this machine's CPU and may not fit into its memory."""
    plan = DryRun(settings, deepspeed, _cpu(None, workers))
    if not plan.fits:
        yield plan.verdict()
        yield from plan.advice()


def machine_for(settings: TrainSettings, gpu_memory: float | None, host_memory: float | None) -> Machine:
    """The machine of a run: GPUs as described, else those of the cluster or of this machine, else its CPU.

    Memory is in GB. Raises:
        UsageError: the memory of the cluster's GPUs is unknown.
    """
    host = host_memory * GB if host_memory else None
    count = settings.workers[1] if isinstance(settings.workers, tuple) else settings.workers
    if gpu_memory:
        return Machine(
            gpu=True, device=gpu_memory * GB, host=host, workers=count or 1, what=f"a GPU of {gpu_memory:g} GB"
        )
    if settings.use_gpu is not False and (found := _gpus()):
        gpus, each, name = found
        workers = count or max(1, min(gpus, settings.num_micro_batches))
        return Machine(gpu=True, device=each, host=host or _main_memory(), workers=workers, what=name)
    cores = os.cpu_count() or 1
    workers = count or (1 if settings.use_gpu else max(1, min(cores, settings.num_micro_batches)))
    return _cpu(host, workers)


def _cpu(memory: float | None, workers: int) -> Machine:
    """A CPU whose workers share `memory` bytes, or this machine's memory."""
    what = (
        "main memory; --gpu-memory GB plans for GPUs" if workers == 1 else f"main memory, shared by {workers} workers"
    )
    return Machine(gpu=False, device=(memory or _main_memory()) / workers, host=None, workers=workers, what=what)


def _gpus() -> tuple[int, float, str] | None:
    """The number of GPUs of the cluster at RAY_ADDRESS or of this machine, the bytes of the smallest, and a name."""
    import torch

    if "RAY_ADDRESS" in os.environ:
        return _cluster_gpus()
    if not torch.cuda.is_available():
        return None
    properties = [torch.cuda.get_device_properties(place) for place in range(torch.cuda.device_count())]
    smallest = min(properties, key=lambda each: each.total_memory)
    return len(properties), float(smallest.total_memory), f"{smallest.name} of this machine"


def _cluster_gpus() -> tuple[int, float, str] | None:
    import ray

    from jobs.common.cli import start_ray

    start_ray()
    total = int(ray.cluster_resources().get("GPU", 0))
    if not total:
        return None
    kinds = {name.partition(":")[2] for name in ray.cluster_resources() if name.startswith("accelerator_type:")}
    known = [kind for kind in kinds if kind in _GPU_MEMORY]
    if not known:
        raise UsageError("--gpu-memory: the memory of the cluster's GPUs is unknown; give it in GB")
    least = min(known, key=lambda kind: _GPU_MEMORY[kind])
    return total, _GPU_MEMORY[least] * GB, f"{least} of the cluster"


def _main_memory() -> float:
    import psutil

    return float(psutil.virtual_memory().total)
