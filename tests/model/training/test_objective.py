"""A stage that first aligns, then denoises: the share of steps, what each phase counts, going on across the switch."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training_cases import STEPS, make_rows, make_trainer, with_latents

from model.checkpoints.checkpoint import from_pretrained
from model.core.vocabulary import SignalVocabulary
from model.runs.run_log import RunLog
from model.runs.run_state import first_step
from model.training.feed import Row
from model.training.objective import Objective
from model.training.train_settings import LossSettings
from model.training.trainer import Trainer
from pipelines.sample import Modality
from pipelines.storage.files import read_json_lines

IMAGE = Modality.IMAGE
VOCABULARY = SignalVocabulary(512, {IMAGE: 4})
# Of images alone, whose frozen UNet is the quickest.
JOINT = (
    "model.outputs.image.kind=connector",
    "model.outputs.image.layers=1",
    "model.outputs.image.num_signal_tokens=8",
    "model.outputs.image.null=learned",
    "loss.denoising_weights={image: 2.0}",
    "loss.alignment_weights_after={image: 0.25}",
    "loss.null_share=0.5",
)


def objective(num_steps: int, **settings: Any) -> Objective:
    loss = LossSettings.model_validate({"denoising_weights": {IMAGE: 2.0}, **settings})
    return Objective(loss, num_steps, VOCABULARY, {IMAGE: 1.0}, lambda modality: f"denoiser of {modality}")


@given(num_steps=st.integers(1, 10_000), share=st.floats(0, 0.99))
def test_the_share_of_steps_is_exact(num_steps: int, share: float) -> None:
    planned = objective(num_steps, denoise_from=share)
    before = [step for step in range(num_steps) if not planned.at(step).criterion.denoisers]
    assert before == list(range(len(before))), "once begun, denoising goes on"
    assert abs(len(before) - share * num_steps) <= 0.5


def test_each_phase_has_its_weights_and_validation_those_of_the_last() -> None:
    planned = objective(
        10, denoise_from=0.5, alignment_weights={IMAGE: 1.5, "audio": 3.0}, alignment_weights_after={IMAGE: 0.5}
    )
    before, after = planned.at(4), planned.at(5)
    assert (before.weights.alignment[IMAGE], after.weights.alignment[IMAGE]) == (1.5, 0.5)
    assert before.weights.alignment[Modality.AUDIO] == after.weights.alignment[Modality.AUDIO] == 3.0
    assert (before.criterion.denoisers, after.criterion.denoisers) == ({}, {IMAGE: "denoiser of image"})
    held_out = planned.held_out
    assert (held_out.weights, held_out.criterion.denoisers) == (after.weights, after.criterion.denoisers)
    assert (after.criterion.null_share, held_out.criterion.null_share) == (0.1, 0.0)


def test_by_default_denoising_counts_from_the_first_step() -> None:
    planned = objective(10)
    assert planned.switch == 0
    assert planned.at(0) is planned.last


def train(trainer: Trainer, rows: list[Row], logs: Path, held_out: list[Row]) -> list[dict[str, float]]:
    with RunLog(logs, first_step=trainer.first_step, tracker=None, name="test", settings={}) as log:
        trainer.run(rows, held_out, log)
    return read_json_lines(logs / "log.jsonl")


@pytest.mark.usefixtures("process_group")
def test_a_run_goes_on_bit_for_bit_from_before_at_and_after_the_switch(tmp_path: Path) -> None:
    settings = ("loss.denoise_from=0.5", "checkpoint_every=1", "keep_last=4", *JOINT)
    rows, held_out = with_latents(make_rows()), with_latents(make_rows(num_steps=1))

    def trainer(run: Path) -> Trainer:
        return make_trainer(2, run, *settings, held_out_steps=1)

    whole = train(trainer(tmp_path / "whole"), rows, tmp_path / "whole", held_out)
    losses = [row for row in whole if "loss" in row]
    assert ["image_denoising" in row for row in losses] == [False, False, True, True]
    assert len(losses) == STEPS
    scores = [row for row in whole if "validation/loss" in row]
    names = {"validation/image_denoising", "validation/image_mean_ratio", "validation/image_cosine"}
    assert all(names <= row.keys() for row in scores), "validation tells both from the start"
    (expected, _) = from_pretrained(tmp_path / "whole")
    assert expected.output_projections["image"].gain.item() == 0.5
    for done in (1, 2, 3):
        run = Path(shutil.copytree(tmp_path / "whole", tmp_path / f"after-{done}"))
        for later in range(done + 1, STEPS + 1):
            shutil.rmtree(run / f"checkpoint-{later:06d}")
        assert first_step(run) == done
        resumed = train(trainer(run), [row for row in rows if row["step"] >= done], run, held_out)
        assert [row["loss"] for row in resumed if "loss" in row] == [row["loss"] for row in losses]
        theirs = dict(from_pretrained(run)[0].named_parameters())
        assert all(torch.equal(value, theirs[name]) for name, value in expected.named_parameters())


@pytest.mark.usefixtures("process_group")
def test_gradients_reach_what_stage_2_trains_and_no_denoiser(tmp_path: Path) -> None:
    trainer = make_trainer(2, tmp_path, *JOINT)
    unet = trainer.objective.last.criterion.denoisers[IMAGE].unet
    frozen = {name: value.clone() for name, value in unet.state_dict().items()}
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainer.run(with_latents(make_rows()))
    moved = {name for name, value in trainer.model.named_parameters() if not torch.equal(value, before[name])}
    assert moved == set(trainer.manifest)
    assert any(name.startswith("output_projections.image.resampler.") for name in moved)
    assert all(torch.equal(value, frozen[name]) for name, value in unet.state_dict().items())


@pytest.mark.usefixtures("process_group")
def test_sharded_weights_train_and_save_a_connector_with_its_scale(tmp_path: Path) -> None:
    trainer = make_trainer(2, tmp_path, "zero=3", "precision=bf16", *JOINT)
    before = {name: value.detach().clone() for name, value in trainer.model.output_projections.named_parameters()}
    assert not any(value.numel() for value in before.values()), "they are sharded"
    log = train(trainer, with_latents(make_rows()), tmp_path, [])
    assert log[-1]["image_alignment"] < log[0]["image_alignment"]
    part = from_pretrained(tmp_path)[0].output_projections["image"]
    assert part.gain.item() == 0.5
    assert all(value.isfinite().all() and value.any() for value in part.parameters())


@pytest.mark.usefixtures("process_group")
def test_a_loss_that_jumps_where_denoising_begins_stops_no_run(tmp_path: Path) -> None:
    """What denoising counts has nothing to do with what alignment did: a weight of 1,000 alone is no divergence."""
    steps = 24
    loud = ("loss.denoise_from=0.5", *JOINT, "loss.denoising_weights={image: 1000.0}", "loss.stop_above=5")
    trainer = make_trainer(2, tmp_path, *loud, num_steps=steps)
    log = train(trainer, with_latents(make_rows(num_steps=steps)), tmp_path, [])
    losses = [row["loss"] for row in log if "loss" in row]
    assert losses[12] > 5 * max(losses[:12])


def test_a_null_condition_takes_the_place_of_its_share_of_the_conditions() -> None:
    criterion = objective(1, null_share=0.25).last.criterion
    conditions_KLD, null_LD = torch.ones(4000, 1, 2), torch.zeros(1, 2)
    mixed = criterion._some_null(conditions_KLD, null_LD, torch.Generator().manual_seed(0))
    assert mixed.mean().item() == pytest.approx(0.75, abs=0.03)
    assert set(mixed.flatten(1).mean(1).tolist()) == {0.0, 1.0}
