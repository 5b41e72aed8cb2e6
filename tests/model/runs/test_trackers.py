"""The real libraries, offline: a database and files in the run's folder."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.runs.run_log import RunLog
from model.runs.trackers import TrackerName, check_tracker, flatten
from model.training.validation_replies import Sampled
from pipelines.sample import Audio, Decoded, Image, Modality, Video
from pipelines.storage.files import read_json_lines

SETTINGS = {"stage": 1, "optimizer": {"betas": [0.9, 0.95]}, "datasets": {f"set{number}": 1.0 for number in range(120)}}
PIXELS = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
MEDIA: dict[Modality, Decoded | None] = {
    Modality.IMAGE: Image(pixels=PIXELS),
    Modality.VIDEO: Video(frames=np.stack([PIXELS, PIXELS[::-1]]), fps=8.0),
    Modality.AUDIO: Audio(waveform=np.zeros((1, 80), np.float32), sample_rate=8000),
}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_PROJECT", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield
    if "mlflow" in sys.modules:
        sys.modules["mlflow"].set_tracking_uri(None)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables, which take seconds to make; tests copy the file."""
    import mlflow

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


def train(directory: Path, tracker: TrackerName, first_step: int, last_step: int) -> None:
    with RunLog(directory, first_step=first_step, tracker=tracker, name="stage-1", settings=SETTINGS) as log:
        for step in range(first_step + 1, last_step + 1):
            log.step(step, {"loss": 1 / step})
        log.validation(last_step, {"loss": 0.25})
        for modality, medium in [*MEDIA.items(), (Modality.IMAGE, None)]:
            texts = {"prompt": "a <b>", "expected": "Here.", "text": "Hm."}
            log.sample(last_step + (medium is None), Sampled(modality=modality, **texts, medium=medium))


def run_of(directory: Path) -> Any:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{directory}/mlflow/mlflow.db")
    return client, client.get_run(json.loads((directory / "tracker.json").read_text())["run"])


def test_mlflow_keeps_settings_figures_and_samples_in_the_runs_folder_and_goes_on_in_the_same_run(
    tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where MLflow would make a folder of its own
    directory = tmp_path / "run"
    shutil.copytree(database.parent, directory / "mlflow")
    train(directory, "mlflow", 0, 4)
    client, first = run_of(directory)
    train(directory, "mlflow", 3, 6)
    client, run = run_of(directory)
    assert run.info.run_id == first.info.run_id
    assert (run.info.run_name, run.info.status) == ("stage-1", "FINISHED")
    assert run.data.params["stage"] == "1"
    assert run.data.params["datasets.set119"] == "1.0"
    losses = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, "loss")}
    assert losses == {step: 1 / step for step in range(1, 7)}
    assert run.data.metrics["validation/loss"] == 0.25
    names = {
        Path(file.path).name
        for folder in client.list_artifacts(run.info.run_id, "samples")
        for file in client.list_artifacts(run.info.run_id, folder.path)
    }
    assert names == {path.name for path in (directory / "samples").iterdir()}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_mlflow_is_told_of_a_run_that_failed(tmp_path: Path, database: Path) -> None:
    shutil.copytree(database.parent, tmp_path / "mlflow")

    def fail() -> None:
        with RunLog(tmp_path, first_step=0, tracker="mlflow", name="stage-1", settings={}) as log:
            log.step(1, {"loss": 1.0})
            raise RuntimeError("diverged")

    with pytest.raises(RuntimeError, match="diverged"):
        fail()
    assert run_of(tmp_path)[1].info.status == "FAILED"


def test_wandb_keeps_figures_and_samples_and_goes_on_in_the_same_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path, "wandb", 0, 4)
    train(tmp_path, "wandb", 3, 6)
    assert "logging to the tracker failed" not in capsys.readouterr().out
    run = json.loads((tmp_path / "tracker.json").read_text())["run"]
    logs = sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    assert [path.name for path in logs] == [f"run-{run}.wandb"] * 2
    history = [row for path in logs for row in wandb_history(path)]
    losses = [(row["step"], row["loss"]) for row in history if "loss" in row]
    assert losses == [(step, 1 / step) for step in (1, 2, 3, 4, 4, 5, 6)]
    assert [row["validation/loss"] for row in history if "validation/loss" in row] == [0.25, 0.25]
    assert [row["step"] for row in history if "samples/audio/path" in row] == [4, 6]
    suffixes = {path.suffix for path in tmp_path.glob("wandb/*/files/media/**/*") if path.is_file()}
    assert suffixes == {".html", ".png", ".gif", ".wav"}


def wandb_history(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of an offline log: a header, then records in LevelDB's framing, each a protocol buffer."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, block, parts = path.read_bytes(), 7, 32768, b""
    while place + 7 <= len(data):
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if block - place % block < 7:
            place += block - place % block
        if kind in (1, 4):  # whole, or the last part
            record, parts = Record.FromString(parts), b""
            if record.HasField("history"):
                yield {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
                }


@pytest.mark.parametrize("tracker", ["mlflow", "wandb"])
def test_a_tracker_that_is_not_installed_is_told_in_one_line_with_what_to_install(
    tracker: TrackerName, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    monkeypatch.setitem(sys.modules, tracker, None)
    monkeypatch.delitem(sys.modules, tracker)
    with pytest.raises(ValueError, match=rf"^tracker: {tracker} is not installed; run pip install .*\[{tracker}\]'$"):
        check_tracker(tracker)
    with pytest.raises(ValueError, match="not installed"):
        RunLog(tmp_path, first_step=0, tracker=tracker, name="run", settings={})


def test_a_server_that_is_away_does_not_end_a_training(
    tmp_path: Path, database: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(database.parent, tmp_path / "mlflow")
    with RunLog(tmp_path, first_step=0, tracker="mlflow", name="run", settings={}) as log:
        (tmp_path / "mlflow" / "artifacts").write_text("")  # no folder for samples any more
        for step in (1, 2):
            log.step(step, {"loss": 1.0})
            log.sample(step, Sampled(modality=Modality.IMAGE, prompt="", expected="", text="", medium=None))
    assert [row["loss"] for row in read_json_lines(tmp_path / "log.jsonl")] == [1.0, 1.0]
    assert capsys.readouterr().out.count("note: logging to the tracker failed") == 1


def test_settings_are_flat_by_dotted_names() -> None:
    assert flatten({"a": 1, "b": {"c": {"d": [2]}, "e": None}, "f": {}}) == {"a": 1, "b.c.d": [2], "b.e": None}
