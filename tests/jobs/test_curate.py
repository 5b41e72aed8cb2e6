"""The command that curates: on Ray, whatever was done before, with an account of every sample."""

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from dataset_cases import pair, talk, write_dataset

from jobs import curate
from pipelines.curate.columns import find_columns
from pipelines.sample import Media, Modality
from tests.conftest import Here


def columns_of(shards: Path) -> dict[str, bytes]:
    return {str(path.relative_to(shards)): path.read_bytes() for path in sorted(shards.glob("*/columns/*/*"))}


@pytest.mark.ray
def test_columns_of_all_datasets_and_a_rerun_that_does_what_is_missing(here: Here, tmp_path: Path) -> None:
    broken = Media(modality=Modality.IMAGE, data=b"nothing", format="png")
    pictures = [pair(f"k{n}", shade=40 * n) for n in range(5)]
    write_dataset(tmp_path / "pictures", [*pictures[:4], replace(pictures[4], media={"png": broken})], 2)
    write_dataset(tmp_path / "talks", [talk("a", ["x"]), talk("b", ["y z"])], 2, {"talks": "dialogue"})
    (tmp_path / "mine.py").write_text("def letters(content) -> int:\n    return len(content.text)\n")
    (tmp_path / "mine.yaml").write_text("scorers: {letters: mine.letters}\n")
    command = ("--shards", str(tmp_path), "--catalog", str(tmp_path / "mine.yaml"))
    first = here(curate.main, *command)
    assert first.returncode == 1, "a sample could not be scored"
    assert "pictures: 5 samples by measures-" in first.stdout
    assert "(3 of 3 shards scored now)" in first.stdout
    assert "1 of 5 samples could not be scored by measures (pictures/k4: unreadable: " in first.stderr
    assert "1 of 5 samples could not be scored by similarity (pictures/k4: unreadable: " in first.stderr
    assert "Traceback" not in first.stderr
    for scorer in ("letters", "similarity", "prints", "duplicates"):
        assert f"pictures: 5 samples by {scorer}-" in first.stdout
    # By five scorers: measures, prints, letters, similarity and duplicates.
    assert "all: 35 in = 32 scored + 3 failed" in first.stdout
    before = columns_of(tmp_path)
    (gone,) = [
        tmp_path / name for name in before if name.startswith("pictures") and "measures" in name and "00001." in name
    ]
    gone.unlink()
    again = here(curate.main, *command, "--columns", "measures")
    assert again.stdout.count("(1 of 3 shards scored now)") == 1
    assert again.stdout.count("(0 of 1 shards scored now)") == 1
    assert columns_of(tmp_path) == before
    measures = find_columns(tmp_path / "pictures")["measures"]
    table = pq.read_table(tmp_path / "pictures" / "columns" / measures.id / "00001.parquet")
    assert table.select(["key", "luminance"]).to_pylist() == [
        {"key": "k2", "luminance": 80.0},
        {"key": "k3", "luminance": 120.0},
    ]


def test_a_dataset_that_is_not_there_is_told_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_dataset(tmp_path / "pictures", [pair("k0")], 2)
    with pytest.raises(SystemExit) as end:
        curate.cli.run(lambda _: curate.main(["--shards", str(tmp_path), "--datasets", "picture"]))
    assert end.value.code == 2
    assert capsys.readouterr().err == f"error: --datasets: picture not in {tmp_path}; it holds pictures\n"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            ["--columns", "sharpness"],
            "--columns: sharpness not known; there are measures, duplicates, similarity, neighbours",
        ),
        (["--held-out", "2"], "--held-out 2.0: must be 0 to 1"),
        (
            ["--catalog", "{folder}/mine.yaml"],
            "--catalog {folder}/mine.yaml: scorers: own: {folder}/mine.py: no such file",
        ),
    ],
)
def test_a_mistake_is_told_before_anything_starts(
    tmp_path: Path, options: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_dataset(tmp_path / "pictures", [pair("k0")], 2)
    (tmp_path / "mine.yaml").write_text("scorers: {own: mine.score}\n")
    arguments = ["--shards", str(tmp_path), *(option.format(folder=tmp_path) for option in options)]
    with pytest.raises(SystemExit) as end:
        curate.cli.run(lambda _: curate.main(arguments))
    assert end.value.code == 2
    assert capsys.readouterr().err == f"error: {told.format(folder=tmp_path)}\n"
