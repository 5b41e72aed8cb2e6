"""A worker killed, a run stopped, workers that come and go: the run ends as if nothing had happened."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from moto.server import ThreadedMotoServer
from safetensors.torch import load_file
from torch import Tensor
from upath import UPath

from model.checkpoints.description import latest_checkpoint
from model.runs.run_log import TIMES
from model.runs.run_state import TrainState
from pipelines.storage.files import read_json_lines
from tests.conftest import ROOT, Cluster
from tests.e2e.conftest import Way, stage_command

pytestmark = [pytest.mark.ray, pytest.mark.xdist_group("cluster"), pytest.mark.timeout(1500)]

STOPPED_BY = {1: signal.SIGINT, 2: signal.SIGTERM, 3: signal.SIGKILL}
SAVING = ["checkpoint_every=5", "validation.generate=false"]


def command(way: Way, stage: int, run: Path, *settings: str) -> list[str]:
    return [sys.executable, "jobs/train_stage.py", *stage_command(way.root, stage, run, *SAVING, *settings)]


def start(cluster: Cluster, arguments: list[str]) -> subprocess.Popen[str]:
    log = Path(arguments[arguments.index("--out") + 1]).with_suffix(".out").open("a")
    return subprocess.Popen(arguments, cwd=ROOT, env=cluster.driver_environment, stdout=log, stderr=log, text=True)


def run_to_end(cluster: Cluster, arguments: list[str]) -> None:
    process = start(cluster, arguments)
    assert process.wait(300) == 0, Path(arguments[arguments.index("--out") + 1]).with_suffix(".out").read_text()


def training_workers(cluster: Cluster) -> list[psutil.Process]:
    children = psutil.Process(cluster.head).children(recursive=True)
    return [child for child in children if "RayTrainWorker" in _title(child)]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def wait_for_step(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 200
    while steps_of(run) < step:
        assert process.poll() is None, run.with_suffix(".out").read_text()
        assert time.monotonic() < deadline, "the run did not get there"
        time.sleep(0.02)


def steps_of(run: Path) -> int:
    path = run / "log.jsonl"
    return len([row for row in read_json_lines(path) if "loss" in row]) if path.is_file() else 0


def outcome(run: Path) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """The trained tensors at the end, and the log without what a clock says."""
    last = latest_checkpoint(run)
    tensors = load_file(last / "model.safetensors")
    if (last / "adapter").is_dir():
        tensors |= load_file(last / "adapter" / "adapter_model.safetensors")
    rows = [{k: v for k, v in row.items() if not k.endswith(TIMES)} for row in read_json_lines(run / "log.jsonl")]
    return tensors, rows


def assert_same(one: Path, other: Path) -> None:
    (tensors, rows), (others, other_rows) = outcome(one), outcome(other)
    assert len([row for row in rows if "loss" in row]) >= 30
    assert rows == other_rows  # losses and consumed keys among them
    assert tensors.keys() == others.keys()
    assert all((tensors[name] == others[name]).all() for name in tensors)


@pytest.mark.parametrize("stage", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_killed_worker_and_a_stopped_run_leave_no_trace(
    cluster: Cluster, way: Way, tmp_path: Path, stage: int
) -> None:
    broken, dice = tmp_path / "broken", random.Random(stage)
    process = start(cluster, command(way, stage, broken))
    wait_for_step(broken, dice.randint(1, 14), process)
    dice.choice(training_workers(cluster)).send_signal(signal.SIGKILL)  # resumes by itself
    wait_for_step(broken, 16, process)
    kind = STOPPED_BY[stage]
    process.send_signal(kind)  # and the driver; the same command goes on
    code, printed = process.wait(60), broken.with_suffix(".out").read_text().splitlines()
    while training_workers(cluster):
        time.sleep(0.1)
    if kind != signal.SIGKILL:
        last = latest_checkpoint(broken)
        step = TrainState.read(last).step
        assert (code, step >= 16) == (128 + kind, True)
        of = len(way.steps(stage))
        assert printed[-1].startswith(f"error: stopped after step {step} of {of}; checkpoint {last}; the same command ")
        # Before it, the killed worker's peers say what they lost.
        since = next(place for place, line in enumerate(printed) if line.startswith(f"{kind.name}: "))
        assert [line for line in printed[since:] if "Traceback" in line or "***" in line] == []
    run_to_end(cluster, command(way, stage, broken))
    assert "goes on from step" in broken.with_suffix(".out").read_text()
    assert_same(way.run(stage), broken)


@pytest.mark.slow
def test_workers_may_come_and_go(cluster: Cluster, way: Way, tmp_path: Path) -> None:
    """2, then 1, then 2 workers: every sample once, and the loss of the uninterrupted run to 1e-5."""
    elastic = tmp_path / "elastic"
    for workers, until in ((2, 8), (1, 18), (2, None)):
        arguments = command(way, 3, elastic, f"workers={workers}")
        if until is None:
            run_to_end(cluster, arguments)
            continue
        process = start(cluster, arguments)
        wait_for_step(elastic, until, process)
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        while training_workers(cluster):
            time.sleep(0.1)
    (_, rows), (_, others) = outcome(way.run(3)), outcome(elastic)
    steps = [[row for row in part if "loss" in row] for part in (rows, others)]
    assert [row["samples"] for row in steps[0]] == [row["samples"] for row in steps[1]]
    losses = [[row["loss"] for row in part] for part in steps]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5, abs=1e-5)


@pytest.mark.slow
def test_a_run_may_lie_in_a_bucket_and_go_on_there(cluster: Cluster, way: Way) -> None:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
        address = {**keys, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}
        bucket = UPath("s3://runs", key="test", secret="test", endpoint_url=address["AWS_ENDPOINT_URL"])
        bucket.mkdir()
        environment = {name: value for name, value in cluster.environment.items() if "RAY" not in name} | address
        arguments = stage_command(way.root, 1, Path("run"), *SAVING)
        arguments[arguments.index("--out") + 1] = "s3://runs/one"
        printed = []
        for _ in range(2):
            command = [sys.executable, "jobs/train_stage.py", *arguments]
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr
            printed.append(done.stdout)
        names = {path.name for path in (bucket / "one").iterdir()}
        assert {"checkpoint-000025", "checkpoint-000030", "log.jsonl", "tensorboard", "settings.json"} <= names
        assert f"trained {len(way.steps(1))} steps" in printed[0]
        assert "finished already" in printed[1]
    finally:
        server.stop()


@pytest.mark.slow
def test_a_loss_that_runs_away_ends_the_run_with_its_samples_named(cluster: Cluster, way: Way, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(cluster, command(way, 1, run, "loss.stop_above=0.01"))
    assert process.wait(200) == 1
    last = run.with_suffix(".out").read_text().splitlines()[-1]
    assert last.startswith(f"error: {run}: step 11: the loss is ")
    assert "its samples: " in last
    assert "the run was saved before this step" in last
    assert TrainState.read(latest_checkpoint(run)).step == 10
