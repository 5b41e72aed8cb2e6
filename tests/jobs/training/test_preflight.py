"""What is refused before a stage starts, all of it at once."""

from pathlib import Path

import pytest
from decoder_families import write_pipeline

from jobs.common.settings import load_settings
from jobs.training.preflight import mistakes, notes


def found(tmp_path: Path, *overrides: str, preset: str = "tiny", init: Path | None = None) -> list[str]:
    return list(mistakes(load_settings(2, preset, overrides), [], tmp_path / "run", init))


def test_the_default_settings_have_no_mistake(tmp_path: Path) -> None:
    assert found(tmp_path) == []


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("workers=3", "workers: 3, but batch_size=8 in micro-batches of 4 gives work to 2; use workers=2 or"),
        ("workers=[1, 16]", "workers: 16, but batch_size=8"),
        ("workers=[2, 1]", "workers: [2, 1] must be the fewest, then the most"),
        ("model.outputs.image.dim=48", "model.outputs.image: 77x48, but builtin:tiny/image_decoder takes 77x64"),
        ("keep_last=1000000000", "GB free, but its checkpoints may take"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(tmp_path: Path, setting: str, told: str) -> None:
    (line,) = found(tmp_path, setting)
    assert told in line
    assert "\n" not in line


def test_a_decoder_of_another_shape_or_family_or_without_a_loss_is_refused(tmp_path: Path) -> None:
    path = write_pipeline("StableDiffusionXLPipeline", tmp_path / "xl")
    decoder, rows = f"model.outputs.image.decoder={path}", ["model.outputs.image.num_queries=42"]
    (line,) = found(tmp_path, decoder)
    assert "model.outputs.image: 77x64, but" in line
    assert "takes 42x40; set num_queries and dim to these" in line
    fitting = [decoder, *rows, "model.outputs.image.dim=40", "loss.denoising_weights={image: 1.0}"]
    assert found(tmp_path, *fitting) == []
    scheduler = path / "scheduler" / "scheduler_config.json"
    scheduler.write_text('{"_class_name": "AmusedScheduler"}')
    (line,) = found(tmp_path, *fitting)
    assert "no denoising loss is known for its scheduler, a AmusedScheduler; train by alignment alone" in line
    assert found(tmp_path, *fitting[:-1]) == []
    (path / "model_index.json").write_text('{"_class_name": "PixArtSigmaPipeline"}')
    (line,) = found(tmp_path, *fitting)
    assert "is a PixArtSigmaPipeline, but image needs a StableDiffusionPipeline, StableDiffusionXLPipeline" in line


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    lines = found(tmp_path, "workers=9", "keep_last=1000000000", init=tmp_path / "absent")
    assert len(lines) == 3
    assert any(str(tmp_path / "absent") in line for line in lines)


def test_going_on_with_another_torch_is_noted(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"format": 2, "versions": {"torch": "1.0", "peft": "0.1"}}')
    assert [line.partition(", here")[0] for line in notes(tmp_path)] == ["the run was begun with torch 1.0"]
