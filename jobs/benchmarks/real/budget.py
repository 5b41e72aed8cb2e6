"""How many layers of the LLM a machine has room for."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from jobs.benchmarks.real.hub import Hub
from jobs.benchmarks.real.llm import LAYERS
from jobs.cli import UsageError

SMALL_LAYERS = 2
# GB that each command takes beside one copy of the LLM in 16 bits, measured at full width with one layer.
_BESIDE_THE_LLM = {
    "prepare": 1.5,
    "embed": 7.0,
    "stage-1": 4.0,
    "stage-2": 5.0,
    "stage-3": 5.5,
    "generate": 16.0,
    "import": 3.0,
    "export": 3.0,
    "chat": 18.0,
}
# Runs and checkpoints, in files of trained weights (0.8 GB).
_DELTAS_WRITTEN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """GB of disk and of memory, None where they do not matter, and the commands that are to run in them."""

    disk: float | None
    memory: float | None
    steps: Collection[str]


def cut(budget: Budget, *, layers: int | None, small: bool) -> tuple[int, list[str]]:
    """The layers of the LLM that fit, at most `layers`, and what is said of them.

    Raises UsageError where not even one does.
    """
    most = layers or (SMALL_LAYERS if small else LAYERS)
    if small:
        return most, [f"small cut: narrow decoders and a narrow LLM of {most} layers, one block of each encoder"]
    one, two = (Hub(root=Path(), layers=count) for count in (1, 2))
    first, each = _llm(one), _llm(two) - _llm(one)
    rest = sum(layout.num_bytes for name, layout in one.layouts.items()) - first
    disk = rest + _DELTAS_WRITTEN * one.layouts[one.delta.parent.name].num_bytes
    step = max(budget.steps, key=_BESIDE_THE_LLM.__getitem__)
    reasons = []
    for name, given, needed in (("disk", budget.disk, disk), ("memory", budget.memory, 1e9 * _BESIDE_THE_LLM[step])):
        if given is None:
            continue
        fitting = 1 + int((given * 1e9 - needed - first) // each)
        if fitting < 1:
            of = f", which {step} takes" if name == "memory" else ""
            raise UsageError(f"--{name} {given:g}: {(needed + first) / 1e9:.1f} GB hold one layer of the LLM{of}; ...")
        if fitting < most:
            most, reasons = fitting, [f"--{name} {given:g}"]
    told = f"{most} of {LAYERS} layers of the LLM" + (f", to fit {reasons[0]}" if reasons else "")
    return most, [told + ", all else at full size"]


def _llm(hub: Hub) -> int:
    return next(iter(hub.layouts.values())).num_bytes
