"""Measures a 7B model and its frozen parts on a GPU, as Markdown tables. Nothing is downloaded.

The weights are random, in the shapes of Vicuna-7B, ImageBind huge and the three decoders. Nearly every line of a table
is measured in its own process; see `gpu_steps.py` for how a training step's FLOPs are counted.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from jobs.common.settings import deepspeed_settings, load_settings
from model.architectures.imagebind import ImageBindConfig
from model.footprint.footprint import measure as predict
from model.parts.mixed_precision import PRECISIONS
from pipelines.sample import Modality
from tests.benchmarks import (
    gpu_decoders,
    gpu_encoder,
    gpu_small,
    in_a_process_of_its_own,
    say,
    table_head,
    table_row,
    timed,
)
from tests.benchmarks.decoder_shapes import PUBLISHED
from tests.benchmarks.gpu_decoders import DecoderSizes
from tests.benchmarks.gpu_memory import gibibytes
from tests.benchmarks.gpu_small import SmallSizes
from tests.benchmarks.gpu_steps import Figures, measure, write_llm
from tests.benchmarks.text_encoders import SHAPES, draw_captions, load_encoders
from tests.benchmarks.training import llm_settings

# Dense bfloat16 FLOP/s by part of a device's name (NVIDIA's data sheets); the first match counts.
PEAK_FLOPS = {"H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12}
CAPTION_BATCH = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """What to measure: a preset with parts of given shapes, micro-batches and batches, and the amount of work.

    `batches` are pairs of a global batch and its micro-batch.
    """

    preset: str
    llama: Mapping[str, Any]
    text_encoders: Mapping[Modality, Mapping[str, int]]
    batches: Sequence[tuple[int, int]]
    num_steps: int
    num_captions: int
    decoders: DecoderSizes
    imagebind: ImageBindConfig
    small: SmallSizes


VICUNA = {
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 4096,
}
FULL = Size(
    preset="nextgpt_7b",
    llama=VICUNA,
    text_encoders=SHAPES,
    batches=((4, 4), (8, 8), (16, 16), (32, 32), (64, 8)),
    num_steps=10,
    num_captions=4096,
    decoders=gpu_decoders.FULL,
    imagebind=ImageBindConfig.huge(),
    small=SmallSizes(
        preset="nextgpt_7b_24gb",
        llama=VICUNA,
        imagebind=ImageBindConfig.huge(),
        decoders=PUBLISHED,
        micro_batches=(4, 8, 16),
        num_steps=10,
    ),
)


def run(device: str = "cuda", size: Size = FULL, only: Sequence[str] = ()) -> Iterator[str]:
    """Measures everything, or only some sections; yields the lines of the tables as they are measured.

    Raises ValueError if there is no such device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("bench.py gpu: needs a CUDA device, and this machine has none")
    name = torch.cuda.get_device_name() if device == "cuda" else device
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as folder:
        sections: dict[str, Callable[[], Iterator[str]]] = {
            "training": lambda: _training(Path(folder), device, name, size),
            "captions": lambda: _captions(Path(folder), device, size),
            "decoders": lambda: gpu_decoders.lines(Path(folder), device, size.decoders),
            "encoder": lambda: gpu_encoder.lines(device, size.imagebind),
            "small": lambda: gpu_small.lines(Path(folder), device, size.small),
        }
        yield f"{name}, torch {torch.__version__}, random weights:"
        for section in only or sections:
            yield ""
            with timed() as watch:
                yield from sections[section]()
            say(f"gpu: {section} took {watch.seconds:.0f} s")


def peak_flops(name: str) -> float | None:
    """The peak of a device by its name, in dense bfloat16 FLOP/s; None if unknown."""
    return next((flops for part, flops in PEAK_FLOPS.items() if part in name), None)


def _training(folder: Path, device: str, name: str, size: Size) -> Iterator[str]:
    settings = load_settings(3, size.preset)
    yield (
        f"Stage 3 of `{size.preset}`, {settings.precision}, LoRA of rank {settings.model.lora.r}, samples of "
        f"{settings.model.max_length} tokens, ZeRO-{settings.zero}:"
    )
    yield ""
    yield from table_head(
        ["batch", "micro-batch", "gradient checkpointing", "samples/s", "tokens/s", "MFU", "predicted", "peak memory"]
    )
    write_llm(folder / "llm", size.llama)
    for checkpointing in ("true", "false"):
        for batch, micro in size.batches:
            say(f"gpu: batch of {batch}, micro-batch of {micro}, gradient_checkpointing={checkpointing}")
            overrides = (f"batch_size={batch}", f"micro_batch_size={micro}", f"gradient_checkpointing={checkpointing}")
            found = in_a_process_of_its_own(measure, folder / "llm", size.preset, overrides, device, size.num_steps)
            *cells, peak = ["", "", "", "out of memory"] if found is None else _cells(found, peak_flops(name))
            told = "yes" if checkpointing == "true" else "no"
            predicted = _predicted(folder / "llm", size.preset, overrides, device)
            yield table_row([str(batch), str(micro), told, *cells, predicted, peak])


def _predicted(llm: Path, preset: str, overrides: Sequence[str], device: str) -> str:
    """The prediction of `train_stage --dry-run`; on a GPU without CUDA's context, as PyTorch counts."""
    settings, gpu = load_settings(3, preset, [*llm_settings(llm), *overrides]), device.startswith("cuda")
    footprint = predict(settings, deepspeed_settings(settings), world_size=1, gpu=gpu)
    return gibibytes(footprint.training - (footprint.process if gpu else 0))


def _cells(figures: Figures, peak: float | None) -> list[str]:
    return [
        f"{figures.samples / figures.seconds:.3g}",
        f"{figures.tokens / figures.seconds:,.0f}",
        "" if peak is None else f"{figures.flops / figures.seconds / peak:.1%}",
        gibibytes(figures.peak_bytes),
    ]


def _captions(folder: Path, device: str, size: Size) -> Iterator[str]:
    yield from table_head(["text encoder", "shape", "precision", "captions/s"])
    for modality, shape in size.text_encoders.items():
        captions = draw_captions(modality, size.num_captions)
        # A pooled encoder always runs in float32.
        precisions = PRECISIONS[:1] if modality is Modality.AUDIO else PRECISIONS
        encoders = load_encoders(modality, folder / modality.value, captions, precisions, shape, device)
        for precision, encoder in zip(precisions, encoders, strict=True):
            encoder(captions[:CAPTION_BATCH])
            with timed() as watch:
                for start in range(0, len(captions), CAPTION_BATCH):
                    encoder(captions[start : start + CAPTION_BATCH])
            positions, width = encoder.shape
            cells = [str(modality), f"{positions} x {width}", precision, f"{len(captions) / watch.seconds:,.0f}"]
            yield table_row(cells)
