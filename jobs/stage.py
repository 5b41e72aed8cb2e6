"""Wires a training stage: prepared views and settings into a plan, the plan into Ray Train workers."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.cli import UsageError, existing_folder
from model.description import check_compatible, latest_checkpoint
from model.settings import TrainSettings
from pipelines.catalog import load_catalog
from pipelines.mixture import Mixture
from pipelines.planned import PlannedView, plan_view, sidecar_of
from pipelines.sample import Modality
from pipelines.shards import Manifest, list_datasets
from pipelines.sidecars import ENCODER

# What a training worker takes of a core where it has no GPU; the rest is for the tasks that read for it.
CPU_SHARE = 0.9


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """Everything a stage needs, checked: its views with their sidecars, the mixture, and what to tell the user."""

    settings: TrainSettings
    views: list[PlannedView]
    mixture: Mixture
    num_steps: int
    notes: list[str]
    untrained: list[str]

    def describe(self) -> str:
        """One line: how much of what."""
        names = ", ".join(f"{view.name} ({view.manifest.samples})" for view in self.views)
        return (
            f"{self.mixture.epoch_samples} samples an epoch of {names}; {self.num_steps} steps of "
            f"{self.settings.batch_size} in {self.settings.epochs} epochs"
        )


def plan_stage(settings: TrainSettings, shards: Path, init: Path | None) -> StagePlan:
    """Checks data, sidecars and the checkpoint against the settings before anything starts.

    Raises:
        UsageError: all mistakes, one line each.
    """
    mistakes: list[str] = []
    notes: list[str] = []
    views = []
    prepared = _views_of(list_datasets(shards))
    for name, weight in _chosen(settings, prepared, shards, mistakes, notes).items():
        dataset = prepared[name]
        try:
            views.append(plan_view(name, dataset.views[name], shards / dataset.dataset, weight, settings.sidecars))
        except (ValueError, FileNotFoundError) as error:
            mistakes.append(str(error))
    for planned in views:
        mistakes += _shape_mistakes(settings, planned)
    mistakes += _init_mistakes(settings, init)
    if mistakes:
        raise UsageError("\n".join(dict.fromkeys(mistakes)))
    if settings.stage == 3 and init is None:
        notes.append("no --init: stage 3 starts from untrained projections; give the run of stage 2")
    mixture = Mixture(
        counts=[view.manifest.samples for view in views],
        weights=[view.weight for view in views],
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        seed=settings.seed,
    )
    steps = min(mixture.num_steps, settings.max_steps or mixture.num_steps)
    return StagePlan(
        settings=settings,
        views=views,
        mixture=mixture,
        num_steps=steps,
        notes=notes,
        untrained=_untrained(settings),
    )


def train(plan: StagePlan, deepspeed: Mapping[str, Any], run: Path, init: Path | None, name: str) -> str:
    """Runs the workers to the end; returns the summary."""
    import ray.train
    import ray.train.torch
    from ray.train.v2.api.config import LoggingConfig

    from jobs.worker import work
    from pipelines.handover import PlannedDataConfig, step_dataset

    workers, use_gpu = _workers(plan.settings)
    started = time.monotonic()
    config = {
        "settings": plan.settings.model_dump(mode="json"),
        "deepspeed": dict(deepspeed),
        "num_steps": plan.num_steps,
        "views": plan.views,
        "init": str(init) if init else None,
        "run": str(run),
        "history": {"configuration": name, "data": {view.name: view.manifest.content for view in plan.views}},
        "card": _card(plan, workers, use_gpu),
    }
    trainer = ray.train.torch.TorchTrainer(
        work,
        train_loop_config=config,
        torch_config=ray.train.torch.TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers,
            use_gpu=use_gpu,
            resources_per_worker={"GPU": 1, "CPU": 1} if use_gpu else {"CPU": CPU_SHARE},
        ),
        run_config=ray.train.RunConfig(
            name=run.name, storage_path=str(run.parent), logging_config=LoggingConfig(log_level="WARNING")
        ),
        datasets={"train": step_dataset(0, plan.num_steps)},
        dataset_config=PlannedDataConfig(plan.mixture, plan.views),
    )
    trainer.fit()
    return _summary(run, plan.mixture.epoch_steps, workers, time.monotonic() - started)


def prepared_views(shards: str) -> list[str]:
    """The names of all views in a folder of shards; none where it cannot be read, which is told later."""
    try:
        return list(_views_of(list_datasets(existing_folder(shards))))
    except (ValueError, OSError):
        return []


def _views_of(datasets: Mapping[str, Manifest]) -> dict[str, Manifest]:
    """Each view with the manifest of its dataset; a user's own catalog was needed to prepare alone."""
    return {view: manifest for manifest in datasets.values() for view in manifest.views}


def _chosen(
    settings: TrainSettings, prepared: Mapping[str, Manifest], shards: Path, mistakes: list[str], notes: list[str]
) -> dict[str, float]:
    """The views to train on, with weights."""
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


def _shape_mistakes(settings: TrainSettings, view: PlannedView) -> list[str]:
    mistakes = []
    for kind in view.sidecars:
        manifest = sidecar_of(view, kind)
        if kind == ENCODER:
            expected = [settings.model.encoder.dim]
        elif Modality(kind) in settings.model.outputs:
            output = settings.model.outputs[Modality(kind)]
            expected = [output.num_queries, output.dim]
        else:
            mistakes.append(f"{view.name}: has {kind} outputs, but preset {settings.model.preset} makes none")
            continue
        if manifest.shape != expected:
            mistakes.append(
                f"{view.name}: {kind} embeddings by {manifest.encoder_name} are {_by(manifest.shape)}, preset "
                f"{settings.model.preset} takes {_by(expected)}; run jobs/embed.py --preset {settings.model.preset} "
                f"--modality {kind}, or train a preset that takes these"
            )
    return mistakes


def _init_mistakes(settings: TrainSettings, init: Path | None) -> list[str]:
    if init is None:
        return []
    try:
        check_compatible(settings.model, init)
    except ValueError as error:
        return [str(error)]
    return []


def _untrained(settings: TrainSettings) -> list[str]:
    """Only built-in parts can be untrained; real ones are named, not loaded, here."""
    from model.parts import is_untrained

    model = settings.model
    names = [model.llm.name, model.encoder.name, *(output.decoder for output in model.outputs.values())]
    return [name for name in names if is_untrained(name)]


def _workers(settings: TrainSettings) -> tuple[int, bool]:
    """How many workers: as set, else one a GPU, else one a core up to the batch."""
    import ray

    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    use_gpu = settings.use_gpu if settings.use_gpu is not None else gpus > 0
    if use_gpu and not gpus and not settings.workers:
        raise UsageError("workers: no GPU is up to count; say how many the cluster is to start, such as workers=4")
    count = settings.workers or (gpus if use_gpu else int(resources.get("CPU", 1)))
    return max(1, min(count, settings.batch_size)), use_gpu


def _card(plan: StagePlan, workers: int, use_gpu: bool) -> dict[str, Any]:
    return {
        "data": {view.name: f"{view.manifest.samples} samples, {view.manifest.content}" for view in plan.views},
        "hardware": f"{workers} {'GPU' if use_gpu else 'CPU'} worker(s)",
        "untrained": plan.untrained,
    }


def _summary(run: Path, epoch_steps: int, workers: int, seconds: float) -> str:
    """What the losses were in the first and the last epoch: single steps are too noisy to compare."""
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    first, last = rows[:epoch_steps], rows[-epoch_steps:]
    names = dict.fromkeys(name for row in first + last for name in row)
    figures = [
        f"  {name}: {_mean(first, name):.3f} -> {_mean(last, name):.3f}"
        for name in names
        if name.endswith(("loss", "alignment", "accuracy"))
    ]
    head = f"trained {len(rows)} steps on {workers} worker(s) in {seconds:.0f} s; mean of the first -> last epoch:"
    return "\n".join([head, *figures, f"checkpoint: {latest_checkpoint(run)}"])


def _mean(rows: list[dict[str, float]], name: str) -> float:
    values = [row[name] for row in rows if name in row]
    return sum(values) / len(values) if values else float("nan")


def _by(shape: list[int]) -> str:
    return "x".join(map(str, shape))
