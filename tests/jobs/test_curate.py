"""The command that curates: on Ray, whatever was done before, with an account of every sample."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from dataset_cases import pair, picture, talk, write_dataset
from encoder_folders import write_clap, write_siglip, write_tokenizer

from jobs import curate
from model.encoders.media_encoders import load_encoder
from model.encoders.text_towers import load_text_tower
from pipelines.curate.columns import find_columns
from pipelines.media.codecs import decode, encode
from pipelines.sample import Audio, Item, Media, Modality, Sample, Turn
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


@pytest.mark.ray
def test_each_modality_is_compared_with_captions_by_an_encoder_of_its_own(here: Here, tmp_path: Path) -> None:
    write_siglip(tmp_path / "siglip")
    write_clap(tmp_path / "clap")
    seen, heard = {"name": str(tmp_path / "siglip"), "dim": 32}, {"name": str(tmp_path / "clap"), "dim": 64}
    encoder = {"image": seen | {"patches": 4}, "video": seen | {"patches": 4}, "audio": heard | {"patches": 4}}
    (tmp_path / "mine.yaml").write_text(json.dumps({"base": "nextgpt_modern", "encoder": encoder}))
    shards = tmp_path / "shards"
    note = Sample(
        key="k9",
        source="rows.json#9",
        turns=(
            Turn(role="user", parts=(Item(modality=Modality.AUDIO, name="flac", caption="a low do"),)),
            Turn(role="assistant", parts=("a low do",)),
        ),
        media={"flac": encode(Audio(waveform=np.linspace(-1, 1, 48000, dtype=np.float32)[None], sample_rate=48000))},
    )
    write_dataset(shards / "pictures", [pair("k0", "a red circle"), pair("k1", "a blue square", 200)], 2)
    write_dataset(shards / "notes", [note], 2)
    command = ("--shards", str(shards), "--columns", "similarity", "--preset", str(tmp_path / "mine.yaml"))
    refused = here(curate.main, *command)
    assert refused.stderr.splitlines()[-1].endswith("siglip: no tokenizer for the encoder's text tower")
    for folder in ("siglip", "clap"):
        write_tokenizer(tmp_path / folder)
    done = here(curate.main, *command)
    assert done.returncode == 0, done.stderr
    assert "all: 3 in = 3 scored + 0 failed" in done.stdout
    expected = {"pictures": ["a red circle", "a blue square"], "notes": ["a low do"]}
    for name, captions in expected.items():
        folder = shards / name / "columns" / find_columns(shards / name)["similarity"].id
        file = folder / "00000.parquet"
        found = pq.read_table(file)["similarity"].to_pylist()
        tower = str(tmp_path / ("clap" if name == "notes" else "siglip"))
        media = [decode(note.media["flac"])] if name == "notes" else [decode(picture(shade)) for shade in (0, 200)]
        features = load_encoder(tower)(media)
        units = features / np.linalg.norm(features, axis=1, keepdims=True)
        cosines = (units * np.asarray(load_text_tower(tower)(captions))).sum(axis=1)
        assert found == pytest.approx(cosines.tolist(), abs=2e-5)


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
