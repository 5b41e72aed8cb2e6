"""An LLM's own answers, to prompts that are given or that it writes itself."""

import json
from itertools import islice
from pathlib import Path

import pytest

from jobs import recaption
from jobs.recaptioning import replays
from pipelines.sample import Sample
from pipelines.sources.catalog import load_catalog
from pipelines.sources.readers import READERS
from pipelines.world.dataset import unanswered
from tests.conftest import needs_small_llm


def written(folder: Path, *options: str) -> list[dict[str, str]]:
    recaption.main(["replay", "--out", str(folder), *options])
    rows: list[dict[str, str]] = json.loads((folder / replays.FILE).read_text())
    return rows


@needs_small_llm
def test_given_prompts_are_answered_as_the_llm_does_and_read_as_a_dataset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.txt").write_text("What is the capital of France?\n\nWrite a long story about the sea.\n" * 2)
    options = ("--prompts", str(tmp_path / "prompts.txt"), "--answer-tokens", "24")
    rows = written(tmp_path / "one", *options)
    assert rows == [
        {"instruction": "What is the capital of France?", "input": "", "output": "The capital of France is Paris."}
    ]
    said = capsys.readouterr().out
    assert said == f"1 rows in {tmp_path / 'one' / replays.FILE}; left out: 1 no whole answer\n"
    assert written(tmp_path / "two", *options, "--batch-size", "1") == rows
    catalog = load_catalog()
    [(name, paths)] = catalog.find(tmp_path / "one").items()
    [sample] = READERS[catalog.datasets[name].reader](catalog.datasets[name], paths)
    assert isinstance(sample, Sample)
    assert [turn.parts for turn in sample.turns] == [(row,) for row in (rows[0]["instruction"], rows[0]["output"])]


@needs_small_llm
def test_without_prompts_it_writes_them_itself_others_with_another_seed(tmp_path: Path) -> None:
    options = ("--count", "2", "--batch-size", "8", "--prompt-tokens", "48", "--answer-tokens", "64")
    rows = written(tmp_path / "one", *options)
    assert len(rows) <= 2
    assert all(row["instruction"] and row["output"] and not row["input"] for row in rows)
    assert "<|im_" not in json.dumps(rows)
    assert written(tmp_path / "two", *options) == rows


def test_a_file_without_prompts_is_told(tmp_path: Path) -> None:
    (tmp_path / "none.txt").write_text("\n \n")
    with pytest.raises(ValueError, match=r"none\.txt: holds no prompt; write one a line"):
        recaption.main(["replay", "--out", str(tmp_path / "out"), "--prompts", str(tmp_path / "none.txt")])


@needs_small_llm
def test_what_the_small_world_cannot_answer_is_asked(tmp_path: Path) -> None:
    rows = written(tmp_path, "--prompts", replays.WORLD, "--count", "6", "--seed", "11", "--answer-tokens", "64")
    asked = list(islice(unanswered(11, 200), 6))
    answered = [row["instruction"] for row in rows]
    assert answered
    assert answered == [words for words in asked if words in answered]
