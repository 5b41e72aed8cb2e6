"""The progress of a run, read from its folder without loading weights or importing torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model.checkpoints.description import CONFIG
from pipelines.storage.files import read_json

PREFIX = "checkpoint-"
FOLDER = "engine"
STATE = "state.json"
BEST = "checkpoints.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainState:
    """The state after `step` updates, with `world_size` workers last, and `seconds` over all starts.

    `guard` is the state of the `LossGuard`. `metrics` are the figures of the last step, `validation` those of the
    held-out samples, which determine the best checkpoint.
    """

    step: int
    world_size: int
    zero: int
    seconds: float
    guard: Sequence[float] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    validation: Mapping[str, float] = field(default_factory=dict)

    def needs_conversion(self, world_size: int) -> bool:
        """Whether resuming with `world_size` workers needs a conversion; without ZeRO each worker holds everything."""
        return self.zero > 0 and self.world_size != world_size

    @classmethod
    def read(cls, checkpoint: Path) -> "TrainState":
        """Reads the state in a checkpoint's folder.

        Raises FileNotFoundError if there is none, so that training cannot resume from it.
        """
        path = checkpoint / FOLDER / STATE
        if not path.is_file():
            raise FileNotFoundError(f"{path}: missing; start from this checkpoint with --init instead")
        return cls(**read_json(path))


def finished(run: Path) -> list[Path]:
    """The checkpoints of a run that training can resume from, oldest first."""
    if not run.is_dir():
        return []
    found = [path for path in run.iterdir() if path.name.startswith(PREFIX)]
    whole = [path for path in found if (path / CONFIG).is_file() and (path / FOLDER / STATE).is_file()]
    return sorted(whole, key=lambda path: (len(path.name), path.name))


def resumable(run: Path) -> Path | None:
    """The last checkpoint of a run that training can resume from."""
    return next(reversed(finished(run)), None)


def first_step(run: Path) -> int:
    """The number of steps a run has completed."""
    checkpoint = resumable(run)
    return TrainState.read(checkpoint).step if checkpoint is not None else 0


def best_checkpoint(run: Path) -> Path | None:
    """The checkpoint with the lowest validation loss, if any was validated."""
    path = run / BEST
    rows: Sequence[Mapping[str, Any]] = read_json(path) if path.is_file() else []
    return next((run / row["name"] for row in rows if row["best"]), None)
