"""Prepare and embed across three nodes, of which one ends in the middle: the same files as from one machine."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

import jobs.embed
import jobs.prepare
from pipelines.world.dataset import write_world
from tests.conftest import ROOT, Cluster, Here, raylet_of, running_cluster
from tests.e2e.test_crash import content

pytestmark = pytest.mark.ray
CPU_NODE = ("--num-cpus=1",)
# Not a device, but what Ray schedules by: the encoders' actor runs here, and on no other node.
GPU_NODE = ("--num-cpus=1", "--num-gpus=1")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Captions and media of the small world."""
    root = tmp_path_factory.mktemp("data")
    write_world(root, seed=0, count=60)
    return root


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """A head that runs no tasks, as in cluster/aws.yaml; nodes come and go with the tests."""
    with running_cluster(num_cpus=0) as cluster:
        yield cluster


def prepare(data: Path, shards: Path) -> list[str]:
    return [
        "jobs/prepare.py",
        "--data",
        str(data),
        "--out",
        str(shards),
        "--samples-per-shard",
        "5",
        "--datasets",
        "cc3m",
    ]


def embed(shards: Path) -> list[str]:
    # On a GPU the default is bfloat16, on a CPU float32.
    options = ["--preset", "tiny", "--modality", "encoder", "--datasets", "cc3m", "--precision", "float32"]
    return ["jobs/embed.py", "--shards", str(shards), *options]


def run_while_a_node_ends(
    nodes: Cluster,
    command: Sequence[str],
    node: subprocess.Popen[bytes],
    at_work: Callable[[], bool],
    new: Sequence[str],
) -> None:
    """Runs a command, ends the node once the command is at work, and starts a new one."""
    driver = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=nodes.driver_environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    raylet, deadline = raylet_of(node), time.monotonic() + 200
    while not at_work() and driver.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    raylet.kill()
    assert driver.poll() is None, "the node ended while the command was at work"
    with nodes.node(*new):
        printed, _ = driver.communicate(timeout=400)
    assert driver.returncode == 0, printed


def test_a_node_that_ends_changes_no_byte(nodes: Cluster, here: Here, data: Path, tmp_path: Path) -> None:
    whole, shards = tmp_path / "whole", tmp_path / "shards"
    for main, (_, *arguments) in ((jobs.prepare.main, prepare(data, whole)), (jobs.embed.main, embed(whole))):
        assert here(main, *arguments).returncode == 0
    with nodes.node(*CPU_NODE) as first, nodes.node(*GPU_NODE) as device:
        run_while_a_node_ends(nodes, prepare(data, shards), first, lambda: any(shards.rglob("*.tar")), CPU_NODE)
        with nodes.node(*CPU_NODE):
            run_while_a_node_ends(nodes, embed(shards), device, lambda: any(shards.rglob("*.npy")), GPU_NODE)
    assert content(shards) == content(whole)
