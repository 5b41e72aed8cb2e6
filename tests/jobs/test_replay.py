"""Questions and answers that an LLM writes itself."""

import json
from pathlib import Path

import pytest

from jobs import replay
from model.parts import small_llm

pytestmark = pytest.mark.skipif(bool(small_llm.missing()), reason=small_llm.missing() or "installed")


def written(folder: Path, *options: str) -> list[dict[str, str]]:
    replay.main(["--out", str(folder), "--count", "3", "--batch-size", "6", "--answer-tokens", "48", *options])
    rows: list[dict[str, str]] = json.loads((folder / replay.FILE).read_text())
    return rows


def test_it_writes_whole_answers_to_different_prompts_and_counts_what_it_leaves_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = written(tmp_path / "one")
    said = capsys.readouterr().out
    assert said.startswith(f"3 rows in {tmp_path / 'one' / replay.FILE}; left out: ")
    assert len({row["instruction"] for row in rows}) == 3
    assert all(row["output"] and not row["input"] for row in rows)
    assert "<|im_" not in json.dumps(rows)
    assert written(tmp_path / "two") == rows
    assert written(tmp_path / "three", "--seed", "1") != rows


def test_answers_that_never_end_within_their_tokens_are_not_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert written(tmp_path, "--answer-tokens", "1") == []
    assert "no whole answer" in capsys.readouterr().out
