"""Trains a stage with Ray Train and DeepSpeed: `jobs/train_stage.py --stage 1 --shards SHARDS --out RUN`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from jobs.common import cli
from jobs.common.cli import Option
from pipelines.sample import Modality
from pipelines.storage.files import read_json, remove_tree, to_path, write_json
from pipelines.storage.locks import LOCK, locked

if TYPE_CHECKING:
    from jobs.training.stage import StagePlan
    from jobs.training.stopping import Course
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
    *(f"model.encoder.{modality}.name" for modality in Modality),
    *(f"model.outputs.{modality}.decoder" for modality in Modality),
)
# What runs had before there was a setting for it.
_EARLIER = {"settings.model.llm.template": "vicuna_v0", "settings.captions": "original"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """Train one of NExT-GPT's three stages on prepared and embedded shards."""

    stage: Annotated[Literal[1, 2, 3], Option("which stage")]
    shards: Annotated[str, Option("the --out of jobs/prepare.py, embedded", "SHARDS")]
    out: Annotated[str, Option("where checkpoints, settings and the log are written", "RUN")]
    init: Annotated[
        str | None, Option("a checkpoint, or a run, of an earlier stage; or builtin:world", "CHECKPOINT")
    ] = None
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
    from jobs.training.stopping import interruptible

    if options.dry_run:
        _dry_run(options)
        return
    with interruptible(cli.new_folder(options.out)) as course:
        _start(options, course)


def _start(options: TrainOptions, course: "Course") -> None:
    """Plans the run, and trains in its folder, of which no other process can take hold meanwhile."""
    from jobs.common.settings import deepspeed_settings
    from jobs.training.stage import plan_stage

    run, settings = course.run, _settings(options)
    engine = deepspeed_settings(settings)
    shards = cli.existing_folder(options.shards)
    init = _init(options)
    plan = plan_stage(settings, shards, run, init)
    effective: Mapping[str, Any] = {
        "settings": plan.settings.model_dump(mode="json"),
        "deepspeed": engine,
        "init": _named(options.init, init),
        "data": {view.name: view.manifest.content for view in plan.views},
    }
    # Where no columns are asked, a run is what it was before there were any.
    effective = {**effective, **plan.identities}
    _refuse_other_files(run)
    with locked(run) as note:
        if note is not None:
            print(f"note: {note}", flush=True)
        steps_done = _make_room(run, effective, options.overwrite)
        _train(plan, course, init, effective, steps_done)


def _init(options: TrainOptions) -> Path | None:
    from model.checkpoints.description import as_path, latest_checkpoint

    return latest_checkpoint(to_path(as_path(options.init))) if options.init else None


def _named(asked: str | None, init: Path | None) -> str | None:
    """What a run began from, as its settings say it: a model that ships is elsewhere in each job's copy of the code."""
    from model.checkpoints.description import SHIPPED, SMALL

    return asked if asked in (SHIPPED, SMALL) else str(init) if init else None


def _settings(options: TrainOptions) -> "TrainSettings":
    from jobs.common.settings import load_settings
    from jobs.training.stage import prepared_views

    return load_settings(options.stage, options.preset, options.overrides, prepared_views(options.shards))


def _train(
    plan: "StagePlan", course: "Course", init: Path | None, effective: Mapping[str, Any], steps_done: int
) -> None:
    """Trains what is planned, from where it stopped."""
    from jobs.common.settings import settings_hash
    from jobs.training.dry_run import cpu_notes
    from jobs.training.stage import order_samples, train
    from jobs.training.workers import choose_workers

    run, settings, engine, name = course.run, plan.settings, effective["deepspeed"], settings_hash(effective)
    print(f"stage {settings.stage}, configuration {name}")
    write_json(run / SETTINGS, {"hash": name, **effective})
    if plan.accounts:
        write_json(run / SELECTION, plan.accounts)
    _print_selections(plan)

    cli.start_ray()
    workers = choose_workers(settings)
    if workers.note is not None:
        print(f"note: {workers.note}", flush=True)
    if settings.use_gpu and not workers.use_gpu:
        for line in cpu_notes(settings, engine, workers.most):
            print(f"note: {line}", flush=True)
    order = order_samples(plan)
    course.num_steps = order.mixture.num_steps
    print(order.describe(plan))
    for line in [*plan.notes, *order.notes, *_resume_notes(run)]:
        print(f"note: {line}")
    if steps_done >= course.num_steps:
        print(f"{run}: finished already; nothing to do")
        return
    if steps_done:
        print(f"goes on from step {steps_done} of {course.num_steps}", flush=True)
    print(train(plan, order, workers, engine, run, init, name))
    cli.note_untrained(plan.untrained)


def _dry_run(options: TrainOptions) -> None:
    """Prints the footprint of a run.

    Raises:
        Failures: it does not fit, or would be refused; one line per reason.
    """
    from jobs.common.settings import deepspeed_settings
    from jobs.training.dry_run import DryRun, machine_for
    from jobs.training.stage import plan_stage

    settings, faults = _settings(options), list[str]()
    engine = deepspeed_settings(settings)
    try:
        init = _init(options)
        shards, run = cli.existing_folder(options.shards), cli.new_folder(options.out)
        stage = plan_stage(settings, shards, run, init)
        settings = stage.settings
        _print_selections(stage)
    except (ValueError, OSError) as error:
        faults += str(error).splitlines()
    try:
        plan = DryRun(settings, engine, machine_for(settings, options.gpu_memory, options.host_memory))
        lines = list(plan.lines())
    except Exception:
        if not faults:
            raise
        raise cli.Failures("\n".join(faults)) from None  # as a rule they say why nothing can be measured
    for line in lines:
        print(line, flush=True)
    print(plan.verdict())
    if not plan.fits:
        faults += [plan.verdict(), *(f"use {line}" for line in plan.advice())]
    if faults:
        raise cli.Failures("\n".join(faults))


def _print_selections(plan: "StagePlan") -> None:
    """Prints how many samples of each dataset remain, which clause of its condition dropped how many, and weights."""
    for name, selection in plan.selections.items():
        print(f"selected: {selection.describe(name)}")
    for name, weights in plan.weights.items():
        print(f"weighed: {weights.describe(name)}")


def _contents(run: Path) -> list[Path]:
    return [path for path in run.iterdir() if path.name != LOCK] if run.exists() else []


def _refuse_other_files(run: Path) -> None:
    """A folder that is not a run is never written to, nor deleted."""
    if _contents(run) and not (run / SETTINGS).is_file():
        raise FileExistsError(f"{run}: contains other files; give an empty or new folder")


def _make_room(run: Path, effective: Mapping[str, Any], overwrite: bool) -> int:
    """How many steps of this run are done."""
    from model.runs.run_state import first_step

    if overwrite:
        for path in _contents(run):
            remove_tree(path) if path.is_dir() else path.unlink()
    if not _contents(run):
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
    before, now = _EARLIER | _flat(old), _flat(new)
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
