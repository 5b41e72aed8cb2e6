"""The DeepSpeed engine of a stage: built from the settings, saved, and restored with any number of workers.

engine/ (in a checkpoint)
  state.json                                the step it was taken after, and the number of workers
  mp_rank_00_model_states.pt                trained weights, schedule
  zero_pp_rank_<rank>_..._optim_states.pt   one per worker: its partition of the optimizer state
"""

import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping
from contextlib import ExitStack, nullcontext, redirect_stdout
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.checkpoints.hub import download
from model.core.nextgpt import NextGPT
from model.runs.run_state import FOLDER
from model.training.train_settings import OptimizerSettings, TrainSettings
from pipelines.storage.files import is_local

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """The rank of this process, and its device."""

    rank: int
    world_size: int
    device: str


def accumulation(settings: TrainSettings, world_size: int) -> int:
    """The number of micro-batches per rank and step."""
    return -(-settings.num_micro_batches // world_size)


def engine_config(
    settings: TrainSettings, deepspeed: Mapping[str, Any], world_size: int, *, universal: bool = False
) -> dict[str, Any]:
    """DeepSpeed's configuration: the stage's JSON file, `deepspeed`, overridden by the settings.

    `universal` prepares the engine to load a checkpoint of another number of workers.
    """
    zero = {**deepspeed.get("zero_optimization", {}), "stage": settings.zero}
    if settings.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    steps = accumulation(settings, world_size)
    return {
        **deepspeed,
        "zero_optimization": zero,
        # PyTorch's AdamW also updates offloaded weights: the same numbers with and without offloading.
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
    """Wraps a model in a DeepSpeed engine; every rank calls it, after `set_stage`."""
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
    import deepspeed as library  # late, so that best_device() runs first

    # On CPUs DeepSpeed would compile its own all-reduce extension. Gloo does as well, without a compiler, and without
    # the lock that a worker killed during compilation leaves behind for all others to wait on.
    library.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    with redirect_stdout(StringIO()):  # it prints every extension it builds
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


_UNIVERSAL = "universal"


def snapshot(engine: Any) -> dict[str, Any]:
    """This rank's checkpoint files by name, copied to the CPU; every rank calls it, and training may continue."""
    copies = _Copies(dict([*engine.module.named_parameters(), *engine.module.named_buffers()]))
    engine.checkpoint_engine = copies
    with TemporaryDirectory() as scratch:  # for a script that DeepSpeed writes next to its files
        engine.save_checkpoint(scratch, tag=FOLDER, save_latest=False, exclude_frozen_parameters=True)
    return copies.files


def gather(model: nn.Module, names: Iterable[str], *, sharded: bool) -> dict[str, Tensor]:
    """Copies a model's tensors to the CPU; every rank calls it.

    `sharded` weights (ZeRO-3) are gathered first; only rank 0 gets the copies.
    """
    tensors = dict((*model.named_parameters(), *model.named_buffers()))
    chosen = {name: tensors[name] for name in names}
    gathering: Any = nullcontext()
    if sharded:
        import deepspeed

        gathering = deepspeed.zero.GatheredParameters(list(chosen.values()))
    with gathering:
        if dist.is_initialized() and dist.get_rank():
            return {}
        return {name: value.detach().to("cpu", copy=True) for name, value in chosen.items()}


def restore(engine: Any, checkpoint: Path, *, universal: bool) -> None:
    """Loads a checkpoint's engine state; every rank calls it.

    `universal`, which the engine must have been built with, first converts a checkpoint of another number of workers.
    Raises ValueError if a file contains anything but tensors and plain values.
    """
    engine.checkpoint_engine = _Copies()
    with ExitStack() as stack:
        parent, tag = checkpoint, FOLDER
        if not is_local(parent):
            parent = Path(stack.enter_context(TemporaryDirectory()))
            (parent / FOLDER).mkdir()
            for file in (checkpoint / FOLDER).iterdir():
                download(file, parent / FOLDER / file.name)
        if universal:
            source, parent, tag = parent / FOLDER, Path(stack.enter_context(TemporaryDirectory())), _UNIVERSAL
            _to_universal(source, parent / tag)
        path, _ = engine.load_checkpoint(str(parent), tag=tag, load_module_strict=False)
        if path is None:
            raise ValueError(f"{checkpoint / FOLDER}: contains no DeepSpeed state; use another checkpoint")
        dist.barrier()


def _to_universal(source: Path, out: Path) -> None:
    """Runs DeepSpeed's conversion in a subprocess; it unpickles its input, which is therefore checked first."""
    for path in sorted(source.glob("*.pt")):
        _load(path)
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    command += ["--num_extract_workers", "1", "--num_merge_workers", "1"]
    command += ["--input_folder", str(source), "--output_folder", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ValueError(f"{source}: DeepSpeed cannot convert it to another number of workers ({reason})")


class _Copies:
    """Replaces DeepSpeed's checkpoint engine: keeps copies, and loads without executing code.

    Only tensors with `known` names are taken from a module's state. 4-bit layers add their quantisation state, which
    DeepSpeed does not recognise as part of the frozen weights.
    """

    def __init__(self, known: Collection[str] = ()) -> None:
        self.files: dict[str, Any] = {}
        self._known = known

    def save(self, state_dict: Any, path: str) -> None:
        if isinstance(module := state_dict.get("module"), dict):
            state_dict = {**state_dict, "module": {name: module[name] for name in module if name in self._known}}
        self.files[Path(path).name] = _copied(state_dict)

    def load(self, path: str, map_location: Any = None) -> Any:
        return _load(Path(path), map_location)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        Path(path).mkdir(parents=True, exist_ok=True)

    def create(self, info: Any) -> None:
        """Nothing to prepare."""

    def commit(self, info: Any) -> bool:
        return True

    def is_data_parallel_writer(self, dp_rank: int) -> bool:
        return dp_rank == 0

    def is_decoupled(self) -> bool:
        return False

    def preserves_storage_sharing(self) -> bool:
        return False  # copies share nothing


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return type(value)((name, _copied(entry)) for name, entry in value.items())
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(_copied(entry) for entry in value)
    return value


def _load(path: Path, map_location: Any = "cpu") -> Any:
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    try:
        with torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address]):
            return torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if "Unsupported" in line), str(error))[:200]
        raise ValueError(f"{path}: cannot be read as a training state ({reason}); use another checkpoint") from error
