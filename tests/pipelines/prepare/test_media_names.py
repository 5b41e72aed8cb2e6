"""Clips called by their YouTube id, as people have them: each row gets its own, and never another's."""

import csv
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import yaml
from upath import UPath

from pipelines.media.folder import load_rows
from pipelines.media.policy import MediaPolicy
from pipelines.prepare.media_names import with_found_names
from pipelines.prepare.staging import Source, stage_rows, staged_rows
from pipelines.sample import Reject, Sample
from pipelines.sources.catalog import load_catalog
from pipelines.storage.files import to_path

RATE = 16_000
NAMES = {
    "own id": "{id}.wav",
    "YouTube id": "{ytid}.wav",
    "in FLAC": "{ytid}.flac",
    "with its start": "{ytid}_{start}.wav",
    "with its start, in FLAC": "{ytid}_{start}.flac",
    "with start and end": "{ytid}_{start}_{end}.wav",
    "as AudioSet's tables": "{ytid}_{start}.000_{end}.000.wav",
    "in milliseconds": "{ytid}_{start}000_{end}000.wav",
    "with zeros": "{ytid}_{start:06}.wav",
    "as AudioLDM's": "Y{ytid}.wav",
    "as MusicCaps'": "[{ytid}]-[{start}-{end}].wav",
}
CLIPS = [("91139", "r1nicOVtvkQ", 130, 0.2), ("11543", "_0-8vTLHTL_", 30, 0.4), ("7", "s7knHCFW82w", 300, 0.6)]


def sound(level: float, suffix: str) -> bytes:
    """Half a second of one level, by which it is told from others."""
    file = io.BytesIO()
    soundfile.write(file, np.full(RATE // 2, level, np.float32), RATE, format=suffix.upper())
    return file.getvalue()


def write_table(root: Path, clips: list[tuple[str, str, int, float]]) -> Path:
    folder = root / "T-X_pair_data" / "audiocap"
    (folder / "audios").mkdir(parents=True)
    with (folder / "train.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["audiocap_id", "youtube_id", "start_time", "caption"])
        table.writerows((number, ytid, start, f"sound {level}") for number, ytid, start, level in clips)
    return folder / "audios"


def prepared(root: Path, out: Path) -> list[Sample | Reject]:
    """Each row of the catalog's audiocap with its medium, or why not."""
    catalog = load_catalog()
    entry, path = catalog.datasets["audiocap"], catalog.find(root)["audiocap"]
    media = catalog.media_folder(entry, root, path)
    source = Source(entry=entry, path=path, media=media, directory=out, samples_per_shard=8)
    staged = stage_rows(source)
    rows = [row for number in range(len(staged.chunks)) for row in staged_rows(source, number)]
    return [*staged.rejects(), *load_rows(rows, media, MediaPolicy(keep_originals=True))]


def heard(result: Sample | Reject) -> tuple[str, str, float]:
    """The key and caption of a row, and the level of its sound."""
    assert isinstance(result, Sample), result
    [item] = result.items()
    [medium] = result.media.values()
    waveform, rate = soundfile.read(io.BytesIO(medium.data))
    assert (rate, len(waveform)) == (RATE, RATE // 2)
    return result.key, item.caption, round(float(waveform.mean()), 2)


@pytest.mark.parametrize("name", NAMES)
def test_a_clip_is_found_under_any_name_that_people_give_it(tmp_path: Path, name: str) -> None:
    audios = write_table(tmp_path, CLIPS)
    for number, ytid, start, level in CLIPS:
        file = NAMES[name].format(id=number, ytid=ytid, start=start, end=start + 10)
        (audios / file).write_bytes(sound(level, file.rpartition(".")[2]))
        (audios / file).with_suffix(".json").write_text("{}")
    results = prepared(tmp_path, tmp_path / "out")
    assert [heard(result) for result in results] == [(number, f"sound {level}", level) for number, _, _, level in CLIPS]
    assert all("other_names" not in result.meta for result in results if isinstance(result, Sample))


def test_another_clip_of_the_same_video_is_not_taken_for_it(tmp_path: Path) -> None:
    audios = write_table(tmp_path, [("1", "r1nicOVtvkQ", 30, 0.2), ("2", "r1nicOVtvkQ", 300, 0.4), ("3", "x*", 1, 0.6)])
    (audios / "r1nicOVtvkQ_300.wav").write_bytes(sound(0.4, "wav"))
    (audios / "xaaaaaaaaaa_1.wav").write_bytes(sound(0.6, "wav"))
    one, two, three = prepared(tmp_path, tmp_path / "out")
    assert heard(two) == ("2", "sound 0.4", 0.4)
    for reject, file in ((one, "1.wav"), (three, "3.wav")):
        assert isinstance(reject, Reject)
        assert (reject.stage, reject.reason) == ("media", f"missing file: {file}")


def test_the_clips_are_found_on_an_object_store(tmp_path: Path) -> None:
    audios = write_table(tmp_path, CLIPS)
    for _, ytid, start, level in CLIPS:
        (audios / f"{ytid}_{start}.wav").write_bytes(sound(level, "wav"))
    store = UPath("memory://clips")
    for file in tmp_path.rglob("*.*"):
        (store / file.relative_to(tmp_path).as_posix()).parent.mkdir(parents=True, exist_ok=True)
        (store / file.relative_to(tmp_path).as_posix()).write_bytes(file.read_bytes())
    results = prepared(to_path("memory://clips"), tmp_path / "out")
    assert [heard(result)[2] for result in results] == [0.2, 0.4, 0.6]


@pytest.mark.parametrize("columns", [("ytid", "start_s"), ("YTID", "start_seconds"), ("youtube_id", "start_time")])
def test_an_entry_of_ones_own_needs_no_names_for_clips(
    tmp_path: Path, read_path: Callable[..., list[Sample | Reject]], columns: tuple[str, str]
) -> None:
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([[*columns, "caption"], ["_0-8vTLHTL_", "30", "a bell"]])
    (tmp_path / "_0-8vTLHTL__30_40.wav").write_bytes(sound(0.2, "wav"))
    rows = read_path("pairs", tmp_path / "rows.csv", modality="audio")
    [row] = with_found_names(rows, tmp_path)
    [result] = load_rows([row], tmp_path, MediaPolicy(keep_originals=True)) if isinstance(row, Sample) else [row]
    assert heard(result)[1:] == ("a bell", 0.2)


def test_a_name_of_ones_own_may_be_one_of_several_too(tmp_path: Path) -> None:
    entry = {
        "reader": "pairs",
        "modality": "audio",
        "paths": ["rows.parquet"],
        "media": "clips",
        "media_name": ["{part:03}/{id}-*.flac", "{part:03}/{other}.flac"],
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"mine": entry}))
    rows = {"id": ["a[1]", "b"], "part": [7.0, 12.0], "other": [None, "c"], "caption": ["one", "two"]}
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    for file, level in {"007/a[1]-x.flac": 0.2, "012/c.wav": 0.4}.items():
        (tmp_path / "clips" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "clips" / file).write_bytes(sound(level, file.rpartition(".")[2]))
    mine = load_catalog(extra=[tmp_path / "mine.yaml"]).datasets["mine"]
    source = Source(
        entry=mine,
        path=tmp_path / "rows.parquet",
        media=tmp_path / "clips",
        directory=tmp_path / "out",
        samples_per_shard=8,
    )
    stage_rows(source)
    results = load_rows(staged_rows(source, 0), source.media, MediaPolicy(keep_originals=True))
    assert [heard(result)[1:] for result in results] == [("one", 0.2), ("two", 0.4)]
