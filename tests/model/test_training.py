"""The loop without Ray: a real DeepSpeed engine in this process, on rows as the hand-over gives them."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from jobs.settings import deepspeed_settings, load_settings
from model.checkpoint import from_pretrained
from model.dialogue import IGNORE
from model.training import Job, Rank, Row, Trainer
from pipelines.sample import Item, Modality, Turn, turns_to_json

STEPS = 4


@pytest.fixture(scope="module", autouse=True)
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = dist.FileStore(str(tmp_path_factory.mktemp("store") / "file"), 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DS_ACCELERATOR", "cpu")
        patch.setenv("LOCAL_RANK", "0")  # as torchrun and Ray Train set it
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        yield
        dist.destroy_process_group()


def trainer(stage: int, *overrides: str, init: Path | None = None) -> Trainer:
    settings = load_settings(stage, "tiny", ["batch_size=4", *overrides])
    job = Job(
        settings=settings,
        deepspeed=deepspeed_settings(settings),
        num_steps=STEPS,
        alignment_variance=dict.fromkeys(Modality, 1.0),
        init=init,
        history={"configuration": "test"},
        card={},
    )
    return Trainer(job, Rank(rank=0, world_size=1, device="cpu"))


def rows(count: int = 4) -> list[Row]:
    """One sample of everything a step, the same at every step: an image in, an image and a sound out."""
    generator = np.random.default_rng(0)
    result = []
    for step in range(STEPS):
        for place in range(count):
            picture = Item(modality=Modality.IMAGE, name="jpg")
            outputs = Item(modality=Modality.IMAGE, caption="a"), Item(modality=Modality.AUDIO, caption="b")
            turns = (
                Turn(role="user", parts=(picture, f"number {place}")),
                Turn(role="assistant", parts=("Here.", *outputs)),
            )
            shapes = {"encoder": (1, 32), "image": (1, 77, 64), "audio": (1, 1, 32)}
            embeddings = {kind: generator.normal(size=s).astype(np.float32) for kind, s in shapes.items()}
            lengths = {"encoder_lengths": [1], "image_lengths": [9], "audio_lengths": [1], "video_lengths": []}
            result.append(
                {
                    "step": step,
                    "key": f"k{place}",
                    "turns": turns_to_json(turns),
                    "video": None,
                    **embeddings,
                    **lengths,
                }
            )
    return result


def run(trainer: Trainer, of: list[Row]) -> list[dict[str, float]]:
    reports: list[dict[str, float]] = []
    trainer.run(of, lambda figures, due: reports.append({**figures, "due": due}))
    return reports


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_stage_moves_exactly_the_tensors_of_its_manifest_and_lowers_the_loss(stage: int) -> None:
    at_work = trainer(stage)
    before = {name: value.detach().clone() for name, value in at_work.model.named_parameters()}
    reports = run(at_work, rows())
    moved = {name for name, value in at_work.model.named_parameters() if not torch.equal(value, before[name])}
    assert moved <= set(at_work.manifest)
    assert {name.split(".")[0] for name in moved} == {name.split(".")[0] for name in at_work.manifest}
    assert reports[-1]["loss"] < reports[0]["loss"]
    assert [report["due"] for report in reports] == [False] * (STEPS - 1) + [True]


def test_how_a_batch_is_cut_into_micro_batches_changes_nothing() -> None:
    whole, cut = ([report["loss"] for report in run(trainer(2, f"micro_batch_size={size}"), rows())] for size in (4, 1))
    assert cut == pytest.approx(whole, rel=1e-4)


def test_a_step_without_samples_is_taken_part_in_and_changes_no_loss() -> None:
    some = [row for row in rows() if row["step"] != 1]
    reports = run(trainer(1), some)
    assert len(reports) == STEPS
    assert reports[1]["loss"] == 0


def test_stage_2_learns_the_signal_tokens_alone() -> None:
    row = rows()[0]
    second, third = trainer(2), trainer(3)
    labels = [label for label in second.encode(row).dialogue.labels if label != IGNORE]
    assert labels == [*second.model.vocabulary.group(Modality.IMAGE), *second.model.vocabulary.group(Modality.AUDIO)]
    assert len([label for label in third.encode(row).dialogue.labels if label != IGNORE]) > len(labels)


@pytest.mark.parametrize("order", [(1, 2, 3), (1, 3, 2)])
def test_stages_in_any_order_keep_what_was_trained_before(order: tuple[int, ...], tmp_path: Path) -> None:
    init = None
    for stage in order:
        at_work = trainer(stage, init=init)
        if init is not None:
            model, _ = from_pretrained(init)
            kept = dict(model.named_parameters())
            for name, value in at_work.model.named_parameters():
                assert name not in kept or torch.equal(value, kept[name]), name
        reports = run(at_work, rows())
        init = tmp_path / f"stage-{stage}"
        at_work.save(init, reports[-1])
    assert init is not None
    history = json.loads((init / "config.json").read_text())["stages"]
    assert [entry["stage"] for entry in history] == list(order)
    assert (init / "adapter" / "adapter_model.safetensors").is_file()


def test_training_loads_neither_an_encoder_nor_a_decoder_nor_ray() -> None:
    unwanted = ["ray", "diffusers", "model.imagebind", "model.decoders", "pipelines.media"]
    code = f"import model.training, sys; print([name for name in {unwanted} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"
