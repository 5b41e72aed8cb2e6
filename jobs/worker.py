"""What a Ray Train worker runs. Imports little: Ray Train's controller loads this module too."""

import json
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from jobs.cli import quiet
from model.settings import TrainSettings
from pipelines.planned import PlannedView, sample_embeddings
from pipelines.sample import Modality
from pipelines.sidecars import KINDS, from_npy

VARIANCE_SAMPLES = 512


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
    settings = TrainSettings.model_validate(config["settings"])
    job = Job(
        settings=settings,
        deepspeed=config["deepspeed"],
        num_steps=config["num_steps"],
        alignment_variance=_variances(config["views"], settings.loss.padding_weight),
        init=Path(config["init"]) if config["init"] else None,
        history=config["history"],
        card=config["card"],
    )
    trainer = Trainer(job, rank)
    if rank.rank == 0:
        _write_manifest(trainer, Path(config["run"]))
    rows = map(_with_arrays, ray.train.get_dataset_shard("train").iter_rows())
    with (Path(config["run"]) / "log.jsonl").open("a") as log:
        trainer.run(rows, partial(_report, trainer, log if rank.rank == 0 else None, []))


def _with_arrays(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the hand-over with its embeddings as arrays, whatever they are stored in."""
    return row | {kind: from_npy(row[kind]) if row[kind] else None for kind in KINDS}


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


def _variances(views: list[PlannedView], padding_weight: float) -> dict[Modality, float]:
    """The variance of the caption embeddings by modality, measured on a part of them."""
    import torch

    from model.losses import mean_predictor_error

    result = {}
    for modality in Modality:
        if any(modality.value in view.sidecars for view in views):
            found = sample_embeddings(views, modality.value, VARIANCE_SAMPLES)
            tensors = ((torch.from_numpy(values), torch.tensor(lengths)) for values, lengths in found)
            result[modality] = mean_predictor_error(tensors, padding_weight)
    return result
