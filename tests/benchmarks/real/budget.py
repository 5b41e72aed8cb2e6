"""How many layers of the LLM fit on a machine; all other parts stay whole."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from jobs.common.cli import UsageError
from tests.benchmarks.real.hub import Hub
from tests.benchmarks.real.llm import LAYERS

SMALL_LAYERS = 2
# GB that each command needs in addition to one 16-bit copy of the LLM, including driver and Ray: for training, as
# measured in the rehearsal of 32 layers (16.3 and 18.3 GB in the worker of stages 2 and 3, 13.5 of them weights); for
# the others, the size of their parts, with decoders in float32.
_BESIDE_THE_LLM = {
    "prepare": 1.5,
    "embed": 7.0,
    "stage-1": 4.0,
    "stage-2": 5.0,
    "stage-3": 7.0,
    "generate": 16.0,
    "import": 3.0,
    "export": 3.0,
    "chat": 18.0,
}
# The disk space of runs and checkpoints, in files of trained weights, of 0.8 GB each.
_FILES_WRITTEN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """GB of disk and memory, None for no limit, and the commands that have to fit."""

    disk: float | None
    memory: float | None
    steps: Collection[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Need:
    """GB needed in addition to the LLM, their purpose, and the limit."""

    option: str
    given: float
    gigabytes: float
    purpose: str


def num_layers(budget: Budget, *, layers: int | None, small: bool) -> int:
    """The number of LLM layers that fit; `layers` if given.

    Raises UsageError if those do not fit, or not even one does.
    """
    if small:
        if budget.disk is not None or budget.memory is not None:
            raise UsageError("--small: has a fixed size (1.1 GB); omit --disk and --memory")
        return layers or SMALL_LAYERS
    needs = list(_needs(budget)) if budget.disk is not None or budget.memory is not None else []
    return min((_fitting(need, layers) for need in needs), default=layers or LAYERS)


def _needs(budget: Budget) -> Iterator[_Need]:
    hub = Hub(root=Path(), layers=1)
    if budget.disk is not None:
        files = _FILES_WRITTEN * hub.layouts[hub.delta.parent.name].num_bytes
        others = sum(layout.num_bytes for layout in hub.layouts.values()) - hub.vicuna.num_bytes
        yield _Need(
            option="--disk",
            given=budget.disk,
            gigabytes=(others + files) / 1e9,
            purpose="the other parts and what is trained",
        )
    if budget.memory is not None:
        step = max(budget.steps, key=_BESIDE_THE_LLM.__getitem__)
        yield _Need(option="--memory", given=budget.memory, gigabytes=_BESIDE_THE_LLM[step], purpose=step)


def _fitting(need: _Need, layers: int | None) -> int:
    one, two = (Hub(root=Path(), layers=count).vicuna.num_bytes / 1e9 for count in (1, 2))
    most = min(LAYERS, 1 + int((need.given - need.gigabytes - one) // (two - one)))
    if most < (layers or 1):
        needed = need.gigabytes + one + ((layers or 1) - 1) * (two - one)
        raise UsageError(
            f"{need.option} {need.given:g}: {layers or 1} of the LLM's layers take {needed:.1f} GB with "
            f"{need.purpose}; give more, skip steps with --only, or use --small"
        )
    return layers or most
