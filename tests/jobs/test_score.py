"""The command that scores a checkpoint: the world's exam, and the held-out samples of shards."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs import score
from jobs.common import cli
from jobs.scoring.exam_report import Scored, table
from model.checkpoints.checkpoint import save_pretrained
from model.core.nextgpt import NextGPT
from model.parts.config import load_preset
from pipelines.handover.survey import hash_key, held_out
from pipelines.media.codecs import decode, encode
from pipelines.sample import Item, Media, Modality, Sample, Turn
from pipelines.storage.files import read_json, write_json, write_rows
from pipelines.storage.shards import (
    INDEX_SCHEMA,
    Manifest,
    Shard,
    TarShardWriter,
    hash_file,
    index_path,
    members,
    shard_name,
)
from pipelines.views import Kind
from pipelines.world.captions import caption
from pipelines.world.render import render
from pipelines.world.scenes import draw


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose only checkpoint has learnt nothing, of the tiny preset."""
    run = tmp_path_factory.mktemp("run")
    save_pretrained(NextGPT.from_config(load_preset("tiny"), adapter=True), run / "checkpoint-1")
    write_json(run / "settings.json", {"settings": {"validation": {"fraction": 0.5}}})
    return run


@pytest.fixture(scope="module")
def exam(run: Path) -> dict[str, Any]:
    """The scores of some rows of two conversations each, with both controls."""
    rows = ["understand_image", "make_image", "modalities", "well_formed", "turns_remember"]
    arguments = ["--checkpoint", str(run), "--n", "2", "--controls-n", "1", "--steps", "1", "--shuffled", str(run)]
    score.main([*arguments, "--rows", *rows])
    document: dict[str, Any] = read_json(run / "scores.json")
    return document


def test_the_scores_are_those_of_the_rows_asked_for(exam: dict[str, Any], run: Path) -> None:
    assert (exam["checkpoint"], exam["preset"], exam["n"]) == (str(run / "checkpoint-1"), "tiny", 2)
    rows = {row["row"]: row for row in exam["rows"]}
    assert list(rows) == ["understand_image", "make_image", "modalities", "well_formed", "turns_remember"]
    for row in rows.values():
        assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1
        assert row["n"] == (6 if row["row"] in ("modalities", "well_formed") else 2)
        assert row["target"] is not None
    assert rows["make_image"]["chance"] == pytest.approx((1 / 8 + 1 / 4 + 1 / 2 + 1 / 5) / 4)
    assert rows["make_image"]["attributes"].keys() == {"colour", "shape", "size", "place"}


def test_each_arm_stands_where_it_was_run(exam: dict[str, Any]) -> None:
    rows = {row["row"]: row for row in exam["rows"]}
    assert [name for name, row in rows.items() if row["from_text"] is not None] == ["make_image"]
    assert [name for name, row in rows.items() if row["untrained"] is None] == ["modalities"]
    assert [name for name, row in rows.items() if row["chance"] is None] == ["well_formed"]
    assert all(row["shuffled"] is not None for row in rows.values())
    assert rows["well_formed"]["value"] == rows["well_formed"]["untrained"] == 1


def test_examples_come_with_their_media(exam: dict[str, Any], run: Path) -> None:
    folder = run / "examples"
    examples = read_json(folder / "examples.json")
    assert {example["row"] for example in examples} == {row["row"] for row in exam["rows"]}
    for example in examples:
        assert example["right"] == all(example["grades"].values())
        assert [turn["role"] for turn in example["turns"]] == ["user", "assistant"] * (len(example["turns"]) // 2)
    parts = [part for example in examples for turn in example["turns"] for part in turn["parts"]]
    files = {part["file"]: part for part in parts if "file" in part}
    assert {path.name for path in folder.iterdir()} == {"examples.json", *files}
    for name, part in files.items():
        modality = Modality(part["modality"])
        decode(Media(modality=modality, data=(folder / name).read_bytes(), format=name.rpartition(".")[2]))
    shown = next(example for example in examples if example["row"] == "understand_image")["turns"][0]["parts"]
    assert shown[0]["modality"] == "image"
    assert shown[0]["caption"] in "".join(example["wanted"] for example in examples)


def test_rows_and_numbers_are_checked_at_once(run: Path) -> None:
    with pytest.raises(cli.UsageError) as caught:
        score.main(["--checkpoint", str(run), "--rows", "make_smell", "--n", "0", "--steps", "0", "--controls-n", "-1"])
    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == [
        "--rows",
        "--n 0",
        "--controls-n -1",
        "--steps 0",
    ]


def test_a_row_missed_is_shown_as_missed() -> None:
    def row(value: float, target: float | None, from_text: float | None = None) -> Scored:
        return Scored(row="r", title="a row", value=value, n=200, target=target, from_text=from_text)

    assert row(0.9, 0.9).verdict.kind == "met"
    assert row(0.89, 0.9).verdict.kind == "missed"
    assert row(0.92, 0.9, from_text=0.96).verdict.kind == "met"
    assert row(0.92, 0.9, from_text=0.98).verdict.kind == "missed"
    assert row(0.1, None).verdict.kind == "reported"
    lines = table([row(0.89, 0.9)]).splitlines()
    assert lines[0].split() == [
        "%",
        "value",
        "95",
        "%",
        "n",
        "chance",
        "untrained",
        "shuffled",
        "from",
        "text",
        "target",
    ]
    assert lines[1].split() == ["a", "row", "89.0", "-", "200", "-", "-", "-", "-", "90.0", "MISSED"]


def write_pairs(directory: Path, count: int) -> list[str]:
    """Shards of pictures with captions; returns their keys."""
    directory.mkdir(parents=True)
    tar, rows = directory / shard_name(0), []
    with TarShardWriter(tar) as writer:
        for index in range(count):
            subject = draw(0, index)[Modality.IMAGE]
            item = Item(modality=Modality.IMAGE, name="png", caption=caption(subject, index))
            turns = (Turn(role="user", parts=(item,)), Turn(role="assistant", parts=(item.caption,)))
            sample = Sample(key=f"{index:04}", source="", turns=turns, media={"png": encode(render(subject, index))})
            offset, length = writer.write(sample.key, members(sample))
            rows.append({"key": sample.key, "offset": offset, "length": length})
    write_rows(index_path(tar), rows, INDEX_SCHEMA)
    shard = Shard(name=tar.name, samples=count, bytes=tar.stat().st_size, sha256=hash_file(tar))
    views: dict[str, Kind] = {"pictures_enc": "caption", "pictures_dec": "generate"}
    Manifest(
        dataset=directory.name,
        rows=count,
        samples=count,
        samples_per_shard=count,
        rejected={},
        shards=[shard],
        views=views,
        output_items={},
        input_items=count,
        licence="none",
    ).write(directory)
    return [row["key"] for row in rows]


def test_any_preset_is_scored_on_what_was_held_out(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sacrebleu")
    pytest.importorskip("rouge_score")
    keys = write_pairs(tmp_path / "shards" / "pictures", 12)
    apart = int(held_out(np.array([hash_key(key) for key in keys], np.uint64), 0.5).sum())
    assert 2 < apart < 12
    score.main(["--checkpoint", str(run / "checkpoint-1"), "--shards", str(tmp_path / "shards"), "--steps", "1"])
    rows = {row["row"]: row for row in read_json(run / "checkpoint-1" / "scores.json")["rows"]}
    assert rows.keys() == {
        *(f"pictures_enc/{name}" for name in ("bleu_4", "chrf", "rouge_l")),
        *(f"pictures_dec/{name}" for name in ("image_to_medium", "image_frechet")),
    }
    assert {row["n"] for row in rows.values()} == {apart}
    assert rows["pictures_dec/image_frechet"]["value"] > 0
    assert "no text tower" in capsys.readouterr().out
