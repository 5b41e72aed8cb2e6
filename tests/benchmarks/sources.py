"""Reading a source of text rows: rows a second on two cores against one, the driver's memory, and a rerun.

Each measurement runs in a process of its own with its own Ray. Rows are instructions of about 150 bytes in files of
10,000, the usual million of them is 100 files; `--scale 10` are the 10 million rows that the targets are meant for.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from jobs.common import cli
from pipelines.prepare.preprocess import prepare
from pipelines.prepare.staging import Source, stage_rows
from pipelines.prepare.state import finished
from pipelines.ray_steps import map_rows
from pipelines.sources.entry import Entry
from pipelines.storage.files import remove_tree
from tests.benchmarks import Row, compare, cores, not_measured, say

MANY, FEW, ROWS_A_FILE, SAMPLES_PER_SHARD = 1_000_000, 100_000, 10_000, 1000
REPEATS = 3
CORES_TARGET = 1.7
MEMORY_TARGET = 100.0  # MB more for ten times the rows.
RERUN_SECONDS = 10.0
TIMEOUT = 7200
CORES_NAME = "reading text rows, two cores / one"


def run(scale: float) -> list[Row]:
    """Rows a second, MB of the driver, and seconds of a rerun in which nothing is to be done."""
    many, few = max(2000, round(MANY * scale)), max(200, round(FEW * scale))
    with tempfile.TemporaryDirectory(prefix="bench-sources-") as name:
        folder = Path(name)
        return [_cores(folder, few), *_driver(folder, few, many)]


def write_rows(folder: Path, count: int) -> Path:
    """Writes `count` rows of JSON lines into a folder, in files of 10,000."""
    folder.mkdir(parents=True)
    for first in range(0, count, ROWS_A_FILE):
        rows = (
            {"instruction": f"Say in one sentence what number {number} is.", "output": f"It comes after {number - 1}."}
            for number in range(first, min(count, first + ROWS_A_FILE))
        )
        (folder / f"{first // ROWS_A_FILE:05d}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _cores(folder: Path, count: int) -> Row:
    if cores() < 2:
        return not_measured(CORES_NAME, CORES_TARGET, "rows/s", "needs two cores")
    data, seconds = write_rows(folder / "few", count), {1: 0.0, 2: 0.0}

    def rate(number: int) -> float:
        figures = _measured("read", data, folder / "out", str(number))
        seconds[number] = figures["cpu"]
        return count / figures["seconds"]

    two, one = compare(lambda: rate(2), lambda: rate(1), REPEATS, title="sources: rows/s, two cores as ours")
    note = f"{count} rows; CPU seconds of driver and workers: {seconds[2]:.1f} on two cores, {seconds[1]:.1f} on one"
    return Row(name=CORES_NAME, ours=two, peer=one, ratio=two / one, target=CORES_TARGET, unit="rows/s", note=note)


def _driver(folder: Path, few: int, many: int) -> list[Row]:
    say(f"sources: preparing {few} and {many} rows")
    small = _measured("prepare", folder / "few", folder / "few-out")
    large = _measured("prepare", write_rows(folder / "many", many), folder / "many-out")
    more = large["megabytes"] - small["megabytes"]
    note = f"{many} rows take {large['megabytes']:.0f} MB, {few} rows {small['megabytes']:.0f} MB; ratio to the limit"
    again = _measured("rerun", folder / "many", folder / "many-out")["seconds"]
    return [
        Row(
            name="driver's memory, more for ten times the rows",
            ours=more,
            peer=MEMORY_TARGET,
            ratio=more / MEMORY_TARGET,
            target=1.0,
            unit="MB",
            at_most=True,
            note=note,
        ),
        Row(
            name="rerun with nothing to do, many rows",
            ours=again,
            peer=RERUN_SECONDS,
            ratio=again / RERUN_SECONDS,
            target=1.0,
            unit="s",
            at_most=True,
            note=f"{many} rows in {-(-many // ROWS_A_FILE)} files, without the start of Python",
        ),
    ]


def _measured(*arguments: object) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.benchmarks.sources", *map(str, arguments)]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=TIMEOUT)
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or "the measured process ended").splitlines()[-1])
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _measure(argv: Sequence[str]) -> None:
    """The measured process: reads, prepares, or finds nothing to do, and prints what that took."""
    what, data, out, *number = argv
    source = Source(
        entry=Entry(name="rows", reader="alpaca", paths=["rows"]),
        path=Path(data),
        media=None,
        directory=Path(out),
        samples_per_shard=SAMPLES_PER_SHARD,
    )
    if what == "rerun":
        started = time.monotonic()
        assert finished(source), "a rerun had something to do"
        print(json.dumps({"seconds": time.monotonic() - started}))
        return
    remove_tree(source.directory)
    _start_ray(int(number[0]) if number else None)
    list(map_rows([{"a": number} for number in range(4)], _same))  # Workers start.
    started, before = time.monotonic(), _cpu_seconds()
    if what == "read":
        stage_rows(source, run=map_rows)
    else:
        prepare(source)
    figures = {"seconds": time.monotonic() - started, "cpu": _cpu_seconds() - before}
    print(json.dumps(figures | {"megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


def _same(row: dict[str, int]) -> dict[str, int]:
    return row


def _start_ray(number: int | None) -> None:
    if number is None:
        cli.start_ray()
        return
    import ray

    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:number])
    ray.init(address="local", num_cpus=number, include_dashboard=False, log_to_driver=False)
    cli.configure_ray_data()


def _cpu_seconds() -> float:
    """What this process and Ray's below it have used so far."""
    parents, used = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # It has ended meanwhile.
            continue
        parents[int(folder.name)], used[int(folder.name)] = int(fields[1]), int(fields[11]) + int(fields[12])
    found = [os.getpid()]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return sum(used[process] for process in found) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    _measure(sys.argv[1:])
