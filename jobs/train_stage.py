"""Trains a stage with Ray Train and DeepSpeed: `jobs/train_stage.py --stage 1 --shards SHARDS --out RUN`."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs import cli

SETTINGS = "settings.json"


def main(argv: Sequence[str] | None = None) -> None:
    """Checks everything that can be checked, trains, and says where the checkpoint lies."""
    parser = cli.parser("Train one of NExT-GPT's three stages on prepared and embedded shards.")
    parser.add_argument("--stage", type=int, choices=(1, 2, 3), required=True, help="which stage")
    parser.add_argument("--shards", required=True, metavar="SHARDS", help="the --out of jobs/prepare.py, embedded")
    parser.add_argument("--out", required=True, metavar="RUN", help="where checkpoints, settings and the log go")
    parser.add_argument("--init", metavar="CHECKPOINT", help="a checkpoint, or a run, of an earlier stage")
    parser.add_argument("--preset", default="tiny", help="names the model's parts and their settings")
    parser.add_argument("--overwrite", action="store_true", help="remove what RUN holds first")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings, such as epochs=2 or model.lora.r=16"
    )
    arguments = parser.parse_args(argv)

    from jobs.settings import deepspeed_settings, load_settings, settings_hash
    from jobs.stage import plan_stage, prepared_views, train
    from model.description import latest_checkpoint

    views = prepared_views(arguments.shards)
    settings = load_settings(arguments.stage, arguments.preset, arguments.overrides, views)
    engine = deepspeed_settings(settings)
    shards = cli.existing_folder(arguments.shards)
    run = cli.new_folder(arguments.out)
    init = latest_checkpoint(Path(arguments.init)) if arguments.init else None
    plan = plan_stage(settings, shards, init)
    _clear(run, arguments.overwrite)

    effective: Mapping[str, Any] = {
        "settings": settings.model_dump(mode="json"),
        "deepspeed": engine,
        "data": {view.name: view.manifest.content for view in plan.views},
    }
    name = settings_hash(effective)
    print(f"stage {settings.stage}, configuration {name}: {plan.describe()}")
    for line in plan.notes:
        print(f"note: {line}")
    run.mkdir(parents=True, exist_ok=True)
    (run / SETTINGS).write_text(json.dumps({"hash": name, **effective}, indent=1) + "\n")

    cli.start_ray()
    summary = train(plan, engine, run, init, name)
    print(summary)
    cli.note_untrained(plan.untrained)


def _clear(run: Path, overwrite: bool) -> None:
    """Makes room for a run; what is not a run of ours is never removed."""
    if not run.exists() or not any(run.iterdir()):
        return
    if not (run / SETTINGS).is_file():
        raise FileExistsError(f"{run}: holds other files; give a folder that is empty or new")
    if not overwrite:
        raise FileExistsError(f"{run}: holds a run already; give another --out, or --overwrite")
    shutil.rmtree(run)


if __name__ == "__main__":
    cli.run(main)
