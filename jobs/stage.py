"""Wires a training stage: prepared views and settings into a plan, the plan into Ray Train workers."""

import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jobs.cli import UsageError, quiet
from model.checkpoint import check_compatible, latest_checkpoint
from model.settings import TrainSettings
from pipelines.catalog import load_catalog
from pipelines.mixture import Mixture
from pipelines.planned import PlannedView, plan_view, sample_embeddings, sidecar_of
from pipelines.sample import Modality
from pipelines.shards import list_datasets
from pipelines.sidecars import ENCODER

VARIANCE_SAMPLES = 512
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
    for name, weight in _chosen(settings, shards, mistakes, notes).items():
        dataset, view = load_catalog().views[name]
        try:
            views.append(plan_view(name, view.kind, shards / dataset, weight, settings.sidecars))
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

    from pipelines.handover import PlannedDataConfig, step_dataset

    workers, use_gpu = _workers(plan.settings)
    started = time.monotonic()
    config = {
        "settings": plan.settings.model_dump(mode="json"),
        "deepspeed": dict(deepspeed),
        "num_steps": plan.num_steps,
        "alignment_variance": _variances(plan),
        "init": str(init) if init else None,
        "run": str(run),
        "history": {"configuration": name, "data": {view.name: view.manifest.fingerprint for view in plan.views}},
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


def work(config: dict[str, Any]) -> None:
    """What each Ray Train worker runs: its share of every step, rank 0 writing the log and the checkpoints."""
    import ray.train

    from model.devices import best_device

    quiet()
    best_device()
    from model.training import Job, Rank, Trainer

    context = ray.train.get_context()
    rank = Rank(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        device=str(ray.train.torch.get_device()),
    )
    job = Job(
        settings=TrainSettings.model_validate(config["settings"]),
        deepspeed=config["deepspeed"],
        num_steps=config["num_steps"],
        alignment_variance={Modality(name): value for name, value in config["alignment_variance"].items()},
        init=Path(config["init"]) if config["init"] else None,
        history=config["history"],
        card=config["card"],
    )
    trainer = Trainer(job, rank)
    if rank.rank == 0:
        _write_manifest(trainer, Path(config["run"]))
    rows = ray.train.get_dataset_shard("train").iter_rows()
    with (Path(config["run"]) / "log.jsonl").open("a") as log:
        trainer.run(rows, partial(_report, trainer, log if rank.rank == 0 else None, []))


def _report(trainer: Any, log: Any, times: list[float], figures: dict[str, float], due: bool) -> None:
    """Logs a step and, where it is due, saves a checkpoint; `times` gathers when steps ended."""
    import ray.train

    settings, steps = trainer.job.settings, trainer.job.num_steps
    step = int(figures["step"])
    times.append(time.monotonic())
    if log is not None:
        log.write(json.dumps(figures) + "\n")
        if step == 1 or step % settings.log_every == 0 or step == steps:
            log.flush()
            parts = [f"{name} {figures[name]:.3f}" for name in figures if name.endswith(("loss", "alignment"))]
            # The first step waits for the readers to start and says nothing of the others.
            left = (steps - step) * (times[-1] - times[0]) / max(1, len(times) - 1)
            estimate = f"about {left:.0f} s left" if step > 1 else "estimating"
            print(f"stage {settings.stage} step {step}/{steps}: {', '.join(parts)} ({estimate})", flush=True)
    if not due:
        return
    if log is None:
        ray.train.report(figures)
        return
    name = f"checkpoint-{step:06d}"
    with tempfile.TemporaryDirectory() as folder:
        trainer.save(Path(folder), figures)
        ray.train.report(figures, ray.train.Checkpoint.from_directory(folder), checkpoint_dir_name=name)


def _write_manifest(trainer: Any, run: Path) -> None:
    """What trains, by name, shape and count, printed and written beside the results."""
    parameters = dict(trainer.model.named_parameters())
    rows = [
        {"name": name, "shape": list(parameters[name].shape), "count": parameters[name].numel()}
        for name in trainer.manifest
    ]
    (run / "trainable.json").write_text(json.dumps(rows, indent=1) + "\n")
    total = sum(row["count"] for row in rows)
    groups = sorted({row["name"].split(".")[0] for row in rows})
    print(
        f"trains {total:,} of {sum(p.numel() for p in parameters.values()):,} weights: {', '.join(groups)}", flush=True
    )


def _chosen(settings: TrainSettings, shards: Path, mistakes: list[str], notes: list[str]) -> dict[str, float]:
    """The views to train on, with weights."""
    catalog, prepared = load_catalog(), list_datasets(shards)
    if settings.datasets == "auto":
        of_stage = {name: dataset for name, (dataset, view) in catalog.views.items() if view.stage == settings.stage}
        chosen = {name: 1.0 for name, dataset in of_stage.items() if dataset in prepared and prepared[dataset].samples}
        left = [name for name in of_stage if name not in chosen]
        if not chosen:
            mistakes.append(f"{shards}: holds no dataset of stage {settings.stage}; it takes {', '.join(of_stage)}")
        elif left:
            notes.append(f"not prepared, so left out: {', '.join(left)}")
        return chosen
    unknown = [name for name in settings.datasets if name not in catalog.views]
    if unknown:
        mistakes.append(f"datasets: {', '.join(unknown)} not in the catalog; it has {', '.join(catalog.views)}")
    chosen = {name: weight for name, weight in settings.datasets.items() if name not in unknown}
    for name in list(chosen):
        if catalog.views[name][0] not in prepared:
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
                f"{settings.model.preset} takes {_by(expected)}; run jobs/embed.py --preset {settings.model.preset}"
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


def _variances(plan: StagePlan) -> dict[str, float]:
    """The variance of the caption embeddings by modality, measured on a part of them."""
    import torch

    from model.losses import mean_predictor_error

    result = {}
    for modality in Modality:
        if any(modality.value in view.sidecars for view in plan.views):
            found = sample_embeddings(plan.views, modality.value, VARIANCE_SAMPLES)
            tensors = ((torch.from_numpy(values), torch.tensor(lengths)) for values, lengths in found)
            result[modality.value] = mean_predictor_error(tensors, plan.settings.loss.padding_weight)
    return result


def _card(plan: StagePlan, workers: int, use_gpu: bool) -> dict[str, Any]:
    return {
        "data": {view.name: f"{view.manifest.samples} samples, {view.manifest.fingerprint}" for view in plan.views},
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
