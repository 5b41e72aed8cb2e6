"""A dry run: nothing starts, all that would be taken is told, and the exit code says whether it fits."""

from pathlib import Path

import pytest
from transformers import LlamaConfig

from jobs import train_stage
from jobs.common.cli import Failures
from jobs.common.settings import deepspeed_settings, load_settings
from jobs.training.dry_run import DryRun, Machine
from tests.benchmarks.training import llm_settings

LLAMA = {
    "vocab_size": 4096,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "max_position_embeddings": 1024,
}


def dry_run(tmp_path: Path, *overrides: str, gpu: bool = True, gigabytes: float, workers: int = 1) -> DryRun:
    LlamaConfig(**LLAMA).save_pretrained(tmp_path / "llm")
    settings = load_settings(3, "tiny", [*llm_settings(tmp_path / "llm"), "micro_batch_size=32", *overrides])
    machine = Machine(gpu=gpu, device=gigabytes * 1e9, host=None, workers=workers, what="a test's")
    return DryRun(settings, deepspeed_settings(settings), machine)


def test_what_fits_is_told_by_part_and_micro_batch(tmp_path: Path) -> None:
    plan = dry_run(tmp_path, gigabytes=80)
    text = "\n".join(plan.lines())
    for part in ("weights train", "frozen weights", "optimizer", "gradients", "activations", "at most, by micro-batch"):
        assert part in text
    assert "checkpoint: " in text
    assert plan.fits
    assert plan.verdict().startswith("fits: ")


def test_what_does_not_fit_is_told_with_settings_that_do(tmp_path: Path) -> None:
    plan = dry_run(tmp_path, gigabytes=3.0)
    assert not plan.fits
    assert plan.verdict().startswith("does not fit: ")
    advice = list(plan.advice())
    assert [line.partition("=")[0] for line in advice if line.startswith(("micro", "gradient"))] == [
        "micro_batch_size",
        "gradient_checkpointing",
    ]
    (size,) = (int(line.partition("=")[2].partition(":")[0]) for line in advice if line.startswith("micro_batch"))
    assert dry_run(tmp_path, f"micro_batch_size={size}", gigabytes=3.0).fits
    assert not dry_run(tmp_path, f"micro_batch_size={2 * size}", gigabytes=3.0).fits


def test_where_nothing_helps_that_is_said(tmp_path: Path) -> None:
    assert list(dry_run(tmp_path, gigabytes=0.6).advice()) == [
        "no setting makes it fit: use a smaller LLM, or a device with more memory"
    ]


def test_the_command_starts_nothing_and_tells_what_else_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--dry-run", "--stage", "2", "--preset", "tiny", "--shards", str(tmp_path / "absent")]
    command += ["--out", str(tmp_path / "run"), "--gpu-memory", "80"]
    with pytest.raises(Failures, match="absent: no such folder"):
        train_stage.main(command)
    assert "fits: " in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("init", "wrong"),
    [("builtin:world", "absent: no such folder"), ("nowhere", "nowhere: no finished checkpoint there")],
)
def test_a_run_begins_from_a_model_that_ships_by_its_name(init: str, wrong: str, tmp_path: Path) -> None:
    command = ["--dry-run", "--stage", "3", "--preset", "tiny", "--shards", str(tmp_path / "absent"), "--init", init]
    with pytest.raises(Failures, match=wrong):
        train_stage.main([*command, "--out", str(tmp_path / "run"), "--gpu-memory", "80"])


def test_a_model_that_does_not_fit_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--dry-run", "--stage", "2", "--preset", "tiny", "--shards", str(tmp_path / "absent")]
    command += ["--out", str(tmp_path / "run"), "--gpu-memory", "0.5"]
    with pytest.raises(Failures, match="does not fit: "):
        train_stage.main(command)
