"""Starts the chat server as a user would, on its own Ray, for benchmarks and tests."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from jobs.serving.page_events import CASES, shown
from jobs.serving.requests.openai_answers import part_of
from model.checkpoints.description import SHIPPED
from tests.benchmarks import free_port

ROOT = Path(__file__).resolve().parents[2]
_READY = "Ctrl-C ends it"
_SECONDS = 400.0  # start-up timeout: five processes load torch, on a laptop two at a time
_SECONDS_TO_END = 120.0


@dataclass(frozen=True, slots=True)
class ChatServer:
    """A running server."""

    url: str
    log: Path
    process: "subprocess.Popen[bytes]"

    def replicas(self, deployment: str = "") -> list[psutil.Process]:
        """The processes of one deployment, or of all."""
        ours = psutil.Process(self.process.pid).children(recursive=True)
        return [process for process in ours if f"ServeReplica:chat:{deployment}" in " ".join(_command(process))]

    def memory(self) -> int:
        """The private memory of all replicas in bytes."""
        return sum(process.memory_info().rss - process.memory_info().shared for process in self.replicas())


@contextmanager
def chat_server(*options: str, folder: Path | None = None) -> Iterator[ChatServer]:
    """Starts `jobs/chat.py` with these options on a free port of loopback, and stops it as Ctrl-C does.

    The model is `world` if they name none. Temporary files are in `folder`. Raises RuntimeError if it does not start,
    or does not stop cleanly.
    """
    with tempfile.TemporaryDirectory(prefix="chat", ignore_cleanup_errors=True) as own:
        folder = folder or Path(own)
        log, port = folder / "chat.log", free_port()
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("RAY", "NEXTGPT_CHAT"))
        }
        # Ray's sockets need a short path.
        environment |= {"TMPDIR": str(folder), "RAY_TMPDIR": "/tmp"}
        command = [sys.executable, "jobs/chat.py", "--port", str(port), "--checkpoint", SHIPPED, *options]
        with log.open("wb") as file:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True
            )
        try:
            _wait(process, log)
            yield ChatServer(f"http://127.0.0.1:{port}", log, process)
            process.send_signal(signal.SIGTERM)
            if process.wait(_SECONDS_TO_END):
                raise RuntimeError(f"the chat server did not end well: {_tail(log)}")
        finally:
            if process.poll() is None:
                _kill(process)


def cases() -> dict[str, Sequence[Any]]:
    """The messages of the tutorial's four cases, with media of our world."""
    found: dict[str, Sequence[Any]] = {}
    for title, (kind, text) in CASES.items():
        content = [*(part_of(medium) for medium in shown(kind)), {"type": "text", "text": text}]
        found[title] = [{"role": "user", "content": content}]
    return found


def _wait(process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if _READY in log.read_text(encoding="utf-8", errors="replace"):
            return
        time.sleep(0.2)
    raise RuntimeError(f"the chat server did not start: {_tail(log)}")


def _kill(process: "subprocess.Popen[bytes]") -> None:
    ours = psutil.Process(process.pid)
    for one in (*ours.children(recursive=True), ours):
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()


def _command(process: psutil.Process) -> Sequence[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _tail(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-2000:]
