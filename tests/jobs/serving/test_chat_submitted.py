"""The chat server as a job of a cluster, and as `serve run` starts it."""

import re
import subprocess
import time

import httpx
import pytest

from tests.benchmarks import free_port
from tests.conftest import BIN, ROOT, Cluster

pytestmark = [pytest.mark.ray, pytest.mark.xdist_group("cluster"), pytest.mark.timeout(900)]
QUESTION = {"messages": [{"role": "user", "content": "Draw a small red circle at the left."}]}


def ray_job(cluster: Cluster, *arguments: str) -> str:
    command, *options = arguments
    done = subprocess.run(
        [str(BIN / "ray"), "job", command, "--address", cluster.job_server, *options],
        cwd=ROOT,
        env=cluster.environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return done.stdout


def answers(url: str) -> bool:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/healthz", timeout=5).status_code == 200:
                break
        except httpx.HTTPError:
            pass
        time.sleep(1)
    reply = httpx.post(f"{url}/v1/chat/completions", json=QUESTION, timeout=120).json()
    return [part["type"] for part in reply["choices"][0]["message"]["parts"]] == ["text", "image_url"]


def test_ray_job_submit_serves_until_the_job_is_stopped(cluster: Cluster) -> None:
    port = free_port()
    command = ["python", "jobs/chat.py", "--port", str(port)]
    submitted = ray_job(cluster, "submit", "--no-wait", "--working-dir", ".", "--", *command)
    [job] = set(re.findall(r"raysubmit_\w+", submitted))
    try:
        assert answers(f"http://127.0.0.1:{port}")
    finally:
        ray_job(cluster, "stop", job)
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=5)


@pytest.mark.slow
def test_serve_run_starts_the_same_application(cluster: Cluster) -> None:
    command = [str(BIN / "serve"), "run", "jobs.serving.app:build", "checkpoint=builtin:world", "page=false"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=cluster.driver_environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        assert answers("http://127.0.0.1:8000")
    finally:
        process.terminate()
        process.wait(120)
