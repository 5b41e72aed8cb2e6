"""Held-out samples while a stage trains: scored, then saved with the scores, then answered."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from training_cases import BATCH, make_rows, make_trainer

from jobs.common.settings import load_settings
from model.runs.run_state import TrainState, finished
from model.training import held_out
from model.training.feed import Row
from model.training.held_out import makes_samples
from model.training.validation_replies import Sampled

EVERY_TWO = ("checkpoint_every=2", "validation.generate=true")


class Pulled(Exception):
    """The plug was pulled."""


class PulledSampler:
    """Is stopped in the midst of the first reply."""

    def __init__(self, *arguments: object, **options: object) -> None:
        pass

    def __call__(self, rows: Sequence[Row]) -> list[Sampled]:
        raise Pulled


@pytest.mark.usefixtures("process_group")
def test_a_run_that_is_stopped_while_it_answers_has_its_checkpoint_and_goes_on_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = make_rows(num_steps=1)
    with monkeypatch.context() as patch:
        patch.setattr(held_out, "Sampler", PulledSampler)
        trainer = make_trainer(2, tmp_path, *EVERY_TWO, held_out_steps=1)
        with pytest.raises(Pulled):
            trainer.run(make_rows(), rows)
    (checkpoint,) = finished(tmp_path)
    state = TrainState.read(checkpoint)
    assert state.step == 2
    assert state.validation["loss"] > 0

    again = make_trainer(2, tmp_path, *EVERY_TWO, "validation.generate=false", held_out_steps=1)
    assert again.first_step == 2
    again.run(make_rows(first=2), rows)
    assert [TrainState.read(folder).step for folder in finished(tmp_path)] == [2, 4]
    assert len(rows) == BATCH


@pytest.mark.parametrize(
    ("preset", "device", "generate", "expected"),
    [
        ("tiny", "cpu", "auto", True),
        ("nextgpt_7b", "cuda:0", "auto", True),
        ("nextgpt_7b", "cpu", "true", True),
        ("tiny", "cpu", "false", False),
    ],
)
def test_replies_are_made_where_they_take_no_minutes_or_are_insisted_on(
    preset: str, device: str, generate: str, expected: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = load_settings(2, preset, [f"validation.generate={generate}"])
    assert makes_samples(settings, device) is expected
    assert capsys.readouterr().out == ""


def test_without_a_gpu_full_size_decoders_answer_nothing_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(held_out, "is_full_size", lambda modality, name: True)
    assert not makes_samples(load_settings(2, "nextgpt_7b"), "cpu")
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("note: ")
    assert "validation.generate=true" in line
