"""Trainings that are compared with one another: each for as many steps, with several seeds, and kept in a file.

An interrupted run goes on, since what was measured with the same settings is not measured again.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

from jobs.common import cli
from jobs.common.cli import Option
from pipelines.storage.files import read_json, write_json
from tests.benchmarks import cores, say

Result = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What each row may take: steps, and samples of each modality in a step."""

    steps: int
    each: int


# Trains and examines, given the folder of what all need, the settings, the seed and the budget.
Measure = Callable[[Path, Sequence[str], int, Budget], Result]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmOptions:
    """The options of suites that train: how often, how long, and where results are kept."""

    seeds: Annotated[int, Option("how often each row is trained", "N", least=1)] = 3
    steps: Annotated[int, Option("training steps of each", "N", least=1)] = 400
    batch: Annotated[int, Option("samples of each modality in a step", "N", least=1)] = 8
    out: Annotated[str, Option("where results are kept; those of the same settings are not measured again", "DIR")] = (
        "out/bench"
    )


def names_of(arms: Mapping[str, object]) -> Option:
    """The option that chooses some of the rows."""
    return Option(f"rows, of {', '.join(arms)}", "ROW", choices=arms)


def measured(
    options: ArmOptions, arms: Mapping[str, Sequence[str]], prepare: Callable[[Path], None], measure: Measure
) -> dict[str, list[Result]]:
    """The results of rows by name, by seed; `arms` are their settings. As many at a time are measured as cores.

    `prepare` writes what all need into the folder, where that is not there.
    """
    cli.check(options)
    folder, budget = Path(options.out), Budget(steps=options.steps, each=options.batch)
    folder.mkdir(parents=True, exist_ok=True)
    prepare(folder)
    wanted = [(name, seed) for seed in range(options.seeds) for name in arms]
    missing = [(name, seed) for name, seed in wanted if _kept(_path(folder, name, seed, budget), arms[name]) is None]
    if missing:
        _measure(folder, arms, missing, measure, budget)
    return {
        name: [
            found
            for seed in range(options.seeds)
            if (found := _kept(_path(folder, name, seed, budget), overrides)) is not None
        ]
        for name, overrides in arms.items()
    }


def _kept(path: Path, overrides: Sequence[str]) -> Result | None:
    found: Result | None = read_json(path) if path.is_file() else None
    return found if found is not None and found["overrides"] == list(overrides) else None


def _path(folder: Path, name: str, seed: int, budget: Budget) -> Path:
    return folder / f"{name}-{budget.steps}-steps-of-{budget.each}-seed-{seed}.json"


def _measure(
    folder: Path,
    arms: Mapping[str, Sequence[str]],
    missing: Sequence[tuple[str, int]],
    measure: Measure,
    budget: Budget,
) -> None:
    with ProcessPoolExecutor(min(cores(), len(missing)), get_context("spawn"), _begin) as pool:
        jobs = {}
        for name, seed in missing:
            jobs[pool.submit(measure, folder, arms[name], seed, budget)] = name, seed
        for count, job in enumerate(as_completed(jobs), 1):
            name, seed = jobs[job]
            found = job.result()
            write_json(_path(folder, name, seed, budget), {**found, "overrides": list(arms[name])})
            say(f"{count} of {len(jobs)}: {name}, seed {seed}: {found['seconds']:.0f} s")


def _begin() -> None:
    """Readies a process for rows: one thread, since rows are measured side by side."""
    import torch

    from model.parts.devices import best_device

    best_device()
    cli.quiet()
    torch.set_num_threads(1)


def shares(rights: Sequence[Mapping[str, float]]) -> tuple[str, str]:
    """The share of items with all attributes right, by seed, and that of each attribute, in per cent."""
    whole = [100 * right["all"] for right in rights]
    spread = f" ({min(whole):.0f} to {max(whole):.0f})" if len(whole) > 1 else ""
    each = {name: mean(100 * right[name] for right in rights) for name in rights[0] if name != "all"}
    return f"{mean(whole):.1f}{spread}", ", ".join(f"{name} {share:.0f}" for name, share in each.items())
