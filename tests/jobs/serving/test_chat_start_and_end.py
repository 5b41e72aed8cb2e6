"""The chat server from its first answer to its last: what it says while it loads, and how it ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from model.checkpoints.description import SHIPPED
from tests.benchmarks import free_port
from tests.conftest import ROOT

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1500)]
READY = "Ctrl-C ends it"
LONG = {
    "messages": [{"role": "user", "content": "Show me a picture, a video and a sound of a red circle."}],
    "modalities": ["video", "image", "audio"],
    "decoders": {"video": {"steps": 200}},
    "stream": True,
}
# Ray's processes are ended one after the other, each in its own second; on a machine that does nothing else it takes 3.
LONGEST_END = 15.0


@pytest.fixture
def late(tmp_path: Path) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """A server that has been started, and loads its LLM once `tmp_path / "go"` is there."""
    port = free_port()
    command = [sys.executable, "-m", "tests.jobs.serving.late_server", str(tmp_path / "go")]
    command += ["--port", str(port), "--checkpoint", SHIPPED]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY", "NEXTGPT_CHAT"))}
    environment = kept | {"TMPDIR": str(tmp_path), "RAY_TMPDIR": "/tmp"}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)
    yield f"http://127.0.0.1:{port}", process
    if process.poll() is None:
        for one in (*psutil.Process(process.pid).children(recursive=True), process):
            one.kill()


def until(url: str, *statuses: int) -> httpx.Response:
    """The first answer with one of these statuses; before it, nobody listens, or Serve does not know of us yet."""
    while True:
        try:
            answer = httpx.get(url, timeout=60)
        except httpx.HTTPError:
            time.sleep(0.2)
            continue
        if answer.status_code in statuses:
            return answer
        assert answer.status_code in (404, 503)
        time.sleep(0.2)


def test_it_says_that_it_loads_then_answers_and_ends_at_once_in_the_middle_of_a_reply(
    late: tuple[str, "subprocess.Popen[bytes]"], tmp_path: Path
) -> None:
    url, process = late
    first = until(f"{url}/v1/models", 200, 503)
    assert first.status_code == 503
    assert int(first.headers["retry-after"]) >= 1
    assert first.json()["error"]["code"] == "loading"
    assert "language model" in httpx.get(f"{url}/healthz", timeout=60).json()["parts"]
    assert "The model is loading" in httpx.get(url, timeout=60).text
    assert httpx.post(f"{url}/v1/chat/completions", json=LONG, timeout=60).status_code == 503
    assert READY not in (tmp_path / "log").read_text()

    (tmp_path / "go").touch()
    until(f"{url}/healthz", 200)
    assert httpx.get(f"{url}/v1/models", timeout=60).json()["data"][0]["id"] == "world"
    assert "gradio" in httpx.get(url, timeout=60).text
    assert list(tmp_path.glob("nextgpt-chat-*"))
    while READY not in (tmp_path / "log").read_text():  # the command looks whether it is loaded once in a while
        time.sleep(0.1)

    ours = psutil.Process(process.pid).children(recursive=True)
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=LONG, timeout=120) as reply:
        assert reply.status_code == 200
        next(reply.iter_lines())
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
        _, left = psutil.wait_procs(ours, timeout=60)
        assert not left
        assert time.monotonic() - started < LONGEST_END
    assert not list(tmp_path.glob("nextgpt-chat-*")), "visitors' files go with the server"
    told = (tmp_path / "log").read_text().splitlines()
    assert [line.partition("  ")[0] for line in told] == [
        f"loading {SHIPPED}",
        "chat page",
        "API",
        READY,
        "ending",
    ], "nothing that nobody can act on"
