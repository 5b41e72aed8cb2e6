"""A training stage: settings and prepared views become a plan, the plan runs on Ray Train workers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jobs.common.cli import Failures, UsageError, existing_folder
from jobs.common.encoders import feature_kinds
from jobs.training import preflight
from jobs.training.by_columns import select_samples, weigh_samples
from jobs.training.workers import Workers
from model.checkpoints.description import latest_checkpoint
from model.parts.sources import LLM, decoder_key, find_parts
from model.runs.run_state import best_checkpoint, first_step
from model.training.train_settings import TrainSettings
from pipelines.curate.selection import Selection
from pipelines.curate.weights import SampleWeights
from pipelines.handover.mixture import HeldOutPlan, Mixture
from pipelines.handover.stage_samples import PlannedView, plan_view
from pipelines.sources.catalog import load_catalog
from pipelines.storage.files import arrow_filesystem, is_local, read_json, read_json_lines
from pipelines.storage.new_captions import NewCaptions
from pipelines.storage.shards import Manifest, list_datasets

PADDING_STEPS = 1000  # enough to estimate the share of padding


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """A stage's checked settings and views, and notes for the user."""

    settings: TrainSettings
    views: list[PlannedView]
    notes: list[str]
    untrained: list[str]
    selections: dict[str, Selection] = field(default_factory=dict)  # of the views with a condition
    weights: dict[str, SampleWeights] = field(default_factory=dict)  # of the views weighed by a column

    def selected(self, view: PlannedView, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_] | None:
        """Which examples of a view are selected, by their numbers; None where all are."""
        selection = self.selections.get(view.name)
        return None if selection is None else selection.selected[numbers // view.manifest.most_captions]

    def weighed(self, view: PlannedView, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.float64] | None:
        """The weights of examples of a view, by their numbers; None where no column tells them."""
        weights = self.weights.get(view.name)
        return None if weights is None else weights.values[numbers // view.manifest.most_captions]

    @property
    def accounts(self) -> dict[str, dict[str, Any]]:
        """What columns say of each view, for the files of the run."""
        found = {name: one.to_json() for name, one in self.selections.items()}
        return found | {name: found.get(name, {}) | {"weight": one.to_json()} for name, one in self.weights.items()}

    @property
    def identities(self) -> dict[str, dict[str, str]]:
        """Hashes of what columns say, by which a run that goes on is the same; nothing where nobody asked them."""
        captions = {view.name: view.captions for view in self.views if view.captions}
        asked: dict[str, Mapping[str, Selection | SampleWeights | NewCaptions]]
        asked = {"selected": self.selections, "weighed": self.weights, "worded": captions}
        return {name: {view: one.identity for view, one in found.items()} for name, found in asked.items() if found}


@dataclass(frozen=True, kw_only=True)
class Order:
    """Which samples are used at which step, and which are held out."""

    mixture: Mixture
    held_out: HeldOutPlan
    notes: list[str]

    @property
    def _num_held_out(self) -> int:
        steps = range(self.held_out.num_steps)
        return sum(len(batch) for step in steps for batch in self.held_out.micro_batches(step))

    def describe(self, plan: StagePlan) -> str:
        """The data and the number of steps in one line."""
        names = ", ".join(f"{view.name} ({view.manifest.samples})" for view in plan.views)
        steps, epochs = self.mixture.num_steps, self.mixture.num_steps / self.mixture.epoch_steps
        padding = 100 * self.mixture.padding(PADDING_STEPS)
        return (
            f"{self.mixture.epoch_samples} samples an epoch of {names}; {steps} steps of {plan.settings.batch_size} "
            f"in {epochs:.3g} epochs, {padding:.1f} % padding; {self._num_held_out} held out"
        )


def plan_stage(settings: TrainSettings, shards: Path, run: Path, init: Path | None) -> StagePlan:
    """Checks data, sidecars, the checkpoint and this machine against the settings before anything starts.

    The settings of the plan name the model's parts where they were located.

    Raises:
        UsageError: all mistakes, one line each.
    """
    model, mistakes = find_parts(settings.model, [LLM, *map(decoder_key, settings.loss.denoised)])
    settings = settings.model_copy(update={"model": model})
    notes: list[str] = []
    views = []
    denoised = settings.loss.denoised
    prepared = _views_of(list_datasets(shards))
    for name, weight in _chosen(settings, prepared, shards, mistakes, notes).items():
        manifest = prepared[name]
        try:
            views.append(
                plan_view(
                    name,
                    manifest.views[name],
                    shards / manifest.dataset,
                    weight,
                    settings.sidecars,
                    denoised,
                    feature_kinds(settings.model),
                    settings.captions,
                )
            )
        except (ValueError, FileNotFoundError) as error:
            mistakes.append(str(error))
    selections = select_samples(settings, views, mistakes)
    weights = weigh_samples(settings, views, selections, mistakes)
    mistakes += preflight.mistakes(settings, views, run, init, notes)
    if mistakes:
        raise UsageError("\n".join(dict.fromkeys(mistakes)))
    if settings.stage == 3 and init is None:
        notes.append("no --init: stage 3 starts from untrained projections; give the run of stage 2")
    return StagePlan(
        settings=settings,
        views=views,
        notes=notes,
        untrained=_untrained(settings),
        selections=selections,
        weights=weights,
    )


def order_samples(plan: StagePlan) -> Order:
    """Measures each sample once, on Ray, and plans the order; measurements of earlier runs are reused.

    Raises:
        UsageError: no samples are left to train on.
    """
    from jobs.training.worker import measure_id, measurer
    from pipelines.handover.survey import survey_views

    settings = plan.settings
    surveys = survey_views(plan.views, partial(measurer, settings.model), measure_id(settings.model))
    notes = []
    for view, survey in zip(plan.views, surveys, strict=True):
        if survey.left_out:
            (key, reason), *more = survey.left_out
            notes.append(f"{view.name}: {len(survey.left_out)} samples left out; {key}: {reason}" + " ..." * bool(more))
        if survey.truncated:
            notes.append(
                f"{view.name}: {survey.truncated} of {len(survey.lengths)} dialogues are cut at "
                f"{settings.model.max_length} tokens"
            )
    fraction = settings.validation.fraction
    splits = [
        survey.split(view.weight, fraction, plan.selected(view, survey.numbers), plan.weighed(view, survey.numbers))
        for view, survey in zip(plan.views, surveys, strict=True)
    ]
    sizes = {"batch_size": settings.batch_size, "micro_batch_size": settings.micro_batch_size}
    try:
        mixture = Mixture(
            [training for training, _ in splits],
            **sizes,
            window=settings.length_window,
            seed=settings.seed,
            epochs=settings.epochs,
            max_steps=settings.max_steps,
        )
    except ValueError as error:
        raise UsageError(str(error)) from None
    held_out = HeldOutPlan([held for _, held in splits], **sizes, limit=settings.validation.samples)
    return Order(mixture=mixture, held_out=held_out, notes=notes)


def train(
    plan: StagePlan,
    order: Order,
    workers: Workers,
    deepspeed: Mapping[str, Any],
    run: Path,
    init: Path | None,
    name: str,
) -> str:
    """Runs the workers to the end, from where the run stopped; returns the summary.

    Raises:
        Failures: the loss diverged.
        Interrupted: a signal came; a checkpoint was written, if there was time.
    """
    import ray.train
    import ray.train.torch
    from ray.train.v2.api.config import LoggingConfig

    from jobs.training.stopping import REQUEST, until_stopped
    from jobs.training.worker import STOPPED, work
    from pipelines.handover.handover import PlannedDataConfig

    settings, num_steps, held_out_steps = plan.settings, order.mixture.num_steps, order.held_out.num_steps
    config = {
        "settings": settings.model_dump(mode="json"),
        "deepspeed": dict(deepspeed),
        "num_steps": num_steps,
        "held_out_steps": held_out_steps,
        "views": plan.views,
        "init": init,
        "run": run,
        "threads": workers.threads,
        "history": {"configuration": name, "data": _data(plan)},
        "card": {"untrained": plan.untrained},
        "tracked": {"name": run.name, "settings": settings.model_dump(mode="json")},
    }
    # Ray would resume from its own record of an earlier start; the run itself says where to resume.
    for file in ("checkpoint_manager_snapshot.json", STOPPED, REQUEST):
        (run / file).unlink(missing_ok=True)
    storage: dict[str, Any] = {"storage_path": str(run.parent)}
    if not is_local(run):
        storage = {"storage_path": run.parent.path, "storage_filesystem": arrow_filesystem(run)}  # type: ignore[attr-defined]
    trainer = ray.train.torch.TorchTrainer(
        work,
        train_loop_config=config,
        torch_config=ray.train.torch.TorchConfig(backend="nccl" if workers.use_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.count,
            use_gpu=workers.use_gpu,
            resources_per_worker=workers.resources,
        ),
        run_config=ray.train.RunConfig(
            name=run.name,
            **storage,
            failure_config=ray.train.FailureConfig(max_failures=settings.max_failures),
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
        datasets={
            # Called each time workers start, so that a resumed run does not read samples it has consumed.
            "train": lambda: _steps(min(first_step(run), num_steps), num_steps),
            "validation": lambda: _steps(0, held_out_steps),
        },
        dataset_config=PlannedDataConfig({"train": order.mixture, "validation": order.held_out}, plan.views),
    )
    result = until_stopped(trainer.fit, run)
    if (run / STOPPED).is_file():
        raise Failures(read_json(run / STOPPED)["reason"])
    return summary(run, order.mixture.epoch_steps, result.metrics or {})


def _steps(first: int, last: int) -> Any:
    """Runs in Ray Train's controller, where Ray Data still has its default settings."""
    from jobs.common.cli import configure_ray_data
    from pipelines.handover.handover import step_dataset

    configure_ray_data()
    return step_dataset(first, last)


def summary(run: Path, epoch_steps: int, metrics: Mapping[str, Any]) -> str:
    """The mean losses of the first and the last epoch, since single steps are too noisy to compare."""
    rows = [row for row in read_json_lines(run / "log.jsonl") if "loss" in row]
    first, last = rows[:epoch_steps], rows[-epoch_steps:]
    figures = [
        f"  {name}: {_mean(first, name):.3f} -> {_mean(last, name):.3f}"
        for name in dict.fromkeys(name for row in first + last for name in row)
        if name.endswith(("loss", "alignment", "accuracy", "well_formed"))
    ]
    held_out = [f"  held out: {name} {value:.3f}" for name, value in metrics.items() if name == "validation/loss"]
    lines = [f"trained {len(rows)} steps; mean of the first -> last epoch:", *figures, *held_out]
    checkpoint, best = latest_checkpoint(run), best_checkpoint(run)
    lines.append(f"checkpoint: {checkpoint}")
    if best is not None and best != checkpoint:
        lines.append(f"best by held-out loss: {best}")
    return "\n".join(lines)


def prepared_views(shards: str) -> list[str]:
    """The names of all views in a folder of shards; none where it cannot be read, which is reported later."""
    try:
        return list(_views_of(list_datasets(existing_folder(shards))))
    except (ValueError, OSError):
        return []


def _views_of(datasets: Mapping[str, Manifest]) -> dict[str, Manifest]:
    """Each view with the manifest of its dataset; a user's own catalog is needed only to prepare."""
    return {view: manifest for manifest in datasets.values() for view in manifest.views}


def _chosen(
    settings: TrainSettings, prepared: Mapping[str, Manifest], shards: Path, mistakes: list[str], notes: list[str]
) -> dict[str, float]:
    """The views to train on, and their weights."""
    if settings.datasets == "auto":
        in_catalog = [name for name, (_, view) in load_catalog().views.items() if view.stage == settings.stage]
        of_stage = [name for name, manifest in prepared.items() if manifest.stages[name] == settings.stage]
        order = [
            *(name for name in in_catalog if name in of_stage),
            *(name for name in sorted(of_stage) if name not in in_catalog),
        ]
        chosen = {name: 1.0 for name in order if prepared[name].samples}
        left = [name for name in in_catalog if name not in chosen]
        if not chosen:
            mistakes.append(f"{shards}: holds no dataset of stage {settings.stage}; it takes {', '.join(in_catalog)}")
        elif left:
            notes.append(f"not prepared, so left out: {', '.join(left)}")
        return chosen
    chosen = dict(settings.datasets)
    for name in list(chosen):
        if name not in prepared:
            mistakes.append(f"datasets: {name} is not prepared in {shards}; run jobs/prepare.py --datasets {name}")
            del chosen[name]
    return chosen


def _untrained(settings: TrainSettings) -> list[str]:
    """The built-in parts with random weights; nothing is loaded."""
    from model.parts.builtin import is_untrained

    model = settings.model
    names = [model.llm.name, *model.encoder.names, *(output.decoder for output in model.outputs.values())]
    return [name for name in names if is_untrained(name)]


def _data(plan: StagePlan) -> dict[str, Any]:
    return {view.name: {"samples": view.manifest.samples, "manifest": view.manifest.content} for view in plan.views}


def _mean(rows: Sequence[Mapping[str, float]], name: str) -> float:
    values = [row[name] for row in rows if name in row]
    return sum(values) / len(values) if values else float("nan")
