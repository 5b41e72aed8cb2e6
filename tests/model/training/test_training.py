"""The loop without Ray: a real DeepSpeed engine in this process, on rows as the hand-over gives them."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from training_cases import BATCH, STEPS, make_rows, make_trainer
from upath import UPath

from model.checkpoints.checkpoint import from_pretrained
from model.core.dialogue import IGNORE
from model.runs.run_log import RunLog
from model.runs.run_state import TrainState, best_checkpoint, finished, first_step
from model.training.divergence import Diverged
from model.training.feed import Row
from model.training.trainer import Trainer
from pipelines.sample import Modality
from pipelines.storage.files import read_json_lines

pytestmark = pytest.mark.usefixtures("process_group")


def train(trainer: Trainer, rows: list[Row], logs: Path) -> list[dict[str, float]]:
    """Trains, and reads the log."""
    with RunLog(logs, first_step=trainer.first_step, tracker=None, name="test", settings={}) as log:
        trainer.run(rows, log=log)
    return read_json_lines(logs / "log.jsonl")


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_stage_moves_exactly_the_tensors_of_its_manifest_and_lowers_the_loss(stage: int, tmp_path: Path) -> None:
    trainer = make_trainer(stage, tmp_path)
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    log = train(trainer, make_rows(), tmp_path)
    moved = {name for name, value in trainer.model.named_parameters() if not torch.equal(value, before[name])}
    assert moved == set(trainer.manifest)
    assert log[-1]["loss"] < log[0]["loss"]


def test_how_a_batch_is_cut_into_micro_batches_changes_nothing(tmp_path: Path) -> None:
    whole = train(make_trainer(2, tmp_path / "a", "micro_batch_size=8"), merged(make_rows()), tmp_path / "a")
    cut = train(make_trainer(2, tmp_path / "b"), make_rows(), tmp_path / "b")
    assert [row["loss"] for row in cut] == pytest.approx([row["loss"] for row in whole], rel=1e-4)


def merged(rows: list[Row]) -> list[Row]:
    return [{**row, "micro": 0} for row in rows]


def test_a_step_without_samples_is_taken_part_in_and_changes_no_loss(tmp_path: Path) -> None:
    some = [row for row in make_rows() if row["step"] != 1]
    log = train(make_trainer(1, tmp_path), some, tmp_path)
    assert len(log) == STEPS
    assert log[1]["loss"] == 0


def test_stage_2_learns_the_signal_tokens_alone(tmp_path: Path) -> None:
    row = make_rows()[0]
    second, third = make_trainer(2, tmp_path), make_trainer(3, tmp_path)
    labels = [label for label in second.encode(row).dialogue.labels if label != IGNORE]
    assert labels == [token for modality in Modality for token in second.model.vocabulary.group(modality)]
    assert len([label for label in third.encode(row).dialogue.labels if label != IGNORE]) > len(labels)


@pytest.mark.parametrize("order", [(1, 2, 3), (1, 3, 2)])
def test_stages_in_any_order_keep_what_was_trained_before(order: tuple[int, ...], tmp_path: Path) -> None:
    init = None
    for stage in order:
        run = tmp_path / f"stage-{stage}"
        trainer = make_trainer(stage, run, init=init)
        if init is not None:
            kept = dict(from_pretrained(init)[0].named_parameters())
            for name, value in trainer.model.named_parameters():
                assert name not in kept or torch.equal(value, kept[name]), name
        train(trainer, make_rows(), run)
        init = finished(run)[-1]
    assert init is not None
    history = json.loads((init / "config.json").read_text())["stages"]
    assert [entry["stage"] for entry in history] == list(order)
    assert (init / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_a_run_goes_on_where_it_was_bit_for_bit(zero: int, tmp_path: Path) -> None:
    settings = [f"zero={zero}", "checkpoint_every=2"]
    whole = train(make_trainer(3, tmp_path / "whole", *settings), make_rows(), tmp_path / "whole")
    broken = tmp_path / "broken"
    with pytest.raises(RuntimeError, match="pulled"):
        train(make_trainer(3, broken, *settings), stopping(make_rows(), broken), broken)
    trainer = make_trainer(3, broken, *settings)
    assert trainer.first_step == first_step(broken) == 2
    resumed = train(trainer, make_rows(first=2), broken)
    assert [row["loss"] for row in resumed] == [row["loss"] for row in whole]
    (one, _), (other, _) = (from_pretrained(tmp_path / name) for name in ("whole", "broken"))
    theirs = dict(other.named_parameters())
    assert all(torch.equal(value, theirs[name]) for name, value in one.named_parameters())


def test_a_run_that_is_asked_to_stop_is_saved_after_that_step_and_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole = train(make_trainer(3, tmp_path / "whole"), make_rows(), tmp_path / "whole")
    answers = iter([False, True])
    asked = make_trainer(3, tmp_path / "asked", asked_to_stop=lambda: next(answers))
    assert len(train(asked, make_rows(), tmp_path / "asked")) == first_step(tmp_path / "asked") == 2
    resumed = train(make_trainer(3, tmp_path / "asked"), make_rows(first=2), tmp_path / "asked")
    assert [row["loss"] for row in resumed] == [row["loss"] for row in whole]


def stopping(rows: list[Row], run: Path) -> Iterator[Row]:
    """Pulls the plug within step 4, and lets the checkpoint after step 2 be written before step 3."""
    for place, row in enumerate(rows, 1):
        last_of_step = place % BATCH == 0
        if row["step"] == 2 and last_of_step:
            while not (run / "checkpoint-000002" / "engine" / "state.json").is_file():
                time.sleep(0.05)
            time.sleep(0.3)
        if row["step"] == 3 and last_of_step:
            raise RuntimeError("the plug was pulled")
        yield row


@pytest.mark.parametrize("settings", [["precision=bf16"], ["offload_optimizer=true"], ["zero=3", "precision=bf16"]])
def test_other_precisions_and_offloading_train_and_save(settings: list[str], tmp_path: Path) -> None:
    log = train(make_trainer(3, tmp_path, *settings), make_rows(), tmp_path)
    assert log[-1]["loss"] < log[0]["loss"]
    wanted = torch.bfloat16 if "precision=bf16" in settings else torch.float32
    assert {p.dtype for p in from_pretrained(tmp_path)[0].parameters()} == {wanted}


def test_the_last_checkpoints_stay_and_the_frozen_weights_are_in_none(tmp_path: Path) -> None:
    train(make_trainer(1, tmp_path, "checkpoint_every=1", "keep_last=2"), make_rows(), tmp_path)
    kept = finished(tmp_path)
    assert [TrainState.read(folder).step for folder in kept] == [STEPS - 1, STEPS]
    assert best_checkpoint(tmp_path) is None  # nothing was held out
    for folder in kept:
        state = torch.load(folder / "engine" / "mp_rank_00_model_states.pt", weights_only=False)["module"]
        assert set(state) == {"input_projection.linear.weight", "input_projection.linear.bias"} | {
            f"new_{side}_rows.weight" for side in ("input", "output")
        }


def test_a_run_may_lie_in_a_bucket(tmp_path: Path) -> None:
    run = UPath("memory://bucket/run")
    train(make_trainer(3, run, "checkpoint_every=2", "keep_last=1"), make_rows(), tmp_path)
    assert [folder.name for folder in finished(run)] == ["checkpoint-000004"]
    again = make_trainer(3, run, "checkpoint_every=2", num_steps=STEPS + 1)
    assert again.first_step == STEPS
    (model, _) = from_pretrained(run)
    weights = dict(again.model.named_parameters())
    assert all(torch.equal(value, weights[name]) for name, value in model.named_parameters())


def test_a_loss_that_is_no_number_stops_the_run_after_saving_it(tmp_path: Path) -> None:
    rows = make_rows()
    poisoned = next(place for place, row in enumerate(rows) if row["step"] == 2 and row["image"] is not None)
    rows[poisoned] = {**rows[poisoned], "image": rows[poisoned]["image"] * float("nan")}
    with pytest.raises(Diverged, match=rf"step 3: .*{rows[poisoned]['key']}"):
        train(make_trainer(2, tmp_path), rows, tmp_path)
    (saved,) = finished(tmp_path)
    assert TrainState.read(saved).step == 2
    assert all(torch.isfinite(value).all() for value in from_pretrained(saved)[0].parameters())


def test_training_loads_neither_an_encoder_nor_a_decoder_nor_ray() -> None:
    unwanted = ["ray", "diffusers", "model.architectures.imagebind", "model.decoders.decoder", "pipelines.media.codecs"]
    code = f"import model.training.trainer, sys; print([name for name in {unwanted} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"
