"""The benchmark of a GPU at toy size on the CPU: that it runs, and what it counts."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.architectures.imagebind import ImageBindConfig
from pipelines.sample import Modality
from tests.benchmarks import PROCESS, gpu, gpu_decoders, gpu_encoder, gpu_small, gpu_steps, training
from tests.benchmarks.decoder_shapes import PUBLISHED, DecoderShape
from tests.benchmarks.gpu_decoders import DecoderSizes
from tests.benchmarks.gpu_small import SmallSizes

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


def _toy(shape: DecoderShape, channels: int) -> DecoderShape:
    """The published parts, narrow and shallow; what leads from one to the other stays."""
    widths = (32,) * len(shape.unet["block_out_channels"])
    cross = widths if shape.vocoder else channels
    unet = {**shape.unet, "block_out_channels": widths, "cross_attention_dim": cross, "sample_size": 8}
    unet |= {"layers_per_block": 1, "attention_head_dim": 8}
    if shape.vocoder:
        unet |= {"projection_class_embeddings_input_dim": channels, "sample_size": 16}
    return replace(
        shape,
        unet=unet,
        vae={**shape.vae, "block_out_channels": (32,) * len(shape.vae["block_out_channels"])},
        text_encoder={**TEXT_ENCODER, "hidden_size": channels, "projection_dim": channels, "vocab_size": 1000},
        vocoder=shape.vocoder and {**shape.vocoder, "upsample_initial_channel": 32},
    )


# Widths as the preset `tiny` has them.
WIDTHS = {Modality.IMAGE: 64, Modality.VIDEO: 48, Modality.AUDIO: 32}
DECODERS = {modality: _toy(PUBLISHED[modality], width) for modality, width in WIDTHS.items()}
IMAGEBIND = ImageBindConfig(
    vision_width=64,
    vision_layers=1,
    vision_heads=4,
    audio_width=48,
    audio_layers=1,
    audio_heads=4,
    image_size=28,
    embed_dim=32,
)
TOY = gpu.Size(
    preset="tiny",
    llama=LLAMA,
    text_encoders=dict.fromkeys(Modality, TEXT_ENCODER),
    batches=((2, 2), (4, 2)),
    num_steps=1,
    num_captions=8,
    decoders=DecoderSizes(
        shapes=DECODERS,
        batches=dict.fromkeys(Modality, (2,)),
        precisions=("float32", "bfloat16"),
        settings={modality: {"steps": 2} for modality in Modality},
    ),
    imagebind=IMAGEBIND,
    small=SmallSizes(
        preset="tiny",
        llama={**LLAMA, "vocab_size": 600},  # more than the tokenizer has, as the benchmark's own LLM
        imagebind=IMAGEBIND,
        decoders=DECODERS,
        micro_batches=(2,),
        num_steps=1,
    ),
)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process for each line costs minutes of imports on a busy machine."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    for module in (gpu_decoders, gpu_encoder, gpu_small):
        monkeypatch.setattr(module, "in_a_process_of_its_own", lambda function, *arguments: function(*arguments))
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)


def _cells(lines: Iterable[str]) -> list[list[str]]:
    """The rows of tables, headings left out."""
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    return [row for row in rows if any(cell[:1].isdigit() for cell in row)]


needs_linux = pytest.mark.skipif(not PROCESS.is_file(), reason="needs the process files of Linux")


@pytest.mark.slow
@needs_linux
def test_the_tables_of_training_come_out_at_toy_size_without_a_gpu() -> None:
    rows = _cells(gpu.run("cpu", TOY, ["training"]))
    assert [row[:3] for row in rows] == [["2", "2", "yes"], ["4", "2", "yes"], ["2", "2", "no"], ["4", "2", "no"]]
    assert all(row[-1].endswith("GiB") for row in rows)


@needs_linux
def test_the_table_of_captions_comes_out() -> None:
    assert [row[:3] for row in _cells(gpu.run("cpu", TOY, ["captions"]))] == [
        ["image", "77 x 32", "float32"],
        ["image", "77 x 32", "bfloat16"],
        ["video", "77 x 32", "float32"],
        ["video", "77 x 32", "bfloat16"],
        ["audio", "1 x 32", "float32"],
    ]


@needs_linux
def test_the_table_of_decoders_comes_out(in_this_process: None) -> None:
    rows = _cells(gpu.run("cpu", TOY, ["decoders"]))
    assert [row[0] for row in rows] == ["image", "image", "video", "video", "audio", "audio"]
    assert [row[2] for row in rows] == ["float32", "bfloat16"] * 3
    assert rows[0][1] == "64 x 64, 2 steps"
    assert all(float(row[4]) > 0 for row in rows)


@needs_linux
def test_the_table_of_the_encoder_comes_out(in_this_process: None) -> None:
    rows = _cells(gpu.run("cpu", TOY, ["encoder"]))
    assert [row[0] for row in rows] == ["float32", "float32 as TF32", "bfloat16 (autocast)", "prepared by one core"]


@needs_linux
def test_the_tables_of_the_small_card_come_out(in_this_process: None) -> None:
    training_row, *replies = _cells(gpu.run("cpu", TOY, ["small"]))
    assert (training_row[0], training_row[-1]) == ("2", "yes")
    assert [row[0] for row in replies] == ["decoders on the device: one", "decoders on the device: all"]
    assert all((row[1], row[-1]) == ("3", "yes") for row in replies)


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


@needs_linux
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
