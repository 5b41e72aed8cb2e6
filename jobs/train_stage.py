"""Trains a stage with Ray Train and DeepSpeed: `jobs/train_stage.py --stage 1 --shards SHARDS --out RUN`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from jobs.common import cli
from jobs.common.cli import Option
from pipelines.sample import Modality
from pipelines.storage.files import read_json, remove_tree, to_path, write_json

if TYPE_CHECKING:
    from jobs.training.stage import StagePlan
    from model.training.train_settings import TrainSettings

SETTINGS = "settings.json"
SELECTION = "selection.json"
# What may change when a run is resumed: how it is executed and logged, not what it computes.
FREE = (
    "workers",
    "use_gpu",
    "max_failures",
    "log_every",
    "log_samples",
    "tracker",
    "checkpoint_every",
    "keep_last",
    "validation.every",
    "validation.generate",
    # Where the same weights are, and how frozen parts are loaded; another LLM is detected by its fingerprint.
    "model.preset",
    "model.llm.name",
    "model.llm.attention",
    "model.encoder.name",
    *(f"model.outputs.{modality}.decoder" for modality in Modality),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """Train one of NExT-GPT's three stages on prepared and embedded shards."""

    stage: Annotated[Literal[1, 2, 3], Option("which stage")]
    shards: Annotated[str, Option("the --out of jobs/prepare.py, embedded", "SHARDS")]
    out: Annotated[str, Option("where checkpoints, settings and the log are written", "RUN")]
    init: Annotated[str | None, Option("a checkpoint, or a run, of an earlier stage", "CHECKPOINT")] = None
    preset: Annotated[str, Option("preset of the model and its settings, or your own .yaml file")] = "world"
    overwrite: Annotated[bool, Option("delete the contents of RUN first")] = False
    dry_run: Annotated[
        bool,
        Option("start nothing; print what would train, the memory it takes, whether that fits, and all other mistakes"),
    ] = False
    gpu_memory: Annotated[float | None, Option("with --dry-run: memory per GPU, if not of the GPUs here", "GB")] = None
    host_memory: Annotated[
        float | None, Option("with --dry-run: main memory per worker, if not of this machine", "GB")
    ] = None
    overrides: Annotated[tuple[str, ...], cli.overrides("epochs=2 or model.lora.r=16")] = ()


def run(options: TrainOptions) -> None:
    """Checks all that can be checked in advance, trains or resumes the run, and prints where the checkpoint is."""
    from jobs.common.settings import deepspeed_settings, load_settings, settings_hash
    from jobs.training.dry_run import cpu_notes
    from jobs.training.stage import order_samples, plan_stage, prepared_views, train
    from jobs.training.workers import choose_workers
    from model.checkpoints.description import latest_checkpoint

    views = prepared_views(options.shards)
    settings = load_settings(options.stage, options.preset, options.overrides, views)
    engine = deepspeed_settings(settings)
    if options.dry_run:
        _dry_run(options, settings, engine)
        return
    shards = cli.existing_folder(options.shards)
    run = cli.new_folder(options.out)
    init = latest_checkpoint(to_path(options.init)) if options.init else None
    plan = plan_stage(settings, shards, run, init)
    settings = plan.settings
    effective: Mapping[str, Any] = {
        "settings": settings.model_dump(mode="json"),
        "deepspeed": engine,
        "init": str(init) if init else None,
        "data": {view.name: view.manifest.content for view in plan.views},
    }
    if plan.selections:  # Without any, a run is what it was before there were selections.
        effective = {**effective, "selected": {name: one.identity for name, one in plan.selections.items()}}
    name = settings_hash(effective)
    steps_done = _make_room(run, effective, options.overwrite)
    print(f"stage {settings.stage}, configuration {name}")
    run.mkdir(parents=True, exist_ok=True)
    write_json(run / SETTINGS, {"hash": name, **effective})
    if plan.selections:
        write_json(run / SELECTION, {name: one.to_json() for name, one in plan.selections.items()})
    _print_selections(plan)

    cli.start_ray()
    workers = choose_workers(settings)
    if workers.note is not None:
        print(f"note: {workers.note}", flush=True)
    if settings.use_gpu and not workers.use_gpu:
        for line in cpu_notes(settings, engine, workers.most):
            print(f"note: {line}", flush=True)
    order = order_samples(plan)
    print(order.describe(plan))
    notes = [*plan.notes, *order.notes, *_resume_notes(run)]
    for line in notes:
        print(f"note: {line}")
    if steps_done >= order.mixture.num_steps:
        print(f"{run}: finished already; nothing to do")
        return
    if steps_done:
        print(f"goes on from step {steps_done} of {order.mixture.num_steps}")
    print(train(plan, order, workers, engine, run, init, name))
    cli.note_untrained(plan.untrained)


def _dry_run(options: TrainOptions, settings: "TrainSettings", engine: Mapping[str, Any]) -> None:
    """Prints the footprint of a run.

    Raises:
        Failures: it does not fit, or would be refused; one line per reason.
    """
    from jobs.training.dry_run import DryRun, machine_for
    from jobs.training.stage import plan_stage
    from model.checkpoints.description import latest_checkpoint

    faults: list[str] = []
    try:
        init = latest_checkpoint(to_path(options.init)) if options.init else None
        shards, run = cli.existing_folder(options.shards), cli.new_folder(options.out)
        stage = plan_stage(settings, shards, run, init)
        settings = stage.settings
        _print_selections(stage)
    except (ValueError, OSError) as error:
        faults += str(error).splitlines()
    plan = DryRun(settings, engine, machine_for(settings, options.gpu_memory, options.host_memory))
    for line in plan.lines():
        print(line, flush=True)
    print(plan.verdict())
    if not plan.fits:
        faults += [plan.verdict(), *(f"use {line}" for line in plan.advice())]
    if faults:
        raise cli.Failures("\n".join(faults))


def _print_selections(plan: "StagePlan") -> None:
    """Prints how many samples of each dataset remain, and which clause of its condition dropped how many."""
    for name, selection in plan.selections.items():
        print(f"selected: {selection.describe(name)}")


def _make_room(run: Path, effective: Mapping[str, Any], overwrite: bool) -> int:
    """How many steps of this run are done; a folder that is not a run is never deleted."""
    from model.runs.run_state import first_step

    if not run.exists() or not any(run.iterdir()):
        return 0
    if not (run / SETTINGS).is_file():
        raise FileExistsError(f"{run}: contains other files; give an empty or new folder")
    if overwrite:
        remove_tree(run)
        return 0
    changed = list(_differences(read_json(run / SETTINGS), effective))
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise FileExistsError(
            f"{run}: holds a run of other settings ({'; '.join(changed[:3])}{more}); repeat its command to go on, give "
            "another --out, or --overwrite"
        )
    return first_step(run)


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """The settings that would make a resumed run a different one, as `name: old -> new`."""
    before, now = _flat(old), _flat(new)
    for name in dict.fromkeys((*before, *now)):
        if name == "hash" or name.removeprefix("settings.") in FREE:
            continue
        if before.get(name) != now.get(name):
            yield f"{name.removeprefix('settings.')}: {before.get(name)} -> {now.get(name)}"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def _resume_notes(run: Path) -> Iterator[str]:
    from jobs.training.preflight import notes
    from model.runs.run_state import resumable

    checkpoint = resumable(run)
    if checkpoint is not None:
        yield from notes(checkpoint)


main = cli.command(TrainOptions, run)

if __name__ == "__main__":
    cli.run(main)
