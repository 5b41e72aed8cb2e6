"""cluster/local.yaml for real: a head of our own on this machine, whose workers come with the work and go after it."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

CONFIG = Path(__file__).parents[2] / "cluster" / "local.yaml"
START_SECONDS = 120.0
IDLE_SECONDS = 3.0

# A client of its own process: the token and the mode are read once a process, and other tests have theirs.
CLIENT = """
import json, sys, time
import ray

ray.init(address=sys.argv[1], log_to_driver=False)

def workers():
    return sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes())

@ray.remote(num_cpus=2)
def work():
    return "done"

counts = [workers()]
result = ray.get(work.remote(), timeout=90)
counts.append(workers())
deadline = time.monotonic() + 60
while workers() and time.monotonic() < deadline:
    time.sleep(0.2)
counts.append(workers())
print(json.dumps({"result": result, "workers": counts}))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A running head: where it listens, and how its clients are to be started."""

    address: str
    dashboard: str
    token: str
    environment: dict[str, str]
    session: int


@pytest.mark.ray
@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes of a session in /proc")
def test_workers_come_with_the_work_go_when_idle_and_leave_no_process() -> None:
    with started_head() as head:
        assert status(head, None) == 401
        assert status(head, "Bearer wrong") in (401, 403)
        assert status(head, f"Bearer {head.token}") == 200
        client = subprocess.run(
            [sys.executable, "-c", CLIENT, head.address],
            env=head.environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert client.returncode == 0, client.stderr
        outcome = json.loads(client.stdout.splitlines()[-1])
        assert outcome == {"result": "done", "workers": [0, 1, 0]}
    assert not living(head.session)


@contextmanager
def started_head() -> Iterator[Head]:
    """Starts a head with cluster/local.yaml on free ports, in a session of its own, and ends all of that session."""
    # Not tmp_path: the sockets below it would have longer names than the system takes.
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    gcs, dashboard, client = free_ports(3)
    token = secrets.token_hex(32)
    (folder / "token").write_text(token)
    config = yaml.safe_load(CONFIG.read_text())
    config["provider"]["gcs_address"] = f"127.0.0.1:{gcs}"
    config["idle_timeout_minutes"] = IDLE_SECONDS / 60
    (folder / "local.yaml").write_text(yaml.safe_dump(config))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "OMP_NUM_THREADS": "1",
    }
    options = {
        "port": gcs,
        "dashboard-port": dashboard,
        "ray-client-server-port": client,
        "dashboard-agent-listen-port": 0,
        "min-worker-port": 0,
        "max-worker-port": 0,
        "num-cpus": 0,
        "object-store-memory": 100_000_000,
        "temp-dir": folder,
        "autoscaling-config": folder / "local.yaml",
    }
    ray = Path(sys.executable).with_name("ray")
    command = [str(ray), "start", "--head", "--block", "--disable-usage-stats", "--dashboard-host=127.0.0.1"]
    with (folder / "head.log").open("wb") as log:
        process = subprocess.Popen(
            command + [f"--{name}={value}" for name, value in options.items()],
            env=environment | {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_until(lambda: started(process, folder / "head.log"), START_SECONDS)
        yield Head(
            address=f"127.0.0.1:{gcs}",
            dashboard=f"http://127.0.0.1:{dashboard}",
            token=token,
            environment=environment,
            session=process.pid,
        )
    finally:
        end(process)
        shutil.rmtree(folder, ignore_errors=True)


def started(process: subprocess.Popen[bytes], log: Path) -> bool:
    """Whether the head says that it runs; AssertionError with its log where it ended instead."""
    text = log.read_text(errors="replace")
    assert process.poll() is None, text
    return "Ray runtime started" in text


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends the processes of the head's session and no others; `ray stop` would end every Ray of the machine."""
    for name, seconds in ((signal.SIGTERM, 3.0), (signal.SIGKILL, 10.0)):
        for pid in living(process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, name)
        with suppress(TimeoutError):
            wait_until(lambda: process.poll() is not None and not living(process.pid), seconds)
            return


def living(session: int) -> list[int]:
    """The processes of a session that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # After the name, which may hold spaces and brackets: state, parent, group, session.
            state, _, _, owner = stat.read_text().rpartition(")")[2].split()[:4]
            if int(owner) == session and state != "Z":
                found.append(int(stat.parent.name))
    return found


def status(head: Head, authorization: str | None) -> int:
    """The HTTP status of the job server's list of jobs."""
    headers = {"Authorization": authorization} if authorization else {}
    request = urllib.request.Request(f"{head.dashboard}/api/jobs/", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on at this moment."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    """Waits for a condition of processes outside this one; raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} s")
        time.sleep(0.1)
