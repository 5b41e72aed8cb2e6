"""Fixtures every test may use."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import psutil
import pytest

# Tests run side by side, and small matrices gain nothing from threads: they would only wait for each other, busily.
# Before torch is imported, and for the commands that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from jobs.common import cli  # Sets what Ray reads from the environment when it is first imported.
from model.parts import small_llm
from tests.benchmarks import free_port

# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("project", deadline=None)
hypothesis.settings.load_profile("project")

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
needs_small_llm = pytest.mark.skipif(bool(small_llm.missing()), reason=small_llm.missing() or "installed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Says to `--dist loadgroup` which tests run in one process: those of a file, or of files that say so themselves.

    The latter share what takes long to start (a cluster and what was trained on it, a chat server). They come first, so
    that nothing long is left for the end.
    """
    items.sort(key=lambda item: item.get_closest_marker("xdist_group") is None)
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real samples and golden numbers beside the checkout; tests that need it skip where it is absent."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip("../shared is not beside this checkout")
    return path


@pytest.fixture(scope="session")
def sample_root(shared: Path) -> Path:
    """NExT-GPT's own sample: 14 images, 14 sounds, 11 videos with captions."""
    return shared / "data" / "nextgpt-sample"


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A Ray of two cores inside this process, in a folder of its own; one for the session, tests share it."""
    import ray

    # A short path, as below. What Ray puts into the environment must not reach the commands that other tests start.
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(prefix="nx", dir="/tmp", ignore_cleanup_errors=True) as folder,
    ):
        for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_CLIENT_MODE", "PYTHONBREAKPOINT"):
            patch.setenv(name, os.environ.get(name, ""))
            patch.delenv(name)
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=folder)
        cli.configure_ray_data()
        yield
        ray.shutdown()


Here = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def here(local_ray: None, capsys: pytest.CaptureFixture[str]) -> Here:
    """Runs a command in this process: `here(train_stage.main, "--stage", "1")`; what it printed and how it ended.

    Python, torch and Ray are loaded already, which is most of what a short command takes.
    """

    def run(main: cli.Main, *arguments: str) -> subprocess.CompletedProcess[str]:
        code = 0
        capsys.readouterr()
        try:
            cli.run(lambda _: main(arguments))
        except SystemExit as end:
            code = int(end.code or 0)
        printed = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, code, printed.out, printed.err)

    return run


@dataclass(frozen=True)
class Cluster:
    """A real Ray cluster of this test session: its job server, and the environment that reaches it."""

    job_server: str
    environment: Mapping[str, str]
    head: int
    metrics: str

    def submit(self, *entrypoint: str) -> subprocess.CompletedProcess[str]:
        """`ray job submit --working-dir . -- ENTRYPOINT`, from the checkout, to its end."""
        command = [str(BIN / "ray"), "job", "submit", "--address", self.job_server, "--working-dir", ".", "--"]
        return subprocess.run(
            [*command, *entrypoint], cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=500
        )

    def run(self, *command: str, timeout: float = 500) -> subprocess.CompletedProcess[str]:
        """Runs a command of `jobs/` from the checkout as a driver of this cluster."""
        return _python(command, self.driver_environment, timeout)

    @contextmanager
    def node(self, *options: str) -> Iterator[subprocess.Popen[bytes]]:
        """Another node, as a process on this machine; it ends, with all that runs there, at the latest when left."""
        with tempfile.NamedTemporaryFile() as log:
            # On a busy machine Ray gives up on a node whose parts take longer than half a minute to find each other.
            nodes = (self._started(options, Path(log.name)) for _ in range(4))
            node = next((node for node in nodes if node is not None), None)
            if node is None:
                raise RuntimeError(f"the node did not start: {Path(log.name).read_text()}")
            try:
                yield node
            finally:
                end(node)

    def _started(self, options: Sequence[str], log: Path) -> subprocess.Popen[bytes] | None:
        """A node that has joined; None if it ended before, or took too long."""
        command = [str(BIN / "ray"), "start", "--block", f"--address={self.environment['TEST_RAY_ADDRESS']}"]
        command += ["--node-ip-address=127.0.0.1", "--object-store-memory=100000000", "--disable-usage-stats", *options]
        # Ports of its own: an agent that finds its port taken ends, and the node with it.
        ports = ("dashboard-agent-listen-port", "metrics-export-port", "runtime-env-agent-port")
        command += [f"--{name}={free_port()}" for name in ports]
        with log.open("wb") as output:
            node = subprocess.Popen(command, env=self.environment, stdout=output, stderr=output, start_new_session=True)
        deadline = time.monotonic() + 120
        while node.poll() is None and time.monotonic() < deadline:
            if b"Ray runtime started" in log.read_bytes():
                return node
            time.sleep(0.1)
        end(node)
        return None

    @property
    def driver_environment(self) -> dict[str, str]:
        """What a driver of this cluster finds it by."""
        return {**self.environment, "RAY_ADDRESS": self.environment["TEST_RAY_ADDRESS"]}

    def alone(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs a command of `jobs/` with no cluster to find: it starts a local Ray of its own."""
        return _python(command, {name: value for name, value in self.environment.items() if "RAY" not in name})


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A head with two cores, for all tests of the session."""
    with running_cluster(num_cpus=2) as cluster:
        yield cluster


@contextmanager
def running_cluster(num_cpus: int) -> Iterator[Cluster]:
    """Starts a head with a job server on ports and in a folder of its own, tokens on; ends it by its process id."""
    port, dashboard, agent, metrics = (free_port() for _ in range(4))
    # A short path: Ray's sockets live below it, and the length of a socket's path is limited.
    with tempfile.TemporaryDirectory(prefix="nx", dir="/tmp", ignore_cleanup_errors=True) as folder:
        environment = {
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "TEST_RAY_ADDRESS": f"127.0.0.1:{port}",
        }
        environment.pop("RAY_ADDRESS", None)
        command = [str(BIN / "ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}"]
        command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--num-cpus={num_cpus}"]
        command += [f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}"]
        command += [f"--temp-dir={folder}", "--disable-usage-stats"]
        with (Path(folder) / "head.log").open("w") as log:
            head = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            _wait_for(dashboard, head)
            yield Cluster(
                job_server=f"http://127.0.0.1:{dashboard}",
                environment=environment,
                head=head.pid,
                metrics=f"http://127.0.0.1:{metrics}/metrics",
            )
        finally:
            end(head)


def _python(
    command: Sequence[str], environment: Mapping[str, str], timeout: float = 500
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout
    )


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 180  # a machine may be busy
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise RuntimeError("the Ray head did not open its job server")


def raylet_of(node: subprocess.Popen[bytes]) -> psutil.Process:
    """The process that is a node to Ray: with it all that runs there ends. LookupError where there is none."""
    for process in psutil.Process(node.pid).children(recursive=True):
        with suppress(psutil.Error):
            if process.name() == "raylet":
                return process
    raise LookupError("the node has no raylet")


def end(process: subprocess.Popen[bytes]) -> None:
    for kind in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, kind)
            process.wait(5)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
