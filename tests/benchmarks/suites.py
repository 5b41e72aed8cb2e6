"""The suites of `jobs/bench.py`, and their tables."""

import importlib
import json
import platform
from argparse import ArgumentDefaultsHelpFormatter, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jobs.common import cli
from model.checkpoints.description import SHIPPED
from tests.benchmarks import Row, cores, not_measured, real, say

SUITES: Mapping[str, Mapping[str, str]] = {
    "pipelines": {
        "shards": "writing shards, against Dataset.write_webdataset",
        "images": "preparing images, against a bare Pillow loop and img2dataset",
        "memory": "peak memory of 20,000 samples, against 2,000",
        "captions": "caption embeddings, against float32 in arrival order and padding to 512",
        "reading": "reading an epoch, against the webdataset library",
        "embedding": "devices and cores at work while embedding, with stand-ins of given speeds",
        "rerun": "a rerun with nothing to do, for 1,000 shards",
    },
    "training": {
        "waiting": "time a real run of stage 3 waits for data, against its steps",
        "step": "a training step, against a bare PyTorch loop",
        "features": "stage 1 from cached features, against the encoder in the loop",
        "logits": "logits at labelled positions, against logits everywhere: time and peak memory",
    },
    "chat": {
        "replies": "each case over HTTP: the first word, the whole reply, and the second reply against the first",
        "tokens": "tokens per second of the LLM, against transformers' generate on the same weights",
        "media_batches": "each decoder in batches, against one medium at a time",
        "load": "50 visitors for 5 minutes: p50, p95, failures, memory, and the gain from batching",
    },
}


GPU = {
    "training": "training steps of a 7B model",
    "captions": "captions per second of the decoders' text encoders",
    "decoders": "seconds per medium of the decoders, in each precision",
    "encoder": "media per second of ImageBind",
    "small": "the preset for a 24 GB card: steps and whole replies",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a suite and prints its table; with `--strict`, fails if a target is missed."""
    parser = cli.parser("Measure the pipelines, training, the chat server, or a GPU.")
    suites = parser.add_subparsers(dest="suite", required=True, metavar="SUITE")
    for suite, sections in SUITES.items():
        _add_suite(suites, suite, sections)
    _add_gpu(suites)
    _add_real(suites)
    arguments = parser.parse_args(argv)
    cli.quiet()
    if arguments.suite == "real":
        for line in real.run(arguments, machine()):
            print(line, flush=True)
        return
    if arguments.suite == "gpu":
        from tests.benchmarks import gpu

        for line in gpu.run(only=arguments.only or ()):
            print(line, flush=True)
        return
    _run_suite(arguments)


def _add_suite(suites: Any, suite: str, sections: Mapping[str, str]) -> None:
    listed = "; ".join(f"{name}: {what}" for name, what in sections.items())
    parser = suites.add_parser(
        suite,
        help=f"ratios of medians: {', '.join(sections)}",
        description=f"Measure {suite}: ratios of medians, both sides interleaved in one run. Sections: {listed}",
        formatter_class=ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", choices=sections, metavar="NAME", help=f"of {', '.join(sections)}")
    parser.add_argument("--scale", type=float, default=1.0, metavar="F", help="multiple of the usual amount of work")
    parser.add_argument("--json", metavar="FILE", help="also write the figures to this JSON file")
    parser.add_argument("--strict", action="store_true", help="fail if a target is missed or not measured")
    if suite == "training":
        parser.add_argument("--data", metavar="ROOT", help="a NExT-GPT data folder; by default, a small world is drawn")
    if suite == "chat":
        parser.add_argument("--checkpoint", default=SHIPPED, metavar="RUN", help="the model to benchmark")


def _add_real(suites: Any) -> None:
    parser = suites.add_parser(
        "real",
        help=real.DESCRIPTION,
        description=f"Run {real.DESCRIPTION}.",
        formatter_class=ArgumentDefaultsHelpFormatter,
    )
    real.add_arguments(parser)


def _add_gpu(suites: Any) -> None:
    listed = "; ".join(f"{name}: {what}" for name, what in GPU.items())
    parser = suites.add_parser(
        "gpu",
        help=f"Markdown tables for one GPU: {', '.join(GPU)}",
        description=f"Measure one GPU, with random weights at the released sizes. Sections: {listed}",
    )
    parser.add_argument("--only", nargs="+", choices=GPU, metavar="NAME", help=f"of {', '.join(GPU)}")


def _run_suite(arguments: Namespace) -> None:
    if not 0 < arguments.scale < float("inf"):
        raise cli.UsageError(f"--scale {arguments.scale}: must be above 0")
    out = Path(arguments.json) if arguments.json else None
    if out and not out.resolve().parent.is_dir():
        raise FileNotFoundError(f"{out}: its folder does not exist")

    names = arguments.only or list(SUITES[arguments.suite])
    if arguments.suite == "training":
        from tests.benchmarks.training import ground

        with ground(cli.existing_folder(arguments.data) if arguments.data else None) as prepared:
            rows = _measure(SUITES["training"], names, arguments.scale, prepared)
    else:
        place = (arguments.checkpoint,) if arguments.suite == "chat" else ()
        rows = _measure(SUITES[arguments.suite], names, arguments.scale, *place)
    facts = machine() + (f", scale {arguments.scale:g}" if arguments.scale != 1 else "")
    print("\n".join(["", *table(rows), "", facts]))
    if out:
        out.write_text(json.dumps({"machine": facts, "rows": [_fields(row) for row in rows]}, indent=2) + "\n")
    short = [row for row in rows if not row.met]
    if arguments.strict and short:
        raise ValueError(f"{len(short)} of {len(rows)} targets: missed or not measured")


def table(rows: Sequence[Row]) -> list[str]:
    """The aligned lines of a table: what, ours, peer, ratio, target, verdict; each note has its own line."""
    header = ("what", "ours", "peer", "unit", "ratio", "target", "")
    notes = ["", *(row.note for row in rows)]
    lines = []
    for line, note in zip(cli.aligned([header, *map(_cells, rows)], left=(0, 3, 6)), notes, strict=True):
        lines += [line] + ([f"    {note}"] if note else [])
    return lines


def machine() -> str:
    """The machine on which the figures were measured, in one line."""
    return f"{cores()} cores of {_processor()}, {_memory()}, {platform.system()}, Python {platform.python_version()}"


def _measure(sections: Mapping[str, str], names: Sequence[str], scale: float, *place: object) -> list[Row]:
    """The rows of the named sections; one that fails is reported and counts as not measured, the others continue."""
    rows: list[Row] = []
    for name in names:
        say(f"== {name}: {sections[name]}")
        try:
            rows += importlib.import_module(f"tests.benchmarks.{name}").run(scale, *place)
        except Exception as error:
            reason = cli.describe(cli.root_cause(error))
            say(f"{name}: {reason}")
            rows.append(not_measured(name, None, "", reason))
    return rows


def _cells(row: Row) -> tuple[str, ...]:
    target = "" if row.target is None else f"{'<=' if row.at_most else '>='} {row.target:g}"
    if not row.measured:
        return row.name, "-", "-", row.unit, "-", target, row.verdict
    return row.name, _figure(row.ours), _figure(row.peer), row.unit, _ratio(row.ratio), target, row.verdict


def _figure(value: float) -> str:
    """Three significant digits, without exponent."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _ratio(value: float) -> str:
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"


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
