"""Scores a checkpoint on the world's exam, or on the held-out split of your data: `jobs/score.py --checkpoint RUN`."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from jobs.common import cli
from jobs.common.cli import Option
from jobs.replies.options import Steps
from jobs.train_stage import SETTINGS
from pipelines.world.exam import ROWS, SEED

if TYPE_CHECKING:
    from model.parts.config import ModelConfig

WORLDS = ("builtin:world/", "builtin:tiny/")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreOptions:
    """Score a checkpoint on conversations about held-out combinations of the synthetic world, compared with chance and
    controls; or, with --shards, on the held-out samples of prepared and embedded shards.
    """

    checkpoint: Annotated[str, Option("a checkpoint or a run; scores are written there", "RUN")]
    n: Annotated[int, Option("conversations per row, or samples per dataset", "N", least=1)] = 200
    controls_n: Annotated[int, Option("conversations per row for the controls; 0 for none", "N", least=0)] = 64
    rows: Annotated[tuple[str, ...] | None, Option(f"any of {', '.join(ROWS)} (all if omitted)", "ROW")] = None
    shuffled: Annotated[str | None, Option("a control run that was trained with shuffle_items=true", "RUN")] = None
    seed: Annotated[int, Option("which conversations are drawn", least=0)] = SEED
    steps: Steps = None
    architectures: Annotated[
        bool, Option("compare the model's two architectures and the true captions: accuracy, latency, tokens")
    ] = False
    shards: Annotated[
        str | None, Option("score the held-out samples of these shards instead of the exam", "SHARDS")
    ] = None
    overrides: Annotated[tuple[str, ...], cli.overrides("model.llm.name=PATH where a frozen part has moved")] = ()


def run(options: ScoreOptions) -> None:
    """Runs the exam in this process, prints the table, and writes `scores.json` and `examples/` into RUN."""
    from jobs.common.settings import checkpoint_model
    from model.checkpoints.description import latest_checkpoint

    run = cli.existing_folder(options.checkpoint)
    checkpoint = latest_checkpoint(run)
    config = checkpoint_model(checkpoint, options.overrides)
    cli.check(options, _mistakes(options, config.encoder.names))
    cli.quiet()
    if options.architectures:
        _compare(options, config, run, checkpoint)
    elif options.shards:
        _held_out(options, config, run, checkpoint, cli.existing_folder(options.shards))
    else:
        _exam(options, config, run, checkpoint)


def _mistakes(options: ScoreOptions, encoders: Sequence[str]) -> Iterator[str]:
    known = ", ".join(sorted(ROWS))
    yield from (f"--rows: no row {name}; use {known}" for name in options.rows or () if name not in ROWS)
    if not options.shards and not all(name.startswith(WORLDS) for name in encoders):
        yield f"--shards: missing; the world's exam needs a model with an encoder from {' or '.join(WORLDS)}"
    if options.shards and (options.rows or options.shuffled):
        yield "--rows and --shuffled are for the world's exam; leave out either these or --shards"
    if options.architectures and (options.shards or options.shuffled):
        yield "--architectures compares on the world's exam, without controls; leave out --shards, --shuffled"


def _exam(options: ScoreOptions, config: "ModelConfig", run: Path, checkpoint: Path) -> None:
    from model.parts.devices import best_device

    device = best_device()
    from jobs.scoring.exam_report import EXAMPLES, grade_row, score_row, table, write_examples
    from jobs.scoring.exam_run import ExamSettings, sit
    from model.checkpoints.description import latest_checkpoint, read_config

    started = time.monotonic()
    chosen = [row for row in ROWS.values() if row.name in (options.rows or ROWS)]
    if [stage["stage"] for stage in read_config(checkpoint)["stages"]] == [1]:
        chosen = [replace(row, target=row.stage_1_target) for row in chosen]
    plan = ExamSettings(
        rows=[row for row in chosen if row.kinds] or [row for row in ROWS.values() if row.kinds],
        count=options.n,
        controls=options.controls_n,
        shuffled=latest_checkpoint(options.shuffled) if options.shuffled else None,
        seed=options.seed,
        steps=options.steps,
        device=device,
    )
    arms = sit(checkpoint, config, plan)
    graded = {row.name: grade_row(row, arms) for row in chosen}
    rows = [score_row(row, graded[row.name]) for row in chosen]
    write_examples(run / EXAMPLES, {name: found["model"] for name, found in graded.items()})
    _write(run, checkpoint, options, config.preset, time.monotonic() - started, [asdict(row) for row in rows])
    print(table(rows))
    missed = [row.title for row in rows if row.verdict.kind == "missed"]
    print(f"missed: {', '.join(missed)}" if missed else "no row missed")
    print(f"scores: {run / 'scores.json'}\nexamples: {run / EXAMPLES}")


def _compare(options: ScoreOptions, config: "ModelConfig", run: Path, checkpoint: Path) -> None:
    from model.parts.devices import best_device

    device = best_device()
    from jobs.scoring.comparison import compare, table
    from model.inference.responder import Responder
    from pipelines.storage.files import write_json

    chosen = [row for row in ROWS.values() if row.kinds and (row.name in options.rows if options.rows else row.target)]
    responder = Responder.from_pretrained(checkpoint, device=device, config=config)
    responder.model.merge_adapter()
    rows = compare(responder, chosen, options.n, options.seed, options.steps)
    path = run / "architectures.json"
    write_json(path, {"checkpoint": str(checkpoint), "n": options.n, "rows": [asdict(row) for row in rows]})
    print(table(rows))
    print(f"comparison: {path}")


def _held_out(options: ScoreOptions, config: "ModelConfig", run: Path, checkpoint: Path, shards: Path) -> None:
    from model.parts.devices import best_device

    device = best_device()
    from jobs.scoring.exam_report import table
    from jobs.scoring.held_out_replies import score_shards
    from pipelines.storage.shards import list_datasets

    started = time.monotonic()
    datasets = {shards / name: manifest for name, manifest in list_datasets(shards).items()}
    fraction = _fraction(run)
    rows, notes = score_shards(
        checkpoint,
        config,
        datasets,
        fraction=fraction,
        count=options.n,
        steps=options.steps,
        device=device,
    )
    for note in notes:
        print(f"note: {note}")
    if not rows:
        raise ValueError(f"{shards}: has no samples that were held out of training ({100 * fraction:.3g} % of samples)")
    _write(run, checkpoint, options, config.preset, time.monotonic() - started, [asdict(row) for row in rows])
    print(table(rows, per_cent=False))
    print(f"scores: {run / 'scores.json'}")


def _fraction(run: Path) -> float:
    """The fraction that training held out, by the settings beside the checkpoint."""
    from model.training.train_settings import ValidationSettings
    from pipelines.storage.files import read_json

    found = next((folder / SETTINGS for folder in (run, run.parent) if (folder / SETTINGS).is_file()), None)
    return float(read_json(found)["settings"]["validation"]["fraction"]) if found else ValidationSettings().fraction


def _write(
    run: Path, checkpoint: Path, options: ScoreOptions, preset: str, seconds: float, rows: list[dict[str, Any]]
) -> None:
    from pipelines.storage.files import write_json

    document = {
        "checkpoint": str(checkpoint),
        "preset": preset,
        "n": options.n,
        "controls_n": options.controls_n,
        "seed": options.seed,
        "steps": options.steps,
        "seconds": round(seconds, 1),
        "rows": rows,
    }
    write_json(run / "scores.json", document)


main = cli.command(ScoreOptions, run)

if __name__ == "__main__":
    cli.run(main)
