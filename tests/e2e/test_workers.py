"""The number of Ray workers changes no byte, of shards or of embeddings."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.storage.shards import STATE, hash_file
from pipelines.world.dataset import write_world
from tests.conftest import ROOT

PROGRAM = """
import sys
import ray
from jobs import embed, prepare
from jobs.common import cli
data, out, workers = sys.argv[1:]
ray.init(num_cpus=int(workers))
cli.configure_ray_data()
prepare.main(["--data", data, "--out", out, "--samples-per-shard", "5"])
embed.main(["--shards", out, "--datasets", "cc3m", "--modality", "image", "--preset", "tiny"])
"""


@pytest.mark.slow
@pytest.mark.ray
def test_one_two_and_four_workers_write_the_same_bytes(tmp_path: Path) -> None:
    write_world(tmp_path / "data", seed=0, count=24)
    trees = []
    for workers in ("1", "2", "4"):
        out = tmp_path / workers
        command = [sys.executable, "-c", PROGRAM, str(tmp_path / "data"), str(out), workers]
        subprocess.run(command, cwd=ROOT, check=True, timeout=400)
        files = [path for path in sorted(out.rglob("*")) if path.is_file() and path.name != STATE]
        trees.append({str(path.relative_to(out)): hash_file(path) for path in files if "reports" not in path.parts})
    assert len(trees[0]) > 20
    assert trees[0] == trees[1] == trees[2]
