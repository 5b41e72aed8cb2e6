"""Comparisons with what a user could run instead of this project: ratios of medians measured in one run."""

import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from math import isnan, nan
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TypeVar

from jobs.common import cli

_T = TypeVar("_T")
PROCESS = Path("/proc/self/status")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison: the medians of both sides in `unit`, their ratio, and its target.

    With `at_most` the target is an upper bound; with a target of None the ratio is only reported. A row that could not
    be measured has NaN as its figures and the reason in `note`.
    """

    name: str
    ours: float
    peer: float
    ratio: float
    target: float | None
    unit: str
    at_most: bool = False
    note: str = ""

    @property
    def measured(self) -> bool:
        """Whether the ratio was measured."""
        return not isnan(self.ratio)

    @property
    def met(self) -> bool:
        """Whether the ratio was measured and meets the target, if there is one."""
        if not self.measured or self.target is None:
            return self.measured
        return self.ratio <= self.target if self.at_most else self.ratio >= self.target

    @property
    def verdict(self) -> str:
        """`met`, `MISSED` or `not measured`; empty without a target."""
        if not self.measured:
            return "not measured"
        return "" if self.target is None else "met" if self.met else "MISSED"


def not_measured(name: str, target: float | None, unit: str, reason: str, at_most: bool = False) -> Row:
    """The row of a comparison that could not be run here, with the reason as its note."""
    return Row(name=name, ours=nan, peer=nan, ratio=nan, target=target, unit=unit, at_most=at_most, note=reason)


def compare(ours: Callable[[], float], peer: Callable[[], float], repeats: int, title: str = "") -> tuple[float, float]:
    """The medians of `repeats` measurements of each side, interleaved so that load on the machine slows both alike.

    The side that goes first alternates, so that neither always benefits from caches warmed by the other. With a title,
    each repeat is shown on standard error.
    """
    assert repeats >= 1
    sides: dict[str, list[float]] = {"ours": [], "peer": []}
    for repeat in range(repeats):
        turns = [("ours", ours), ("peer", peer)]
        for side, measure in turns if repeat % 2 == 0 else reversed(turns):
            sides[side].append(measure())
        if title:
            last = ", ".join(f"{side} {figures[-1]:.4g}" for side, figures in sides.items())
            say(f"{title}, {repeat + 1} of {repeats}: {last}")
    return median(sides["ours"]), median(sides["peer"])


def in_a_process_of_its_own(function: Callable[..., _T], *arguments: object) -> _T:
    """Runs a function of a module in a new process, with nothing else in memory, and returns its result."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn"), initializer=cli.quiet) as pool:
        return pool.submit(function, *arguments).result()


def table_row(cells: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def table_head(names: Sequence[str], numbers: bool = False) -> Iterator[str]:
    """The first two lines of a Markdown table; with `numbers`, columns between the outer ones align right."""
    yield table_row(names)
    yield "|---|" + ("---:|" if numbers else "---|") * (len(names) - 2) + "---|"


def cores() -> int:
    """The number of CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def host_bytes() -> tuple[int, int]:
    """The current and peak main memory of this process; not getrusage's, whose peak includes the parent's."""
    fields = dict(line.split(":", 1) for line in PROCESS.read_text().splitlines() if line.startswith("Vm"))
    now, most = (1024 * int(fields[name].split()[0]) for name in ("VmRSS", "VmHWM"))
    return now, most


def free_port() -> int:
    """A free port on loopback."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def say(text: str) -> None:
    """Prints progress on standard error."""
    print(text, file=sys.stderr, flush=True)


class Stopwatch:
    """The duration of a `timed` block."""

    seconds: float = nan


@contextmanager
def timed() -> Iterator[Stopwatch]:
    """Measures its block's wall time, available as `.seconds` afterwards."""
    watch, start = Stopwatch(), perf_counter()
    yield watch
    watch.seconds = perf_counter() - start
