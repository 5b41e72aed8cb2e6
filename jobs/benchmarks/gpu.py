"""What a GPU does: training steps of a 7B model and captions a second, as Markdown tables. Nothing is fetched.

The weights are random, in the shapes of Vicuna-7B and of the three decoders' text encoders. Each line of the training
table is a process of its own; see `gpu_steps.py` for what is counted.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from jobs.benchmarks import in_a_process_of_its_own, say, timed
from jobs.benchmarks.gpu_steps import Figures, measure, write_llm
from jobs.benchmarks.text_encoders import SHAPES, draw_captions, load_encoders
from jobs.settings import load_settings
from model.precision import PRECISIONS
from pipelines.sample import Modality

# Dense bfloat16 FLOP/s by what stands in a device's name (NVIDIA's data sheets); the first that fits counts.
PEAK_FLOPS = {"H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12}
CAPTION_BATCH = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """What is measured: a preset about an LLM and text encoders of given shapes, which micro-batches, and how much."""

    preset: str
    llama: Mapping[str, Any]
    text_encoders: Mapping[Modality, Mapping[str, int]]
    micro_batches: Sequence[int]
    num_steps: int
    num_captions: int


FULL = Size(
    preset="nextgpt_7b",
    llama={
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "intermediate_size": 11_008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 4096,
    },
    text_encoders=SHAPES,
    micro_batches=(4, 8, 16, 32),
    num_steps=10,
    num_captions=4096,
)


def run(device: str = "cuda", size: Size = FULL) -> Iterator[str]:
    """Measures everything; yields the lines of the tables as they come.

    Raises ValueError where there is no such device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("bench.py gpu: needs a CUDA device, and this machine has none")
    name = torch.cuda.get_device_name() if device == "cuda" else device
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as folder:
        yield from _training(Path(folder), device, name, size)
        yield ""
        yield from _captions(Path(folder), device, size)


def peak_flops(name: str) -> float | None:
    """What a device of this name can do, dense bfloat16 FLOP/s; None where it is not known."""
    return next((flops for part, flops in PEAK_FLOPS.items() if part in name), None)


def _training(folder: Path, device: str, name: str, size: Size) -> Iterator[str]:
    settings = load_settings(3, size.preset)
    yield (
        f"{name}, torch {torch.__version__}: stage 3 of `{size.preset}`, random weights, {settings.precision}, "
        f"LoRA of rank {settings.model.lora.r}, samples of {settings.model.max_length} tokens, ZeRO-{settings.zero}"
    )
    yield ""
    yield "| micro-batch | gradient checkpointing | samples/s | tokens/s | MFU | peak memory |"
    yield "|---|---|---|---|---|---|"
    write_llm(folder / "llm", size.llama)
    for checkpointing in ("true", "false"):
        for count in size.micro_batches:
            say(f"gpu: micro-batch of {count}, gradient_checkpointing={checkpointing}")
            overrides = (f"batch_size={count}", f"micro_batch_size={count}", f"gradient_checkpointing={checkpointing}")
            found = in_a_process_of_its_own(measure, folder / "llm", size.preset, overrides, device, size.num_steps)
            cells = ["", "", "", "out of memory"] if found is None else _cells(found, peak_flops(name))
            yield "| " + " | ".join([str(count), "yes" if checkpointing == "true" else "no", *cells]) + " |"


def _cells(figures: Figures, peak: float | None) -> list[str]:
    return [
        f"{figures.samples / figures.seconds:.3g}",
        f"{figures.tokens / figures.seconds:,.0f}",
        "" if peak is None else f"{figures.flops / figures.seconds / peak:.1%}",
        f"{figures.peak_bytes / 2**30:.1f} GiB",
    ]


def _captions(folder: Path, device: str, size: Size) -> Iterator[str]:
    yield "| text encoder | shape | precision | captions/s |"
    yield "|---|---|---|---|"
    for modality, shape in size.text_encoders.items():
        captions = draw_captions(modality, size.num_captions)
        # A pooled encoder stays in float32 whatever it is told.
        precisions = PRECISIONS[:1] if modality is Modality.AUDIO else PRECISIONS
        encoders = load_encoders(modality, folder / modality.value, captions, precisions, shape, device)
        for precision, encoder in zip(precisions, encoders, strict=True):
            encoder(captions[:CAPTION_BATCH])
            with timed() as watch:
                for start in range(0, len(captions), CAPTION_BATCH):
                    encoder(captions[start : start + CAPTION_BATCH])
            positions, width = encoder.shape
            cells = [str(modality), f"{positions} x {width}", precision, f"{len(captions) / watch.seconds:,.0f}"]
            yield "| " + " | ".join(cells) + " |"
