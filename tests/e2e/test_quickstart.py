"""The README's first command, whole, on the world it draws."""

import json
from pathlib import Path

import PIL.Image
import pytest

from tests.conftest import Cluster

pytestmark = [pytest.mark.ray, pytest.mark.xdist_group("cluster"), pytest.mark.slow, pytest.mark.timeout(1500)]
UNDERSTANDING = {"understand_image", "understand_video", "understand_audio"}
MAKING = {"make_image", "make_video", "make_audio"}


def test_the_quickstart_trains_a_model_that_understands_and_makes_what_it_never_saw(
    cluster: Cluster, tmp_path: Path
) -> None:
    done = cluster.run("jobs/quickstart.py", "--small", "--out", str(tmp_path), timeout=1400)
    assert done.returncode == 0, done.stderr
    assert "0 rejected; shards in" in done.stdout
    assert f"open this one in a browser: {tmp_path / 'gallery.html'}" in done.stdout.splitlines()[-1]
    for run in ("stage-1", "stage-2", "stage-3", "control"):
        assert list((tmp_path / run).glob("checkpoint-*/config.json"))

    first = {row["row"]: row for row in json.loads((tmp_path / "stage-1" / "scores.json").read_text())["rows"]}
    assert set(first) == UNDERSTANDING
    last = {row["row"]: row for row in json.loads((tmp_path / "stage-3" / "scores.json").read_text())["rows"]}
    assert set(last) >= UNDERSTANDING | MAKING
    for row in (*first.values(), *(last[name] for name in sorted(UNDERSTANDING | MAKING))):
        assert row["low"] <= row["value"] <= row["high"]
        assert row["low"] > row["chance"], row
    for name in UNDERSTANDING | MAKING:
        assert last[name]["low"] > last[name]["shuffled"], last[name]
    assert last["well_formed"]["value"] == 1, "signal groups are completed by force"
    table = done.stdout.rpartition("jobs/score.py")[2]
    assert all(row["title"] in table for row in last.values())

    page = (tmp_path / "gallery.html").read_text()
    examples = json.loads((tmp_path / "stage-3" / "examples" / "examples.json").read_text())
    assert {example["right"] for example in examples} == {True, False}, "so small a training fails at times"
    assert 'class="talk right"' in page
    assert 'class="talk wrong"' in page
    assert len(page) < 6_000_000


def test_a_preset_without_foundations_goes_all_the_way_to_a_reply_and_says_where_to_look(
    cluster: Cluster, tmp_path: Path
) -> None:
    done = cluster.run("jobs/quickstart.py", "--preset", "tiny", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "untrained" in done.stdout
    assert "Where to look, below" in done.stdout.splitlines()[-5]
    reply = json.loads((tmp_path / "reply" / "reply.json").read_text())
    assert {Path(name).suffix for name in reply["files"]} == {".png", ".mp4", ".wav"}
    assert len(reply["files"]) <= 4
    (first, *_) = [name for name in reply["files"] if name.endswith(".png")]
    assert PIL.Image.open(tmp_path / "reply" / first).size == (32, 32)
    for stage in (1, 2, 3):
        assert list((tmp_path / f"stage-{stage}").glob("checkpoint-*/config.json"))
    assert "it has not been scored yet" in (tmp_path / "gallery.html").read_text()
