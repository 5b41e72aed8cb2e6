"""What a Ray Train worker runs. Few imports at the top: Ray Train's controller loads this module too."""

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from jobs.common.cli import describe, quiet, root_cause
from jobs.training.stopping import stop_requests
from model.parts.config import ModelConfig
from model.runs.run_state import TrainState
from model.training.train_settings import TrainSettings
from pipelines.handover.stage_samples import PlannedView, sample_embeddings
from pipelines.sample import Modality, Sample
from pipelines.storage.files import arrow_filesystem, is_local, write_json
from pipelines.storage.sidecars import ROW_KINDS, from_npy

VARIANCE_SAMPLES = 512
STOPPED = "stopped.json"  # in a run that a retry cannot help: the loss diverged, or memory ran out
# Errors that a retry would only repeat, unlike a lost connection or worker.
_LASTING = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    NotImplementedError,
    ImportError,
    FileNotFoundError,
    NotADirectoryError,
    PermissionError,
)
LOGS = ("log.jsonl", "tensorboard", "samples", "mlflow", "wandb", "tracker.json")


def work(config: dict[str, Any]) -> None:
    """Entry point of each worker; an error that would recur is recorded in the run and not retried."""
    import torch

    run: Path = config["run"]
    if (run / STOPPED).is_file():  # Ray restarts all workers when one fails
        return
    try:
        _work(config)
    except (*_LASTING, torch.OutOfMemoryError) as error:
        cause = root_cause(error)
        write_json(run / STOPPED, {"reason": describe(cause)})
        if isinstance(cause, ValueError | OSError):  # the driver prints it in one line; Ray would add a traceback
            quiet(logging.CRITICAL)
        raise


def _work(config: dict[str, Any]) -> None:
    """This worker's share of every step; rank 0 writes the log."""
    import ray.train
    import torch

    from model.parts.devices import best_device

    quiet()
    if best_device() == "cpu":
        torch.set_num_threads(config["threads"])
    from model.runs.run_log import RunLog
    from model.training.divergence import Diverged
    from model.training.engine import Rank
    from model.training.trainer import Job, Trainer

    context = ray.train.get_context()
    rank = Rank(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        device=str(ray.train.torch.get_device()),
    )
    settings = TrainSettings.model_validate(config["settings"])
    run: Path = config["run"]
    with ExitStack() as stack:
        logs = run if is_local(run) else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sync = partial(_copy_logs, logs, run) if logs != run else lambda: None
        job = Job(
            settings=settings,
            deepspeed=config["deepspeed"],
            num_steps=config["num_steps"],
            held_out_steps=config["held_out_steps"],
            alignment_variance=_variances(config["views"], settings.loss.padding_weight),
            caption_scale=_scales(config["views"], settings.model),
            run=run,
            init=config["init"],
            history=config["history"] | {"hardware": _hardware(rank)},
            card=config["card"],
        )
        report = partial(_report, sync if rank.rank == 0 else lambda: None)
        trainer = Trainer(job, rank, report, stop_requests(run))
        log = None
        if rank.rank == 0:
            _write_manifest(trainer, run)
            if logs != run:
                _copy_logs(run, logs)
            log = RunLog(logs, first_step=trainer.first_step, tracker=settings.tracker, **config["tracked"])
            stack.callback(sync)
            stack.enter_context(log)
        held_out = _rows("validation") if config["held_out_steps"] else ()
        try:
            trainer.run(_rows("train"), held_out, log)
        except Diverged as error:
            # A retry would diverge again: the run ends, and the driver reports why.
            if log is not None:
                log.close(failed=True)
                write_json(run / STOPPED, {"step": error.step, "reason": f"{run}: {error}"})


def _rows(dataset: str) -> Iterator[dict[str, Any]]:
    """The rows of the handover with their embeddings as arrays, whatever the storage format."""
    import ray.train

    return map(_with_arrays, ray.train.get_dataset_shard(dataset).iter_rows())


def _with_arrays(row: dict[str, Any]) -> dict[str, Any]:
    return row | {kind: from_npy(row[kind]) if row[kind] else None for kind in ROW_KINDS}


def _report(sync: Callable[[], None], folder: Path, state: TrainState) -> None:
    """Reports a checkpoint that is already in its place to Ray; every rank must."""
    import ray.train

    sync()
    if is_local(folder):
        checkpoint = ray.train.Checkpoint(str(folder))
    else:
        checkpoint = ray.train.Checkpoint(folder.path, filesystem=arrow_filesystem(folder))  # type: ignore[attr-defined]
    metrics = {**state.metrics, **{f"validation/{name}": value for name, value in state.validation.items()}}
    ray.train.report(
        metrics,
        checkpoint,
        checkpoint_dir_name=folder.name,
        checkpoint_upload_mode=ray.train.CheckpointUploadMode.NO_UPLOAD,
    )


def _copy_logs(source: Path, target: Path) -> None:
    """Copies the log's files between two folders, one of which is in a bucket."""
    for name in LOGS:
        path = source / name
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        for file in files:
            place = target / file.relative_to(source).as_posix()
            place.parent.mkdir(parents=True, exist_ok=True)
            with file.open("rb") as read, place.open("wb") as write:
                shutil.copyfileobj(read, write)


def _write_manifest(trainer: Any, run: Path) -> None:
    """Prints what trains by name, shape and count, and writes it into the run."""
    from jobs.training.trainable import format_manifest, num_weights, trainable_table

    rows = trainable_table(trainer.model, trainer.manifest)
    write_json(run / "trainable.json", rows)
    print(format_manifest(rows, num_weights(trainer.model)), flush=True)


def _hardware(rank: Any) -> str:
    """For example "2 x NVIDIA H200"."""
    import torch

    if rank.device.startswith("cuda"):
        return f"{rank.world_size} x {torch.cuda.get_device_name(rank.device)}"
    return f"{rank.world_size} CPU worker(s) of {torch.get_num_threads()} thread(s)"


def measurer(config: ModelConfig) -> Callable[[Sample], tuple[int, int]]:
    """A function that counts the tokens of a sample: (used, before truncation to `max_length`)."""
    from model.core.chat_template import chat_template
    from model.core.dialogue import dialogue_lengths
    from model.core.tokenizer import load_tokenizer, load_vocabulary

    tokenizer, vocabulary = load_tokenizer(config), load_vocabulary(config)
    template = chat_template(config.llm.template, tokenizer, config.llm.system)

    def measure(sample: Sample) -> tuple[int, int]:
        tokens = config.input_projection.num_input_tokens
        system, turns = template.without_system(sample.turns, sample.system)
        return dialogue_lengths(
            turns, tokenizer, vocabulary, tokens, config.max_length, template=template, system=system
        )

    return measure


def measure_id(config: ModelConfig) -> str:
    """An id that changes whenever the token counts of samples may change."""
    parts: Mapping[str, Any] = {
        "llm": config.llm.name,
        "template": config.llm.template,
        "groups": {m.value: n for m, n in config.signal_groups.items()},
        "tokens": config.input_projection.num_input_tokens,
        "max_length": config.max_length,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def _variances(views: list[PlannedView], padding_weight: float) -> dict[Modality, float]:
    """The variance of the caption embeddings per modality, estimated on a part of them."""
    from model.core.losses import mean_predictor_error

    return {modality: mean_predictor_error(_captions(views, modality), padding_weight) for modality in _given(views)}


def _scales(views: list[PlannedView], config: ModelConfig) -> dict[Modality, float]:
    """The root mean square of the caption embeddings of the modalities that have a connector, on the same part."""
    from model.core.losses import caption_scale

    connected = [modality for modality in _given(views) if config.outputs[modality].kind == "connector"]
    return {modality: caption_scale(_captions(views, modality)) for modality in connected}


def _given(views: list[PlannedView]) -> list[Modality]:
    return [modality for modality in Modality if any(modality.value in view.sidecars for view in views)]


def _captions(views: list[PlannedView], modality: Modality) -> Iterator[tuple[Any, Any]]:
    import torch

    for values, lengths in sample_embeddings(views, modality.value, VARIANCE_SAMPLES):
        yield torch.from_numpy(values), torch.tensor(lengths)
