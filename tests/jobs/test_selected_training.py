"""A stage trained on Ray on what a condition selects, as often as a column weighs it."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from jobs import curate, embed, prepare, train_stage
from pipelines.storage.files import read_json, read_json_lines
from tests.conftest import Here

SHADES = {f"s{shade:03}.png": shade for shade in (0, 1, 2, 3, 200, 250)}


@pytest.mark.ray
@pytest.mark.timeout(1500)
def test_a_run_takes_what_is_selected_as_often_as_it_is_weighed(here: Here, tmp_path: Path) -> None:
    folder = tmp_path / "raw" / "T-X_pair_data" / "cc3m"
    (folder / "images").mkdir(parents=True)
    for name, shade in SHADES.items():
        PIL.Image.fromarray(np.full((32, 32, 3), shade, np.uint8)).save(folder / "images" / name)
    rows = [{"image_name": name, "caption": f"picture {name}"} for name in SHADES]
    (folder / "cc3m.json").write_text(json.dumps(rows))
    shards, run = tmp_path / "shards", tmp_path / "run"
    commands = [
        (prepare.main, "--data", str(tmp_path / "raw"), "--out", str(shards), "--datasets", "cc3m"),
        (embed.main, "--shards", str(shards), "--modality", "encoder", "--preset", "tiny"),
        (curate.main, "--shards", str(shards), "--columns", "measures"),
    ]
    for command in commands:
        done = here(*command)
        assert done.returncode == 0, done.stderr
    training = ["--stage", "1", "--shards", str(shards), "--preset", "tiny", "--out", str(run), "where=luminance < 100"]
    training += ["datasets={cc3m_enc: {weight: luminance}}", "workers=1", "use_gpu=false", "epochs=2", "zero=1"]
    training += ["batch_size=2", "micro_batch_size=2", "validation.fraction=0"]
    done = here(train_stage.main, *training)
    assert done.returncode == 0, done.stderr
    assert "selected: cc3m_enc: 6 samples = 4 selected, 2 dropped by luminance < 100" in done.stdout
    assert "weighed: cc3m_enc: 3 samples of 1 to 3 by luminance, 6 in all; 3 never come" in done.stdout
    # Once, twice and three times are six samples an epoch, which are three steps of two.
    assert len([row for row in read_json_lines(run / "log.jsonl") if "loss" in row]) == 6
    account = read_json(run / "selection.json")["cc3m_enc"]
    assert (account["selected"], account["weight"]["column"], account["weight"]["taken"]) == (4, "luminance", 3)
    assert "finished already; nothing to do" in here(train_stage.main, *training).stdout
    other = here(train_stage.main, *training, "where=luminance < 3")
    assert other.returncode == 1, "another selection is another run"
    assert "holds a run of other settings" in other.stderr
