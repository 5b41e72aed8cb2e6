"""The whole pipeline on one machine, from prepare to gallery: `jobs/quickstart.py [--data ROOT] [--out DIR]`."""

import importlib
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from jobs.common import cli
from jobs.common.cli import Option

WORLD_SEED = 0
PRESET = "world"  # the one with trained foundations, which can be evaluated on the world's exam
MODALITIES = ("image", "video", "audio")
PROMPT = "Show me a picture, a video and a sound of a red circle."
UNDERSTANDING = tuple(f"understand_{modality}" for modality in MODALITIES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """What the duration depends on: pairs per modality, conversations per row of the exam and its controls, settings.

    `last` are settings of stage 3 alone; `control` those of the control on shuffled captions, which needs fewer steps
    to end at chance.
    """

    world: int
    samples_per_shard: int
    n: int = 0
    controls_n: int = 0
    settings: tuple[str, ...] = ()
    last: tuple[str, ...] = ()
    control: tuple[str, ...] = ()


USUAL = Size(world=400, samples_per_shard=200, n=32, last=("epochs=3",))
FULL = Size(world=600, samples_per_shard=200, n=200, controls_n=32, control=("max_steps=300",))
SMALL = Size(
    world=200,
    samples_per_shard=100,
    n=32,
    controls_n=16,
    settings=("max_steps=150",),
    control=("max_steps=100",),
)
PLAIN = Size(world=16, samples_per_shard=8)  # without an exam


@dataclass(frozen=True, slots=True, kw_only=True)
class QuickstartOptions:
    """Run the whole pipeline once, small, on this machine; without --data, on a synthetic world."""

    data: Annotated[str | None, Option("a NExT-GPT data folder", "ROOT")] = None
    out: Annotated[str, Option("folder for all output", "DIR")] = "out/quickstart"
    preset: Annotated[str, Option("the preset of all steps, or your own .yaml file")] = PRESET
    small: Annotated[bool, Option("less data and fewer steps: shows that it works, not how well")] = False
    full: Annotated[bool, Option("also train a control on shuffled captions, and run the whole exam")] = False
    overrides: Annotated[tuple[str, ...], cli.overrides("epochs=2 or model.llm.name=PATH")] = ()


def run(options: QuickstartOptions) -> None:
    """Runs the commands one after another, as a user would type them."""
    cli.check(options, _mistakes(options))
    started = time.monotonic()
    examined = options.preset == PRESET and not options.data
    size = PLAIN if not examined else SMALL if options.small else FULL if options.full else USUAL
    out = cli.new_folder(options.out)
    out.mkdir(parents=True, exist_ok=True)
    data = cli.existing_folder(options.data) if options.data else _world(out, size.world)
    times = _train(out, data, options.preset, options.overrides, size)
    times |= _examine(out, size) if examined else _reply(out)
    page = out / "gallery.html"
    runs = [str(out / f"stage-{stage}") for stage in (1, 2, 3)]
    times["gallery"] = _run("gallery", ["--runs", *runs, "--out", str(page)])
    steps = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in times.items())
    print(f"\ndone in {time.monotonic() - started:.0f} s ({steps}). Where to look, below {out}:")
    if examined:
        print("  stage-3/       scores.json, examples/, and what every run has: checkpoints, log.jsonl, settings.json")
    else:
        print("  reply/         the answer: reply.json and its picture, video and sound")
        print("  stage-*/       checkpoints with model cards, log.jsonl, settings.json, trainable.json")
    print("  shards/        WebDataset tars, indexes, rejects.parquet and embeddings of each dataset")
    print(f"  gallery.html   open this one in a browser: {page}")


def _mistakes(options: QuickstartOptions) -> Iterator[str]:
    if options.small and options.full:
        yield "--small and --full: leave out one of them"


def _world(out: Path, count: int) -> Path:
    from pipelines.world.dataset import write_world

    root = out / f"world-{WORLD_SEED}-{count}"
    print(f"no --data: drawing a small world of scenes, clips and sounds into {root}")
    write_world(root, seed=WORLD_SEED, count=count)
    return root


def _train(out: Path, data: Path, preset: str, overrides: Sequence[str], size: Size) -> dict[str, float]:
    """From raw data through three stages; returns the seconds of each step."""
    shards, times = str(out / "shards"), {}
    command = ["--data", str(data), "--out", shards, "--samples-per-shard", str(size.samples_per_shard)]
    times["prepare"] = _run("prepare", command)
    parts = [text for text in overrides if text.startswith("model.")]
    times["embed"] = _run("embed", ["--shards", shards, "--preset", preset, *parts])
    init: list[str] = []
    for stage in ("1", "2", "3"):
        run = str(out / f"stage-{stage}")
        command = ["--stage", stage, "--shards", shards, "--out", run, *init, "--preset", preset, "--overwrite"]
        chosen = [*size.settings, *(size.last if stage == "3" else ()), *overrides]
        times[f"stage {stage}"] = _run("train_stage", [*command, *chosen])
        init = ["--init", run]
    return times


def _examine(out: Path, size: Size) -> dict[str, float]:
    """Evaluates the runs on the world's exam, and a control on shuffled captions, where one is to be trained."""
    times, control = {}, str(out / "control")
    if size.control:
        command = ["--stage", "3", "--shards", str(out / "shards"), "--out", control, "--preset", PRESET, "--overwrite"]
        times["control"] = _run("train_stage", [*command, *size.control, "shuffle_items=true"])
    command = ["--checkpoint", str(out / "stage-1"), "--n", str(size.n), "--controls-n", "0"]
    times["score stage 1"] = _run("score", [*command, "--rows", *UNDERSTANDING])
    command = ["--checkpoint", str(out / "stage-3"), "--n", str(size.n), "--controls-n", str(size.controls_n)]
    times["score stage 3"] = _run("score", [*command, *(["--shuffled", control] if size.control else [])])
    return times


def _reply(out: Path) -> dict[str, float]:
    """Asks the last run for all media that it can make."""
    command = ["--checkpoint", str(out / "stage-3"), "--prompt", PROMPT, "--out", str(out / "reply")]
    return {"generate": _run("generate", [*command, "--require", *MODALITIES])}


def _run(name: str, argv: list[str]) -> float:
    """Runs one command; returns its seconds."""
    started = time.monotonic()
    print(f"\n$ python jobs/{name}.py {shlex.join(argv)}", flush=True)
    importlib.import_module(f"jobs.{name}").main(argv)  # late, so that --help is fast
    return time.monotonic() - started


main = cli.command(QuickstartOptions, run)

if __name__ == "__main__":
    cli.run(main)
