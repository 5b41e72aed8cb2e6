"""Experiment trackers, MLflow and Weights & Biases, behind one interface.

Server, account, project and experiment are set by their own environment variables (`MLFLOW_TRACKING_URI`, `WANDB_MODE`,
...); without a server MLflow writes to the run's folder.
"""

import html
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

from pipelines.storage.files import read_json, write_json

TrackerName = Literal["mlflow", "wandb"]
PROJECT = "nextgpt"
_STATE = "tracker.json"


class Tracker(Protocol):
    """A run at a tracker; `id` lets a resumed training continue it."""

    id: str

    def figures(self, step: int, figures: Mapping[str, float]) -> None:
        """Logs a step's figures, without waiting for a server."""

    def sample(self, step: int, tag: str, text: Path, medium: Path | None) -> None:
        """Logs a generated sample: a text file, and a file with an image, video or sound."""

    def close(self, failed: bool) -> None:
        """Flushes and closes the run."""


def check_tracker(tracker: TrackerName | None) -> None:
    """Raises ValueError, saying what to install, if the tracker is not installed."""
    if tracker is not None and find_spec(tracker) is None:
        raise ValueError(f"tracker: {tracker} is not installed; run pip install 'nextgpt-ray[{tracker}]'")


def open_tracker(tracker: TrackerName, directory: Path, name: str, settings: Mapping[str, Any]) -> Tracker:
    """Opens a tracker's run for a training with its log in a local `directory`, or resumes the one recorded there.

    Raises ValueError as `check_tracker` does.
    """
    check_tracker(tracker)
    state = directory / _STATE
    noted = read_json(state) if state.is_file() else {}
    run = noted["run"] if noted.get("tracker") == tracker else None
    opened = _TRACKERS[tracker](directory, run, name, flatten(settings))
    write_json(state, {"tracker": tracker, "run": opened.id})
    return opened


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested settings to dotted names: `model.lora.r`."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


class _MLflow:
    def __init__(self, directory: Path, run: str | None, name: str, settings: Mapping[str, Any]) -> None:
        import mlflow

        self._mlflow = mlflow
        if "MLFLOW_TRACKING_URI" not in os.environ:
            self._use_folder(directory.resolve() / "mlflow")
        self.id = mlflow.start_run(run_id=run, run_name=None if run else name).info.run_id
        if run is None:
            mlflow.log_params(dict(settings))

    def _use_folder(self, folder: Path) -> None:
        """Uses a database and files in a folder, for `mlflow ui --backend-store-uri sqlite:///...`."""
        folder.mkdir(exist_ok=True)
        self._mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        if self._mlflow.get_experiment_by_name(experiment) is None:
            self._mlflow.create_experiment(experiment, artifact_location=(folder / "artifacts").as_uri())
        self._mlflow.set_experiment(experiment)

    def figures(self, step: int, figures: Mapping[str, float]) -> None:
        self._mlflow.log_metrics(dict(figures), step=step, synchronous=False)

    def sample(self, step: int, tag: str, text: Path, medium: Path | None) -> None:
        for path in (text, medium):
            if path is not None:
                self._mlflow.log_artifact(str(path), tag)

    def close(self, failed: bool) -> None:
        self._mlflow.flush_async_logging()
        self._mlflow.end_run("FAILED" if failed else "FINISHED")


class _WandB:
    def __init__(self, directory: Path, run: str | None, name: str, settings: Mapping[str, Any]) -> None:
        import wandb

        self._wandb = wandb
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=run,
            name=name,
            dir=directory,
            config=dict(settings),
            resume="allow" if run else None,
            settings=wandb.Settings(console="off"),
        )
        # W&B's own step only increases: it would drop steps that a resumed training repeats.
        self._run.define_metric("*", step_metric="step")
        self.id = self._run.id

    def figures(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log({**figures, "step": step})

    def sample(self, step: int, tag: str, text: Path, medium: Path | None) -> None:
        written = html.escape(text.read_text(encoding="utf-8"))
        logged = {f"{tag}_text": self._wandb.Html(f"<pre style='white-space: pre-wrap'>{written}</pre>", inject=False)}
        if medium is not None:
            kind = {".png": self._wandb.Image, ".gif": self._wandb.Video, ".wav": self._wandb.Audio}[medium.suffix]
            logged[tag] = kind(str(medium))
        self._run.log({**logged, "step": step})

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


_TRACKERS: dict[TrackerName, type[_MLflow] | type[_WandB]] = {"mlflow": _MLflow, "wandb": _WandB}
