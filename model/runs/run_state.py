"""How far a run is, from its folder alone: no weights are loaded, and no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from model.checkpoints.description import CONFIG
from pipelines.storage.files import read_json, to_json

PREFIX = "checkpoint-"
FOLDER = "engine"
STATE = "state.json"
BEST = "checkpoints.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainState:
    """`step` updates were made, the last of them by `world_size` workers, in `seconds` over all starts.

    `guard` is what the watch over the loss has seen. `metrics` are the figures of the last step, `validation` those of
    the held-out samples, by which the best checkpoint is known.
    """

    step: int
    world_size: int
    zero: int
    seconds: float
    guard: Sequence[float] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    validation: Mapping[str, float] = field(default_factory=dict)

    def needs_conversion(self, world_size: int) -> bool:
        """Whether it must be converted for another number of workers; without ZeRO each holds everything."""
        return self.zero > 0 and self.world_size != world_size

    def to_json(self) -> str:
        """What `read` reads."""
        return to_json(asdict(self))

    @classmethod
    def read(cls, checkpoint: Path) -> "TrainState":
        """Of a checkpoint's folder.

        Raises FileNotFoundError where a checkpoint has none, and so is no place to go on from.
        """
        path = checkpoint / FOLDER / STATE
        if not path.is_file():
            raise FileNotFoundError(f"{path}: missing; start from this checkpoint with --init instead")
        return cls(**read_json(path))


def finished(run: Path) -> list[Path]:
    """The checkpoints of a run that training can go on from, oldest first."""
    if not run.is_dir():
        return []
    found = [path for path in run.iterdir() if path.name.startswith(PREFIX)]
    whole = [path for path in found if (path / CONFIG).is_file() and (path / FOLDER / STATE).is_file()]
    return sorted(whole, key=lambda path: (len(path.name), path.name))


def resumable(run: Path) -> Path | None:
    """The last checkpoint of a run that training can go on from."""
    return next(reversed(finished(run)), None)


def first_step(run: Path) -> int:
    """How many steps a run has behind it."""
    checkpoint = resumable(run)
    return TrainState.read(checkpoint).step if checkpoint is not None else 0


def best_checkpoint(run: Path) -> Path | None:
    """The checkpoint of the lowest validation loss, if any was validated."""
    path = run / BEST
    rows: Sequence[Mapping[str, Any]] = read_json(path) if path.is_file() else []
    return next((run / row["name"] for row in rows if row["best"]), None)
