"""Runs the commands one after another, measures each, and reports the results in a table."""

import json
from argparse import Namespace
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from jobs.common import cli
from model.parts.config import load_preset
from pipelines.storage.files import remove_tree
from pipelines.world.dataset import write_world
from tests.benchmarks import say, table_head, table_row
from tests.benchmarks.real.budget import Budget, num_layers
from tests.benchmarks.real.hub import Hub
from tests.benchmarks.real.measure import Measured, measure
from tests.benchmarks.real.samples import cut_samples
from tests.benchmarks.real.steps import DATA, PRESET, Amount, Step, all_steps, environment

_HEADER = ("command", "seconds", "driver", "workers", "largest worker", "GPU", "written", "exit")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A command and its measurement; `measured` is None if it was not run, and `note` says why."""

    name: str
    measured: Measured | None
    written: int
    note: str

    @property
    def failed(self) -> bool:
        """Whether it failed or was not run."""
        return self.measured is None or self.measured.status != 0


def rehearse(arguments: Namespace, machine: str) -> Iterator[str]:
    """Writes missing parts and runs the commands; yields the lines of the table as they are measured.

    Raises UsageError for invalid arguments or parts that do not fit the budget, and Failures if a command failed.
    """
    _check(arguments)
    data = cli.existing_folder(arguments.data) if arguments.data else None
    budget = Budget(disk=arguments.disk, memory=arguments.memory, steps=arguments.only)
    out = Path(arguments.out).absolute()
    layers = num_layers(budget, layers=arguments.layers, small=arguments.small)
    root = out / ("hub-small" if arguments.small else "hub")
    hub = Hub(root=root, base=arguments.base, layers=layers, small=arguments.small)
    work = out / f"{arguments.base}-{'small' if arguments.small else f'{layers}-layers'}"
    hub.write()
    hub.write_preset(work / PRESET)
    _lay_data(data, work / DATA, arguments.samples)
    amount = Amount(
        max_steps=arguments.max_steps,
        settings=[*arguments.settings, *([] if torch.cuda.is_available() else ["use_gpu=false"])],
        media=arguments.media,
        denoising_steps=arguments.denoising_steps,
    )

    rows = []
    yield from table_head(_HEADER, numbers=True)
    for row in _run(all_steps(hub, work, amount), work, arguments.only):
        rows.append(row)
        yield _line(row)
    yield ""
    facts = f"{machine}; {hub.cut}"
    yield f"{facts}. In GB; memory is PSS, for all workers including Ray's own processes; GPU is memory in use."
    table = [{**asdict(row), "failed": row.failed} for row in rows]
    (work / "figures.json").write_text(json.dumps({"machine": facts, "rows": table}, indent=2) + "\n")
    if failed := [f"{row.name}: {row.note}" for row in rows if row.measured and row.failed]:
        raise cli.Failures("\n".join(failed))


def _check(arguments: Namespace) -> None:
    """Checks the arguments before gigabytes are written."""
    counts = {"layers": arguments.layers, "samples": arguments.samples}
    counts |= {"max-steps": arguments.max_steps, "denoising-steps": arguments.denoising_steps}
    mistakes = [
        f"--{name} {count}: must be at least 1" for name, count in counts.items() if count is not None and count < 1
    ]
    try:
        load_preset(arguments.base)
    except ValueError as error:
        mistakes.append(f"--base: {error}")
    if mistakes:
        raise cli.UsageError("\n".join(mistakes))


def _run(steps: Sequence[Step], work: Path, only: Collection[str]) -> Iterator[Row]:
    """Runs the requested commands, except those that need a failed one."""
    failed = set[str]()
    for step in (step for step in steps if step.name in only):
        if lacking := [need for need in step.needs if need in failed]:
            row = Row(name=step.name, measured=None, written=0, note=f"not run: {lacking[0]} failed")
        else:
            say(f"== {step.name}: {' '.join(step.command[1:])}")
            row = _measured(step, work)
        if row.failed:
            failed.add(step.name)
        yield row


def _measured(step: Step, work: Path) -> Row:
    for path in (path for pattern in step.makes for path in work.glob(pattern)):
        remove_tree(path)
    before = _size(work)
    measured = measure(
        step.command,
        work / "logs" / f"{step.name}.log",
        folder=work,
        environment=environment(),
        meanwhile=step.meanwhile,
    )
    note = measured.last_line if measured.status else ""
    if step.check and not measured.status:
        try:
            note = step.check()
        except (OSError, ValueError) as error:
            measured, note = replace(measured, status=1), cli.describe(error)
    return Row(name=step.name, measured=measured, written=_size(work) - before, note=note)


def _lay_data(data: Path | None, folder: Path, count: int) -> None:
    if folder.exists():
        remove_tree(folder)
    if data is None:
        write_world(folder, count=count)
    else:
        cut_samples(data, folder, count)


def _line(row: Row) -> str:
    if row.measured is None:
        return f"| {row.name} | | | | | | | {row.note} |"
    found = row.measured
    gigabytes = (f"{value / 1e9:.2f}" for value in (found.driver, found.workers, found.largest, found.gpu, row.written))
    ended = f"{found.status}: {row.note}" if row.note else str(found.status)
    return table_row([row.name, f"{found.seconds:.0f}", *gigabytes, ended.replace("|", "/")])


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.suffix != ".log")
