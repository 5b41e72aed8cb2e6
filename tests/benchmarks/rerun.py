"""A rerun of `jobs/prepare.py` with nothing to do: 1,000 shards of 10 samples with a picture each, 10,000 files."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np

from jobs import prepare
from jobs.common import cli
from pipelines.media.codecs import encode
from pipelines.sample import Image
from tests.benchmarks import Row, say, timed

SHARDS = 1000
SAMPLES_PER_SHARD = 10
REPEATS = 5
LIMIT_SECONDS = 2.0


def run(scale: float) -> list[Row]:
    """The duration of the whole command, Python's start included; with nothing to do, it does not start Ray."""
    shards = max(2, round(SHARDS * scale))
    with tempfile.TemporaryDirectory(prefix="rerun") as folder:
        data, out = Path(folder) / "data", Path(folder) / "shards"
        _write_pairs(data, shards * SAMPLES_PER_SHARD)
        command = ["--data", str(data), "--out", str(out), "--samples-per-shard", str(SAMPLES_PER_SHARD)]
        say(f"rerun: preparing {shards} shards")
        cli.start_ray()
        prepare.main(command)
        seconds = []
        for repeat in range(REPEATS):
            with timed() as watch:
                done = subprocess.run(
                    [sys.executable, "-m", "jobs.prepare", *command],
                    check=True,
                    capture_output=True,
                    text=True,
                    cwd=Path(__file__).parents[2],
                )
            assert "(was up to date)" in done.stdout, "a rerun had something to do"
            seconds.append(watch.seconds)
            say(f"rerun, {repeat + 1} of {REPEATS}: {watch.seconds:.2f} s")
    taken = median(seconds)
    note = f"{shards} shards, {shards * SAMPLES_PER_SHARD} media; ratio to the limit of {LIMIT_SECONDS:g} s"
    return [
        Row(
            name="rerun with nothing to do",
            ours=taken,
            peer=LIMIT_SECONDS,
            ratio=taken / LIMIT_SECONDS,
            target=1.0,
            unit="s",
            at_most=True,
            note=note,
        )
    ]


def _write_pairs(root: Path, count: int) -> None:
    folder = root / "T-X_pair_data" / "cc3m"
    (folder / "images").mkdir(parents=True)
    rows = [{"id": f"{n:07d}", "caption": f"picture {n}", "image_name": f"{n:07d}.png"} for n in range(count)]
    (folder / "cc3m.json").write_text(json.dumps(rows))
    for number in range(count):
        shade = np.full((16, 16, 3), number % 256, np.uint8)
        (folder / "images" / f"{number:07d}.png").write_bytes(encode(Image(pixels=shade)).data)
