"""The benchmark of a GPU at toy size on the CPU: that it runs, and what it counts."""

from pathlib import Path

import pytest

from jobs.benchmarks import gpu, gpu_steps, training
from pipelines.sample import Modality

LLAMA = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 1024,
}
TEXT_ENCODER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "projection_dim": 32,
}
TOY = gpu.Size(
    preset="tiny",
    llama=LLAMA,
    text_encoders=dict.fromkeys(Modality, TEXT_ENCODER),
    micro_batches=(2,),
    num_steps=1,
    num_captions=8,
)


@pytest.fixture(autouse=True)
def without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")


@pytest.mark.slow
@pytest.mark.skipif(not training.PROCESS.is_file(), reason="needs the process files of Linux")
def test_the_tables_of_a_gpu_come_out_at_toy_size_without_one() -> None:
    lines = list(gpu.run("cpu", TOY))

    training_rows = [line for line in lines if line.startswith("| 2 |")]
    assert [line.split(" | ")[1] for line in training_rows] == ["yes", "no"]
    assert all(line.endswith("GiB |") for line in training_rows)
    encoders = [line.split(" | ")[:3] for line in lines if " x 32 |" in line]
    assert encoders == [
        ["| image", "77 x 32", "float32"],
        ["| image", "77 x 32", "bfloat16"],
        ["| video", "77 x 32", "float32"],
        ["| video", "77 x 32", "bfloat16"],
        ["| audio", "1 x 32", "float32"],
    ]


def test_flops_are_counted_by_the_weights_the_tokens_and_the_squares_of_the_lengths(tmp_path: Path) -> None:
    gpu_steps.write_llm(tmp_path / "llm", LLAMA)
    with training.process_group(tmp_path / "group"):
        sizes = ("batch_size=2", "micro_batch_size=2")
        trainer = gpu_steps.make_trainer(tmp_path / "llm", "tiny", sizes, "cpu", tmp_path / "run")
        batch = gpu_steps.make_batch(trainer)

    tokens, learned = 2 * 512, int((batch.labels_BT[:, 1:] >= 0).sum())
    assert int(batch.attention_mask_BT.sum()) == tokens
    frozen, adapter = 3 * (4 * 64 * 64 + 3 * 64 * 176), 3 * 4 * 2 * 8 * 64
    attention = 2 * 3 * 6 * 64 * 512**2
    head = 4 * 64 * 512 * learned
    assert gpu_steps.model_flops(trainer.model, batch) == tokens * (4 * frozen + 6 * adapter) + attention + head


@pytest.mark.skipif(not training.PROCESS.is_file(), reason="needs the process files of Linux")
def test_steps_on_a_device_are_measured_whole(tmp_path: Path) -> None:
    gpu_steps.write_llm(tmp_path / "llm", LLAMA)
    overrides = ("batch_size=2", "micro_batch_size=2", "gradient_checkpointing=true")
    figures = gpu_steps.measure(tmp_path / "llm", "tiny", overrides, "cpu", 1)
    assert figures is not None
    assert (figures.samples, figures.tokens) == (2, 2 * 512)
    assert min(figures.seconds, figures.flops, figures.peak_bytes) > 0


def test_a_device_is_known_by_its_name() -> None:
    assert gpu.peak_flops("NVIDIA H200") == 989e12
    assert gpu.peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert gpu.peak_flops("cpu") is None
