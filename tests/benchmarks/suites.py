"""The suites of `jobs/bench.py`, and their tables."""

import importlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from jobs.common import cli
from jobs.common.cli import Option
from model.checkpoints.description import SHIPPED
from tests.benchmarks import Row, cores, curation, inputs, not_measured, real, recipe, say
from tests.benchmarks.curation import CurationOptions
from tests.benchmarks.inputs import InputsOptions
from tests.benchmarks.real import RealOptions
from tests.benchmarks.recipe import RecipeOptions

SUITES: Mapping[str, Mapping[str, str]] = {
    "pipelines": {
        "shards": "writing shards, against Dataset.write_webdataset",
        "images": "preparing images, against a bare Pillow loop and img2dataset",
        "memory": "peak memory of 20,000 samples, against 2,000",
        "captions": "caption embeddings, against float32 in arrival order and padding to 512",
        "reading": "reading an epoch, against the webdataset library",
        "embedding": "devices and cores at work while embedding, with stand-ins of given speeds",
        "duplicates": "fingerprints and near duplicates, against imagehash and datasketch; memory of 10 million rows",
        "rerun": "a rerun with nothing to do, for 1,000 shards",
        "sources": "reading text rows on two cores, against one; the driver's memory; a rerun of many rows",
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
        "people": "conversations worded by hand, answered right, of all",
        "english": "general questions, answered as the LLM does that was trained",
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

Names = tuple[str, ...] | None


def _of(sections: Mapping[str, str]) -> Option:
    return Option(f"of {', '.join(sections)}", "NAME", choices=sections)


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteOptions:
    """The options of `jobs/bench.py pipelines`, which the other suites of ratios have too."""

    only: Annotated[Names, _of(SUITES["pipelines"])] = None
    scale: Annotated[float, Option("multiple of the usual amount of work", "F")] = 1.0
    json: Annotated[str | None, Option("also write the figures to this JSON file", "FILE")] = None
    strict: Annotated[bool, Option("fail if a target is missed or not measured")] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSuite(SuiteOptions):
    """The options of `jobs/bench.py training`."""

    only: Annotated[Names, _of(SUITES["training"])] = None
    data: Annotated[str | None, Option("a NExT-GPT data folder; by default, a small world is drawn", "ROOT")] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatSuite(SuiteOptions):
    """The options of `jobs/bench.py chat`."""

    only: Annotated[Names, _of(SUITES["chat"])] = None
    checkpoint: Annotated[str, Option("the model to benchmark", "RUN")] = SHIPPED


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuOptions:
    """The options of `jobs/bench.py gpu`."""

    only: Annotated[Names, _of(GPU)] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleOptions:
    """The options of `jobs/bench.py scale`."""

    data: Annotated[str, Option("NExT-GPT's sample, or another data folder with cc3m and webvid", "ROOT")]


def _ratios(suite: str) -> tuple[str, str]:
    """The summary and the description of a suite of ratios."""
    sections = SUITES[suite]
    return (
        f"ratios of medians: {', '.join(sections)}",
        f"Measure {suite}: ratios of medians, both sides interleaved in one run. Sections: {_listed(sections)}",
    )


def _listed(sections: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {what}" for name, what in sections.items())


_Kind = type[SuiteOptions | GpuOptions | ScaleOptions | RealOptions | InputsOptions | RecipeOptions | CurationOptions]
COMMANDS: Mapping[str, tuple[_Kind, str, str]] = {
    "pipelines": (SuiteOptions, *_ratios("pipelines")),
    "training": (TrainingSuite, *_ratios("training")),
    "chat": (ChatSuite, *_ratios("chat")),
    "gpu": (
        GpuOptions,
        f"Markdown tables for one GPU: {', '.join(GPU)}",
        f"Measure one GPU, with random weights at the released sizes. Sections: {_listed(GPU)}",
    ),
    "scale": (
        ScaleOptions,
        "on paper, what datasets of up to 400 million rows take",
        "Measure what a core takes for a picture and a video; compute what large datasets take, as Markdown tables.",
    ),
    "inputs": (
        InputsOptions,
        "how media are best told to the LLM: a pooled vector or patches, how many tokens",
        "Train stage 1 of preset world in several ways, for as many steps; a Markdown table of right descriptions.",
    ),
    "recipe": (
        RecipeOptions,
        "how stage 2 is best done: losses, signal tokens, joints",
        "Train stage 2 of preset world in several ways, for as many steps; a Markdown table of what the oracles read.",
    ),
    "curation": (
        CurationOptions,
        "what curation is worth: training on spoiled, curated and clean pairs",
        "Train on a small world spoiled on purpose, on what curation leaves of it, and clean; Markdown tables.",
    ),
    "real": (RealOptions, real.DESCRIPTION, f"Run {real.DESCRIPTION}."),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a suite and prints its table; with `--strict`, fails if a target is missed."""
    suite, options = cli.parse_suite(COMMANDS, argv, "Measure the pipelines, training, the chat server, or a GPU.")
    cli.quiet()
    if isinstance(options, SuiteOptions):
        _run_suite(suite, options)
        return
    if isinstance(options, RealOptions):
        lines = real.run(options, machine())
    elif isinstance(options, InputsOptions):
        lines = inputs.run(options)
    elif isinstance(options, RecipeOptions):
        lines = recipe.run(options)
    elif isinstance(options, CurationOptions):
        lines = curation.run(options)
    elif isinstance(options, ScaleOptions):
        from tests.benchmarks import scale

        lines = scale.run(cli.existing_folder(options.data))
    else:
        from tests.benchmarks import gpu

        lines = gpu.run(only=options.only or ())
    for line in lines:
        print(line, flush=True)


def _run_suite(suite: str, options: SuiteOptions) -> None:
    if not 0 < options.scale < float("inf"):
        raise cli.UsageError(f"--scale {options.scale}: must be above 0")
    out = Path(options.json) if options.json else None
    if out and not out.resolve().parent.is_dir():
        raise FileNotFoundError(f"{out}: its folder does not exist")

    names = options.only or list(SUITES[suite])
    if isinstance(options, TrainingSuite):
        from tests.benchmarks.training import ground

        with ground(cli.existing_folder(options.data) if options.data else None) as prepared:
            rows = _measure(SUITES["training"], names, options.scale, prepared)
    else:
        place = (options.checkpoint,) if isinstance(options, ChatSuite) else ()
        rows = _measure(SUITES[suite], names, options.scale, *place)
    facts = machine() + (f", scale {options.scale:g}" if options.scale != 1 else "")
    print("\n".join(["", *table(rows), "", facts]))
    if out:
        out.write_text(json.dumps({"machine": facts, "rows": [_fields(row) for row in rows]}, indent=2) + "\n")
    short = [row for row in rows if not row.met]
    if options.strict and short:
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
