"""Scores a checkpoint on the world's exam, or on the held-out split of your data: `jobs/score.py --checkpoint RUN`."""

import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from jobs.common import cli
from jobs.replies import options
from jobs.train_stage import SETTINGS

WORLDS = ("builtin:world/", "builtin:tiny/")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the exam in this process, prints the table, and writes `scores.json` and `examples/` into RUN."""
    from pipelines.world.exam import ROWS, SEED

    parser = cli.parser(
        "Score a checkpoint on conversations about held-out combinations of the synthetic world, compared with chance "
        "and controls; or, with --shards, on the held-out samples of prepared and embedded shards."
    )
    parser.add_argument(
        "--checkpoint", required=True, metavar="RUN", help="a checkpoint or a run; scores are written there"
    )
    parser.add_argument("--n", type=int, default=200, metavar="N", help="conversations per row, or samples per dataset")
    parser.add_argument(
        "--controls-n", type=int, default=64, metavar="N", help="conversations per row for the controls; 0 for none"
    )
    parser.add_argument("--rows", nargs="+", metavar="ROW", help=f"any of {', '.join(ROWS)} (all if omitted)")
    parser.add_argument("--shuffled", metavar="RUN", help="a control run that was trained with shuffle_items=true")
    parser.add_argument("--seed", type=int, default=SEED, help="which conversations are drawn")
    options.add_options(parser, "steps")
    parser.add_argument(
        "--architectures",
        action="store_true",
        help="compare the model's two architectures and the true captions: accuracy, latency, tokens",
    )
    parser.add_argument(
        "--shards", metavar="SHARDS", help="score the held-out samples of these shards instead of the exam"
    )
    cli.add_overrides(parser, "model.llm.name=PATH where a frozen part has moved")
    arguments = parser.parse_args(argv)

    from jobs.common.settings import checkpoint_model
    from model.checkpoints.description import latest_checkpoint

    run = cli.existing_folder(arguments.checkpoint)
    checkpoint = latest_checkpoint(run)
    arguments.config = checkpoint_model(checkpoint, arguments.overrides)
    _check(arguments, sorted(ROWS), arguments.config.encoder.name)
    cli.quiet()
    if arguments.architectures:
        _compare(arguments, run, checkpoint)
    elif arguments.shards:
        _held_out(arguments, run, checkpoint)
    else:
        _exam(arguments, run, checkpoint)


def _check(arguments: Namespace, known: Sequence[str], encoder: str) -> None:
    mistakes = [f"--rows: no row {name}; use {', '.join(known)}" for name in arguments.rows or () if name not in known]
    if not arguments.shards and not encoder.startswith(WORLDS):
        mistakes.append(f"--shards: missing; the world's exam needs a model with an encoder from {' or '.join(WORLDS)}")
    if arguments.shards and (arguments.rows or arguments.shuffled):
        mistakes.append("--rows and --shuffled are for the world's exam; leave out either these or --shards")
    if arguments.architectures and (arguments.shards or arguments.shuffled):
        mistakes.append(
            "--architectures compares on the world's exam, without controls; leave out --shards, --shuffled"
        )
    for name, least in (("n", 1), ("controls_n", 0), ("steps", 1), ("seed", 0)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            mistakes.append(f"--{name.replace('_', '-')} {value}: must be at least {least}")
    if mistakes:
        raise cli.UsageError("\n".join(mistakes))


def _exam(arguments: Namespace, run: Path, checkpoint: Path) -> None:
    from model.parts.devices import best_device

    device = best_device()
    from jobs.scoring.exam_report import EXAMPLES, grade_row, score_row, table, write_examples
    from jobs.scoring.exam_run import ExamSettings, sit
    from model.checkpoints.description import latest_checkpoint, read_config
    from pipelines.world.exam import ROWS

    started = time.monotonic()
    chosen = [row for row in ROWS.values() if row.name in (arguments.rows or ROWS)]
    if [stage["stage"] for stage in read_config(checkpoint)["stages"]] == [1]:
        chosen = [replace(row, target=row.stage_1_target) for row in chosen]
    plan = ExamSettings(
        rows=[row for row in chosen if row.kinds] or [row for row in ROWS.values() if row.kinds],
        count=arguments.n,
        controls=arguments.controls_n,
        shuffled=latest_checkpoint(arguments.shuffled) if arguments.shuffled else None,
        seed=arguments.seed,
        steps=arguments.steps,
        device=device,
    )
    arms = sit(checkpoint, arguments.config, plan)
    graded = {row.name: grade_row(row, arms) for row in chosen}
    rows = [score_row(row, graded[row.name]) for row in chosen]
    write_examples(run / EXAMPLES, {name: found["model"] for name, found in graded.items()})
    _write(run, checkpoint, arguments, time.monotonic() - started, [asdict(row) for row in rows])
    print(table(rows))
    missed = [row.title for row in rows if row.verdict.kind == "missed"]
    print(f"missed: {', '.join(missed)}" if missed else "no row missed")
    print(f"scores: {run / 'scores.json'}\nexamples: {run / EXAMPLES}")


def _compare(arguments: Namespace, run: Path, checkpoint: Path) -> None:
    from model.parts.devices import best_device

    device = best_device()
    from jobs.scoring.comparison import compare, table
    from model.inference.responder import Responder
    from pipelines.storage.files import write_json
    from pipelines.world.exam import ROWS

    chosen = [
        row for row in ROWS.values() if row.kinds and (row.name in arguments.rows if arguments.rows else row.target)
    ]
    responder = Responder.from_pretrained(checkpoint, device=device, config=arguments.config)
    responder.model.merge_adapter()
    rows = compare(responder, chosen, arguments.n, arguments.seed, arguments.steps)
    path = run / "architectures.json"
    write_json(path, {"checkpoint": str(checkpoint), "n": arguments.n, "rows": [asdict(row) for row in rows]})
    print(table(rows))
    print(f"comparison: {path}")


def _held_out(arguments: Namespace, run: Path, checkpoint: Path) -> None:
    from model.parts.devices import best_device

    device = best_device()
    from jobs.scoring.exam_report import table
    from jobs.scoring.held_out_replies import score_shards
    from pipelines.storage.shards import list_datasets

    started = time.monotonic()
    shards = cli.existing_folder(arguments.shards)
    datasets = {shards / name: manifest for name, manifest in list_datasets(shards).items()}
    fraction = _fraction(run)
    rows, notes = score_shards(
        checkpoint,
        arguments.config,
        datasets,
        fraction=fraction,
        count=arguments.n,
        steps=arguments.steps,
        device=device,
    )
    for note in notes:
        print(f"note: {note}")
    if not rows:
        raise ValueError(f"{shards}: has no samples that were held out of training ({100 * fraction:.3g} % of samples)")
    _write(run, checkpoint, arguments, time.monotonic() - started, [asdict(row) for row in rows])
    print(table(rows, per_cent=False))
    print(f"scores: {run / 'scores.json'}")


def _fraction(run: Path) -> float:
    """The fraction that training held out, by the settings beside the checkpoint."""
    from model.training.train_settings import ValidationSettings
    from pipelines.storage.files import read_json

    found = next((folder / SETTINGS for folder in (run, run.parent) if (folder / SETTINGS).is_file()), None)
    return float(read_json(found)["settings"]["validation"]["fraction"]) if found else ValidationSettings().fraction


def _write(run: Path, checkpoint: Path, arguments: Namespace, seconds: float, rows: list[dict[str, Any]]) -> None:
    from pipelines.storage.files import write_json

    document = {
        "checkpoint": str(checkpoint),
        "preset": arguments.config.preset,
        "n": arguments.n,
        "controls_n": arguments.controls_n,
        "seed": arguments.seed,
        "steps": arguments.steps,
        "seconds": round(seconds, 1),
        "rows": rows,
    }
    write_json(run / "scores.json", document)


if __name__ == "__main__":
    cli.run(main)
