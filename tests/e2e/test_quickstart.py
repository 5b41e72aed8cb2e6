"""The README's first command, whole, on the world it draws."""

import json
from pathlib import Path

import PIL.Image
import pytest

from tests.conftest import Cluster

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1500)]


def test_the_quickstart_goes_from_nothing_to_a_reply_and_says_where_to_look(cluster: Cluster, tmp_path: Path) -> None:
    done = cluster.run("jobs/quickstart.py", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "0 rejected; shards in" in done.stdout
    assert "untrained" in done.stdout
    assert "Where to look, below" in done.stdout.splitlines()[-4]
    reply = json.loads((tmp_path / "reply" / "reply.json").read_text())
    assert {Path(name).suffix for name in reply["files"]} == {".png", ".mp4", ".wav"}
    assert len(reply["files"]) <= 4
    (first, *_) = [name for name in reply["files"] if name.endswith(".png")]
    assert PIL.Image.open(tmp_path / "reply" / first).size == (32, 32)
    for stage in (1, 2, 3):
        assert list((tmp_path / f"stage-{stage}").glob("checkpoint-*/config.json"))
