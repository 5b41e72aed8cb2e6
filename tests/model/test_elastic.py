"""The same run at other numbers of workers, on real processes: torchrun, gloo, DeepSpeed."""

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
from trainer_process import NUM_STEPS, work

from model.runs.run_log import TIMES
from model.runs.run_state import TrainState, finished, first_step
from pipelines.storage.files import read_json_lines
from tests.benchmarks import free_port

EVERY = "checkpoint_every=3"


# Processes begin as copies of one that has loaded torch and DeepSpeed, which takes longer than what they then do.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["deepspeed", "model.training.trainer", "model.runs.run_log"])


def launch(run: Path, workers: int, *settings: str, until: int = NUM_STEPS) -> None:
    """Starts the run's stage 3 with so many workers, and waits for their end."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(workers)}
    arguments = (str(run), 3, until, EVERY, *settings)
    started = [
        PROCESSES.Process(target=work, args=(shared | {"RANK": str(rank), "LOCAL_RANK": "0"}, *arguments))
        for rank in range(workers)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DS_ACCELERATOR", "cpu")  # read when DeepSpeed is loaded
        for process in started:
            process.start()
    for process in started:
        process.join(300)
    codes = [process.exitcode for process in started]
    assert codes == [0] * workers if until == NUM_STEPS else 9 in codes, f"see {run}-*.out"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two workers from the beginning to the end."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    launch(run, 2, "zero=2")
    return run


def rows_of(run: Path) -> list[dict[str, Any]]:
    """The log without what a clock says."""
    return [{k: v for k, v in row.items() if not k.endswith(TIMES)} for row in read_json_lines(run / "log.jsonl")]


@pytest.mark.slow  # tests/e2e/test_resume.py does it with Ray
def test_a_run_of_two_workers_goes_on_bit_for_bit(whole: Path, tmp_path: Path) -> None:
    launch(tmp_path, 2, "zero=2", until=4)
    assert first_step(tmp_path) == 3
    launch(tmp_path, 2, "zero=2")
    assert rows_of(tmp_path) == rows_of(whole)
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        one, other = (finished(run)[-1] / name for run in (whole, tmp_path))
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("zero", [2, pytest.param(1, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_workers_that_come_and_go_consume_every_sample_once_and_follow_the_loss(
    whole: Path, zero: int, tmp_path: Path
) -> None:
    for workers, until in ((2, 4), (1, 7), (2, NUM_STEPS)):
        launch(tmp_path, workers, f"zero={zero}", until=until)
    assert [TrainState.read(folder).world_size for folder in finished(tmp_path)] == [1, 2]
    expected, found = rows_of(whole), rows_of(tmp_path)
    assert [row["samples"] for row in found] == [row["samples"] for row in expected]
    assert len({key for row in found for key in row["samples"]}) == 8 * NUM_STEPS
    for name in ("loss", "token_loss", "image_alignment"):
        values, wanted = ([row[name] for row in part] for part in (found, expected))
        assert values == pytest.approx(wanted, rel=1e-5)
