"""The architectures side by side: the same conversations for all, and what each costs."""

from pathlib import Path
from typing import Any

import pytest

from jobs import score
from jobs.common import cli
from jobs.scoring.comparison import Compared, table
from model.checkpoints.description import SHIPPED, as_path
from pipelines.storage.files import read_json

ROWS = ("understand_image", "case_image_to_sound", "turns_change")


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, Any]]:
    """Some rows of four conversations each, held by the model that ships."""
    run = tmp_path_factory.mktemp("run")
    (run / "checkpoint-1").symlink_to(as_path(SHIPPED))
    score.main(["--checkpoint", str(run), "--architectures", "--n", "4", "--rows", *ROWS])
    return {(row["row"], row["arm"]): row for row in read_json(run / "architectures.json")["rows"]}


def test_each_row_has_each_arm_but_captions_where_nothing_is_made(compared: dict[Any, Any]) -> None:
    assert list(compared) == [
        (row, arm)
        for row in ROWS
        for arm in ("joint", "scheduler", "captions")
        if (row, arm) != ("understand_image", "captions")
    ]
    for row in compared.values():
        assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1
        assert row["n"] == 4
        assert 0 < row["seconds"] <= row["seconds_p95"]


def test_replies_of_a_conversation_count_each_and_conversations_are_the_same(compared: dict[Any, Any]) -> None:
    for arm in ("joint", "scheduler", "captions"):
        assert compared["turns_change", arm]["replies"] == compared["turns_change", "joint"]["replies"] > 8
        assert compared["case_image_to_sound", arm]["replies"] == 4


def test_the_scheduler_takes_more_tokens_and_captions_none(compared: dict[Any, Any]) -> None:
    for row in ROWS:
        joint, scheduler = compared[row, "joint"], compared[row, "scheduler"]
        assert scheduler["written"] > joint["written"] > 0
        assert scheduler["read"] > joint["read"] > 0
    assert compared["turns_change", "captions"]["written"] == 0


def test_both_architectures_are_right_more_often_than_not(compared: dict[Any, Any]) -> None:
    for arm in ("joint", "scheduler"):
        assert sum(compared[row, arm]["value"] for row in ROWS) > 0.5 * len(ROWS)
        assert compared["case_image_to_sound", arm]["failures"] == 0


def test_the_table_has_a_line_an_arm(compared: dict[Any, Any]) -> None:
    lines = table([Compared(**row) for row in compared.values()]).splitlines()
    assert len(lines) == 1 + len(compared)
    assert lines[1].startswith("picture to words")
    assert {line.split()[0] for line in lines[2:] if line.startswith(" ")} == {"scheduler", "captions"}


def test_it_stands_alone(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-1").symlink_to(as_path(SHIPPED))
    with pytest.raises(cli.UsageError, match="--architectures compares on the world's exam"):
        score.main(["--checkpoint", str(tmp_path), "--architectures", "--shuffled", str(tmp_path)])
