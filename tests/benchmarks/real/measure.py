"""Runs a command and measures its duration, and the memory of its process tree."""

import re
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import which
from time import perf_counter
from typing import Any

import psutil

from jobs.common import cli

_EVERY = 0.5  # seconds
_IDLE = 10.0  # times the duration of a sample: the kernel counts the pages of every process, which are many
_LAST_LINES = 4096
_NVIDIA_SMI = which("nvidia-smi")
_SHARES = re.compile(r"^Pss_(?:Anon|Shmem): +(\d+) kB$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A command's seconds, and the peak memory in bytes of its process and of all its descendants together.

    Memory is PSS, which splits shared pages between processes, without pages of mapped files, which the kernel can drop
    (a `.bin` of weights is mapped while it is loaded). `largest` is the peak of the largest process. `status` is the
    exit status, `last_line` the last line of output.
    """

    seconds: float
    driver: int
    workers: int
    largest: int
    gpu: int
    status: int
    last_line: str


def measure(
    command: Sequence[str],
    log: Path,
    *,
    folder: Path,
    environment: Mapping[str, str],
    meanwhile: "Callable[[subprocess.Popen[bytes]], object] | None" = None,
) -> Measured:
    """Runs a command in a folder until it ends, with its output in `log`; `meanwhile` runs concurrently.

    If `meanwhile` fails, the command is stopped, and the failure becomes its last line unless it had failed before.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    failure = ""
    with log.open("wb") as file:
        started = perf_counter()
        process = subprocess.Popen(command, cwd=folder, env=dict(environment), stdout=file, stderr=file)
        watch = Watch(process.pid)
        watch.start()
        try:
            if meanwhile is not None:
                meanwhile(process)
            process.wait()
        except (OSError, ValueError, RuntimeError) as error:
            failure = "" if process.poll() else cli.describe(error)  # its own message says more
        finally:
            _end(process)
            watch.stop()
    return Measured(
        seconds=perf_counter() - started,
        driver=watch.driver,
        workers=watch.workers,
        largest=watch.largest,
        gpu=watch.gpu,
        status=process.returncode or (1 if failure else 0),
        last_line=failure or last_line(log),
    )


def last_line(log: Path) -> str:
    """The last non-empty line."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LAST_LINES))
        lines = file.read().decode("utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


class Watch(threading.Thread):
    """Samples a process tree twice a second, or less often to use at most a tenth of a core, until stopped."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.driver = self.workers = self.largest = self.gpu = 0
        self._pid, self._done = pid, threading.Event()

    def run(self) -> None:
        """Samples until stopped, and once more at the end."""
        pause = _EVERY
        while True:
            ended, started = self._done.wait(pause), perf_counter()
            driver, *workers = [_memory(process) for process in _family(self._pid)] or [0]
            self.driver = max(self.driver, driver)
            self.workers = max(self.workers, sum(workers))
            self.largest = max(self.largest, *workers, 0)
            self.gpu = max(self.gpu, _gpu_memory())
            if ended:
                return
            pause = max(_EVERY, _IDLE * (perf_counter() - started))

    def stop(self) -> None:
        """Stops sampling."""
        self._done.set()
        self.join()


def _family(pid: int) -> list[psutil.Process]:
    """A process and its descendants; none once it has ended."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _memory(process: psutil.Process) -> int:
    """Its share of memory not backed by files; if the system does not report shares, its private memory."""
    try:
        shares = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
    except OSError:
        return _unique(process)
    return 1024 * sum(int(size) for size in _SHARES.findall(shares))


def _unique(process: psutil.Process) -> int:
    try:
        info: Any = process.memory_full_info()
    except psutil.Error:
        return 0
    return int(info.uss)


def _gpu_memory() -> int:
    """Bytes in use on all GPUs of the machine, by NVIDIA's own tool: including CUDA's own use."""
    if _NVIDIA_SMI is None:
        return 0
    query = [_NVIDIA_SMI, "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    found = subprocess.run(query, capture_output=True, text=True).stdout
    return sum(int(line) for line in found.split() if line.isdigit()) << 20


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kills the remaining processes of a command."""
    if process.poll() is None:
        for one in reversed(_family(process.pid)):
            try:
                one.kill()
            except psutil.NoSuchProcess:
                continue
        process.wait()
