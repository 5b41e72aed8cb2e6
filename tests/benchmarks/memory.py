"""Peak memory of preparing many samples, against preparing few.

Each measurement runs in its own process with its own local Ray. The samples are 64x64 noise images (12 kB as PNG) with
a caption each, 1,000 per shard: keeping all of them in memory, or even just their rows, would show. Counted is the
program's memory: the private memory of the driver, Ray's workers and the decoding processes, summed every 50 ms, plus
Ray's object store once. Ray's own services (raylet, GCS, dashboard) hold no samples and are excluded, since their
memory would hide growth.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image

from jobs.common import cli
from pipelines.prepare.preprocess import prepare
from pipelines.prepare.staging import Source
from pipelines.sample import Modality
from pipelines.sources.entry import Entry
from pipelines.storage.files import remove_tree
from tests.benchmarks import PROCESS, Row, compare, not_measured, say

FEW, MANY, SAMPLES_PER_SHARD = 2_000, 20_000, 1000
SIDE = 64
REPEATS = 3
SAMPLE_SECONDS = 0.05
TARGET = 1.15
TIMEOUT = 600
NAME = "peak memory, 20,000 samples / 2,000"
# Ray's own processes that are named like workers.
SERVICES = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")


def run(scale: float) -> list[Row]:
    """The peak memory of both sizes in MB, medians of interleaved repeats."""
    if not PROCESS.is_file():
        return [not_measured(NAME, TARGET, "MB", "needs the process files of Linux", at_most=True)]
    few, many = max(2, round(FEW * scale)), max(20, round(MANY * scale))
    with tempfile.TemporaryDirectory(prefix="bench-memory-") as name:
        folder = Path(name)
        say(f"memory: drawing {many} images")
        draw(folder / "images", many)
        per_shard = max(1, round(SAMPLES_PER_SHARD * scale))
        ours, peer = compare(
            lambda: _peak(folder, many, per_shard),
            lambda: _peak(folder, few, per_shard),
            REPEATS,
            title="memory: MB, many as ours and few as peer",
        )
    note = f"driver, workers, decoders and object store; {1000 * (ours - peer) / (many - few):+.1f} kB per extra sample"
    return [Row(name=NAME, ours=ours, peer=peer, ratio=ours / peer, target=TARGET, unit="MB", at_most=True, note=note)]


def draw(folder: Path, count: int) -> None:
    """Writes `count` images of seeded noise."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for index in range(count):
        pixels = random.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f"{index:09d}.png", compress_level=1)


class PeakMemory(threading.Thread):
    """Monitors this process and its descendants from `start` to `stop`; `peak` is their peak memory in MB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0.0
        self._done = threading.Event()

    def run(self) -> None:
        """Samples every 50 ms, and once more at the end."""
        while True:
            ended = self._done.wait(SAMPLE_SECONDS)
            self.peak = max(self.peak, memory_now())
            if ended:
                return

    def stop(self) -> float:
        """Stops monitoring; returns the peak."""
        self._done.set()
        self.join()
        return self.peak


def memory_now() -> float:
    """The private memory of this process, Ray's workers and their children, plus the object store, in MB.

    Every worker maps part of the object store; it is counted once, as the largest such mapping.
    """
    parents, commands = _processes()
    found = [os.getpid()]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    counted = {process for process in found if _is_worker(commands[process])}
    counted |= {process for process in found if parents[process] in counted} | {os.getpid()}
    memory = [_resident(process) for process in counted]
    return (sum(private for private, _ in memory) + max(shared for _, shared in memory)) / 1000


def _is_worker(command: str) -> bool:
    return command.startswith("ray::") and not command.startswith(SERVICES)


def _processes() -> tuple[dict[int, int], dict[int, str]]:
    """The parent and command of every process on this machine."""
    parents, commands = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has ended meanwhile
            continue
        parents[int(folder.name)], commands[int(folder.name)] = parent, command
    return parents, commands


def _resident(process: int) -> tuple[int, int]:
    """Private and shared memory of a process in kB; 0 once it has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0, 0
    fields = dict(line.split(":", 1) for line in status.splitlines() if line.startswith(("RssAnon", "RssShmem")))
    private, shared = (int(fields.get(name, "0").split()[0]) for name in ("RssAnon", "RssShmem"))
    return private, shared


def _peak(folder: Path, count: int, samples_per_shard: int) -> float:
    rows = [{"image_name": f"{index:09d}.png", "caption": f"noise of number {index}"} for index in range(count)]
    (folder / "rows.json").write_text(json.dumps(rows))
    command = [sys.executable, "-m", "tests.benchmarks.memory", str(folder), str(samples_per_shard)]
    root = Path(__file__).resolve().parents[2]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=TIMEOUT)
    if run.returncode:
        raise RuntimeError((run.stderr.strip() or "the measured process ended").splitlines()[-1])
    figures = json.loads(run.stdout.splitlines()[-1])
    assert figures["samples"] == count, figures
    return float(figures["peak"])


def _measure(argv: Sequence[str]) -> None:
    """The measured process: prepares the rows of a folder and prints the peak."""
    folder, samples_per_shard = Path(argv[0]), int(argv[1])
    entry = Entry(name="noise", reader="pairs", paths=["rows.json"], media="images", modality=Modality.IMAGE)
    remove_tree(folder / "shards")
    cli.start_ray()
    source = Source(
        entry=entry,
        path=folder / "rows.json",
        media=folder / "images",
        directory=folder / "shards",
        samples_per_shard=samples_per_shard,
    )
    watch = PeakMemory()
    watch.start()
    prepared = prepare(source)
    print(json.dumps({"peak": watch.stop(), "samples": prepared.manifest.samples}))


if __name__ == "__main__":
    _measure(sys.argv[1:])
