"""The benchmark of curation: what it does to data, and its tables."""

from pathlib import Path

import pytest

from pipelines.media.codecs import decode, load
from pipelines.sample import Modality
from pipelines.sources.catalog import load_catalog
from pipelines.storage.files import read_json
from pipelines.world.dataset import PAIRS, write_world
from tests.benchmarks import suites
from tests.benchmarks.curation import _spoil

COUNT = 20


@pytest.mark.parametrize("modality", list(Modality))
def test_it_spoils_as_many_pairs_as_it_says_and_says_which(modality: Modality, tmp_path: Path) -> None:
    layout = PAIRS[modality]
    dataset, media, id_key, name_key = layout.dataset, layout.media_folder, layout.id_key, layout.name_key
    write_world(tmp_path / "clean", count=COUNT)
    said = _spoil(tmp_path / "clean", tmp_path / "spoiled", modality)
    before, after = (
        read_json(tmp_path / name / "T-X_pair_data" / dataset / f"{dataset}.json") for name in ("clean", "spoiled")
    )
    assert {kind: len(keys) for kind, keys in said.items()} == {"shuffled": 6, "blank": 2, "copied": 4}
    assert [row["caption"] for row in after[:6]] != [row["caption"] for row in before[:6]]
    assert sorted(row["caption"] for row in after[:6]) == sorted(row["caption"] for row in before[:6])
    assert after[8:COUNT] == before[8:]
    assert [row["caption"] for row in after[COUNT:]] == [row["caption"] for row in before[-4:]]
    keys = [str(row[id_key]) for row in after]
    assert len(set(keys)) == COUNT + 4
    assert said["copied"] == set(keys[COUNT:])
    folder = tmp_path / "spoiled" / "T-X_pair_data" / dataset / media
    assert {path.name for path in folder.iterdir()} == {row[name_key] for row in after}
    for row in after:
        decode(load(folder / row[name_key], modality), fps=8.0)
    assert load_catalog().find(tmp_path / "spoiled").keys() == {dataset}


def test_a_folder_that_holds_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(ValueError, match="holds files; name a new folder or delete it"):
        suites.main(["curation", "--out", str(tmp_path)])
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.slow
@pytest.mark.ray
def test_it_trains_on_all_three_and_prints_its_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suites.main(["curation", "--out", str(tmp_path), "--count", "40", "--n", "4", "--steps", "4", "--later-steps", "4"])
    lines = capsys.readouterr().out.strip().splitlines()
    detectors, exam, later = lines[:5], lines[6:11], lines[12:]
    assert [line.split("|")[1].split(",")[0].strip() for line in detectors[2:]] == [
        "captions of others",
        "near copies",
        "blank or silent",
    ]
    assert [line.split("|")[1].strip() for line in exam] == ["stage 1 on", "---", "spoiled", "curated", "clean"]
    assert [cell.strip() for cell in later[0].split("|")[1:-1]] == ["after stage 3", "spoiled", "curated", "clean"]
    assert {"picture to words", "T to T+I+V+A"} <= {line.split("|")[1].strip() for line in later[2:]}
    pairs = [int(line.split("|")[2]) for line in exam[2:]]
    assert pairs[0] == 144
    assert pairs[2] == 120
    assert pairs[1] < 100
