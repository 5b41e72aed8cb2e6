"""SIGKILL of the driver, of a worker or of a node: nothing broken under a final name, and a rerun makes up for it."""

import json
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import urllib.request
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest

from pipelines.media.codecs import encode
from pipelines.sample import Audio, Image
from pipelines.storage.files import is_sound
from pipelines.storage.shards import STATE, hash_file
from tests.conftest import ROOT, Cluster, raylet_of

pytestmark = [pytest.mark.ray, pytest.mark.xdist_group("cluster")]

ROWS = 240
Whole = tuple[dict[str, str], float]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Caption pairs of 240 pictures and 60 sounds, every tenth of them missing."""
    root, noise = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    picture = encode(Image(pixels=noise.integers(0, 255, (96, 128, 3), np.uint8))).data
    sound = encode(Audio(waveform=noise.uniform(-1, 1, (1, 44100)).astype(np.float32), sample_rate=44100)).data
    for folder, name, media, suffix, count, content in [
        ("cc3m", "image", "images", "png", ROWS, picture),
        ("audiocap", "audio", "audios", "wav", ROWS // 4, sound),
    ]:
        place = root / "T-X_pair_data" / folder
        (place / media).mkdir(parents=True)
        rows = [{"id": f"k{n}", "caption": f"number {n}", f"{name}_name": f"{n}.{suffix}"} for n in range(count)]
        (place / f"{folder}.json").write_text(json.dumps(rows))
        for number in range(count):
            if number % 10:
                (place / media / f"{number}.{suffix}").write_bytes(content)
    return root


def command(data: Path, out: Path) -> list[str]:
    arguments = ["--data", str(data), "--out", str(out), "--samples-per-shard", "8", "--max-rejected", "0.2"]
    return [sys.executable, "jobs/prepare.py", *arguments]


def start(cluster: Cluster, data: Path, out: Path) -> subprocess.Popen[str]:
    log = (out.parent / f"{out.name}.log").open("a")
    return subprocess.Popen(
        command(data, out), cwd=ROOT, env=cluster.driver_environment, stdout=log, stderr=log, text=True
    )


@pytest.fixture(scope="module")
def uninterrupted(cluster: Cluster, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The files of a run that nothing happened to, and how many seconds it took."""
    out = tmp_path_factory.mktemp("whole") / "shards"
    started = time.monotonic()
    assert start(cluster, data, out).wait(200) == 0
    return content(out), time.monotonic() - started


def content(out: Path) -> dict[str, str]:
    """The hashes of all files but those that are of this machine or this run: its memory, and the reports."""
    return {
        str(path.relative_to(out)): hash_file(path)
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != STATE and path.parent.name != "reports"
    }


def assert_readable(out: Path) -> None:
    """Every file that does not bear a temporary name, parts of unfinished work too."""
    for path in (path for path in out.rglob("*") if path.is_file() and not path.name.startswith(".")):
        match path.suffix:
            case ".tar":
                with tarfile.open(path) as tar:
                    assert all(member.isreg() for member in tar), path
                assert path.read_bytes()[-1024:] == bytes(1024), f"{path} has no end"
            case ".parquet":
                assert is_sound(path), path
            case ".json":
                json.loads(path.read_text())


@dataclass(frozen=True)
class Running:
    """A command at work, on a cluster that may have a second node."""

    driver: subprocess.Popen[str]
    cluster: Cluster
    second: subprocess.Popen[bytes] | None


def kill_driver(running: Running, choice: random.Random) -> None:
    running.driver.kill()


def kill_worker(running: Running, choice: random.Random) -> None:
    """A worker at work; Ray's own agents, whose end ends a node, are named alike."""
    processes = psutil.Process(running.cluster.head).children(recursive=True)
    workers = [p for p in processes if name_of(p).startswith("ray::") and "Agent" not in name_of(p)]
    if workers:
        choice.choice(workers).send_signal(signal.SIGKILL)


def kill_node(running: Running, choice: random.Random) -> None:
    assert running.second is not None
    raylet_of(running.second).kill()


def name_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


Kill = Callable[[Running, random.Random], None]
KILLS: list[Kill] = [kill_driver, kill_worker, kill_node]
POINTS = [pytest.param(number, KILLS[number % 3], id=f"{number}-{KILLS[number % 3].__name__}") for number in range(20)]


def killed_and_run_again(
    cluster: Cluster, data: Path, out: Path, seconds: float, number: int, kill: Kill
) -> tuple[int, int]:
    choice = random.Random(number)
    with cluster.node("--num-cpus=2") if kill is kill_node else nullcontext() as second:
        driver = start(cluster, data, out)
        try:
            # The first third is Python's and Ray's start, in which nothing is written.
            driver.wait(choice.uniform(0.3, 1.0) * seconds)
        except subprocess.TimeoutExpired:
            kill(Running(driver, cluster, second), choice)
        first = driver.wait(200)
    assert_readable(out)
    return first, start(cluster, data, out).wait(200)


def test_after_the_driver_was_killed_a_rerun_gives_the_same_files(
    cluster: Cluster, data: Path, uninterrupted: Whole, tmp_path: Path
) -> None:
    files, seconds = uninterrupted
    out = tmp_path / "shards"
    first, second = killed_and_run_again(cluster, data, out, seconds * 0.9, 1, kill_driver)
    assert (first, second) == (-signal.SIGKILL, 0)
    assert content(out) == files


@pytest.fixture(scope="module")
def one_shard(cluster: Cluster, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All pictures in a single shard, embedded by a run that nothing happened to."""
    shards = tmp_path_factory.mktemp("one") / "shards"
    arguments = command(data, shards)
    arguments[arguments.index("--samples-per-shard") + 1] = str(ROWS)
    for step in ([*arguments, "--datasets", "cc3m"], embedding(shards)):
        subprocess.run(step, cwd=ROOT, env=cluster.driver_environment, check=True, timeout=300)
    return shards


def embedding(shards: Path) -> list[str]:
    return [sys.executable, "jobs/embed.py", "--shards", str(shards), "--preset", "tiny", "--modality", "encoder"]


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT], ids=str)
def test_embedding_that_was_stopped_within_a_shard_goes_on_there_and_gives_the_same_files(
    cluster: Cluster, one_shard: Path, tmp_path: Path, kind: signal.Signals
) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(one_shard, shards, ignore=shutil.ignore_patterns("embeddings"))
    # As from a terminal: what a shell starts in the background has Ctrl-C ignored, and so has what that starts.
    interruptible = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    driver = subprocess.Popen(embedding(shards), cwd=ROOT, env=cluster.driver_environment, preexec_fn=interruptible)
    deadline = time.monotonic() + 200
    while not (kept := set(shards.rglob("*.npy"))) and driver.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    driver.send_signal(kind)
    assert driver.wait(100) != 0, "it was stopped before its end"
    assert all(path.is_file() for path in kept), "and what it had encoded is there"
    assert kept
    subprocess.run(embedding(shards), cwd=ROOT, env=cluster.driver_environment, check=True, timeout=300)
    assert content(shards / "cc3m" / "embeddings") == content(one_shard / "cc3m" / "embeddings")


def test_the_cluster_counts_rows_rejects_and_bytes(cluster: Cluster, uninterrupted: Whole, tmp_path: Path) -> None:
    deadline, found = time.monotonic() + 60, dict[str, float]()
    while len(found) < 3 and time.monotonic() < deadline:  # workers report every few seconds
        with urllib.request.urlopen(cluster.metrics) as answer:
            lines = [line for line in answer.read().decode().splitlines() if line.startswith("ray_nextgpt_")]
        found = {line.partition("{")[0]: float(line.rpartition(" ")[2]) for line in lines if '"cc3m"' in line}
        time.sleep(1)
    assert {name.removesuffix("_total") for name in found} >= {f"ray_nextgpt_{n}" for n in ("rows", "rejects", "bytes")}
    assert all(value > 0 for value in found.values())


@pytest.mark.slow
@pytest.mark.parametrize(("number", "kill"), POINTS)
def test_after_a_kill_at_a_random_point_a_rerun_gives_the_same_files(
    cluster: Cluster,
    data: Path,
    uninterrupted: Whole,
    tmp_path: Path,
    number: int,
    kill: Kill,
) -> None:
    files, seconds = uninterrupted
    out = tmp_path / "shards"
    _, second = killed_and_run_again(cluster, data, out, seconds, number, kill)
    assert second == 0, (tmp_path / "shards.log").read_text()[-2000:]
    assert content(out) == files
