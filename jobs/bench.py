"""Measures the pipelines against what a user could run in their place: `jobs/bench.py pipelines`."""

import importlib
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from jobs import cli
from jobs.benchmarks import Row, cores, not_measured, say

SECTIONS = {
    "shards": "writing shards, against Dataset.write_webdataset",
    "images": "preparing images, against a bare Pillow loop and img2dataset",
    "memory": "peak memory of 20,000 samples, against 2,000",
    "captions": "caption embeddings, against float32 in arrival order and padding to 512",
    "reading": "reading an epoch, against the webdataset library",
    "rerun": "a rerun with nothing to do, for 1,000 shards",
}
DESCRIPTION = (
    "Measure the pipelines: ratios of medians, both sides taken in turn in the same run. Sections: "
    + "; ".join(f"{name}: {what}" for name, what in SECTIONS.items())
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the sections asked for, prints one table, and fails with `--strict` where a target is missed."""
    parser = cli.parser(DESCRIPTION)
    parser.add_argument("suite", choices=["pipelines"], help="what to measure")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, metavar="NAME", help=f"of {', '.join(SECTIONS)}")
    parser.add_argument("--scale", type=float, default=1.0, metavar="F", help="times the usual amount of data")
    parser.add_argument("--json", metavar="FILE", help="where the figures go as JSON too")
    parser.add_argument("--strict", action="store_true", help="fail where a target is missed or not measured")
    arguments = parser.parse_args(argv)
    if not 0 < arguments.scale < float("inf"):
        raise cli.UsageError(f"--scale {arguments.scale}: must be above 0")
    out = Path(arguments.json) if arguments.json else None
    if out and not out.resolve().parent.is_dir():
        raise FileNotFoundError(f"{out}: its folder does not exist")

    cli.quiet()
    rows = [row for name in arguments.only or SECTIONS for row in _measure(name, arguments.scale)]
    facts = machine() + (f", scale {arguments.scale:g}" if arguments.scale != 1 else "")
    print("\n".join(["", *table(rows), "", facts]))
    if out:
        out.write_text(json.dumps({"machine": facts, "rows": [_fields(row) for row in rows]}, indent=2) + "\n")
    short = [row for row in rows if not row.met]
    if arguments.strict and short:
        raise ValueError(f"{len(short)} of {len(rows)} targets: missed or not measured")


def table(rows: Sequence[Row]) -> list[str]:
    """The lines of a table, aligned: what, ours, peer, ratio, target, verdict; and each note in a line of its own."""
    header = ("what", "ours", "peer", "unit", "ratio", "target", "")
    cells = [header, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(header))]
    notes = ["", *(row.note for row in rows)]
    lines = []
    for line, note in zip(cells, notes, strict=True):
        aligned = (
            cell.ljust(width) if column in (0, 3, 6) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        lines += ["  ".join(aligned).rstrip()] + ([f"    {note}"] if note else [])
    return lines


def machine() -> str:
    """What the figures were measured on, in one line."""
    return f"{cores()} cores of {_processor()}, {_memory()}, {platform.system()}, Python {platform.python_version()}"


def _measure(name: str, scale: float) -> list[Row]:
    """A section's rows; one that fails is told and counts as not measured, and the others go on."""
    say(f"== {name}: {SECTIONS[name]}")
    try:
        rows: list[Row] = importlib.import_module(f"jobs.benchmarks.{name}").run(scale)
    except Exception as error:
        reason = cli.describe(cli.root_cause(error))
        say(f"{name}: {reason}")
        return [not_measured(name, float("nan"), "", reason)]
    return rows


def _cells(row: Row) -> tuple[str, ...]:
    target = f"{'<=' if row.at_most else '>='} {row.target:g}"
    if not row.measured:
        return row.name, "-", "-", row.unit, "-", target, row.verdict
    return row.name, _figure(row.ours), _figure(row.peer), row.unit, f"{row.ratio:.2f}", target, row.verdict


def _figure(value: float) -> str:
    """Three digits that matter, in plain writing."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _fields(row: Row) -> dict[str, object]:
    """A row for JSON, which has no NaN."""
    fields = asdict(row) | {"verdict": row.verdict}
    return {name: None if value != value else value for name, value in fields.items()}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _memory() -> str:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return "memory unknown"
    return f"{int(lines[0].split()[1]) / 2**20:.0f} GB of memory"


if __name__ == "__main__":
    cli.run(main)
