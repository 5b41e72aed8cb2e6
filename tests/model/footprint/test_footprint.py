"""What a run takes of memory, predicted from its settings, against what was measured."""

from pathlib import Path

import pytest
from transformers import LlamaConfig

from jobs.common.settings import deepspeed_settings, load_settings
from model.footprint.footprint import Footprint, measure
from model.training.train_settings import Stage
from tests.benchmarks import PROCESS, in_a_process_of_its_own
from tests.benchmarks.gpu_steps import measure as measure_steps
from tests.benchmarks.gpu_steps import write_llm
from tests.benchmarks.training import llm_settings

GIB = 2**30
VICUNA = {
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 4096,
}
SMALL = VICUNA | {
    "vocab_size": 512,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
}
# torch.cuda.max_memory_allocated on an H100, in GiB, by micro-batch and gradient checkpointing: `jobs/bench.py gpu`.
MEASURED = {
    (4, True): 16.5,
    (8, True): 17.5,
    (16, True): 19.6,
    (32, True): 23.7,
    (4, False): 26.8,
    (8, False): 38.0,
    (16, False): 60.6,
}
QUICK = (8, False)


def folder_of(tmp_path: Path, llama: dict[str, int]) -> Path:
    LlamaConfig(**llama).save_pretrained(tmp_path / "llm")
    return tmp_path / "llm"


def predicted(llm: Path, *overrides: str, stage: Stage = 3, gpu: bool = True, workers: int = 1) -> Footprint:
    settings = load_settings(stage, "nextgpt_7b", [*llm_settings(llm), *overrides])
    return measure(settings, deepspeed_settings(settings), world_size=workers, gpu=gpu)


@pytest.mark.parametrize(
    ("size", "checkpointing"), [pytest.param(*key, marks=() if key == QUICK else pytest.mark.slow) for key in MEASURED]
)
def test_peaks_of_an_h100_are_met_within_3_percent(size: int, checkpointing: bool, tmp_path: Path) -> None:
    overrides = (f"batch_size={size}", f"micro_batch_size={size}", f"gradient_checkpointing={checkpointing}")
    footprint = predicted(folder_of(tmp_path, VICUNA), *overrides)
    # PyTorch does not count CUDA's own context.
    assert (footprint.training - footprint.process) / GIB == pytest.approx(MEASURED[size, checkpointing], rel=0.03)


def test_what_was_out_of_memory_on_80_gb_does_not_fit(tmp_path: Path) -> None:
    llm = folder_of(tmp_path, VICUNA)
    assert not predicted(llm, "micro_batch_size=32", "batch_size=32", "gradient_checkpointing=false").fits(80 * GIB)


CONNECTORS = tuple(
    f"model.outputs.{modality}.{setting}"
    for modality in ("image", "video", "audio")
    for setting in ("kind=connector", "num_signal_tokens=64", "layers=4", "heads=8", "width=384")
)
PROCESSES = {
    "fp32": (3, ("precision=fp32",)),
    "recomputed": (3, ("precision=fp32", "gradient_checkpointing=true")),
    "stage-1": (1, ("precision=fp32",)),
    "stage-2-bf16": (2, ("precision=bf16",)),
    "stage-2-connectors": (2, ("precision=fp32", *CONNECTORS)),
    "accumulated-bf16": (3, ("precision=bf16", "batch_size=4")),
    "zero-2": (3, ("precision=fp32", "zero=2")),
    "zero-0": (3, ("precision=fp32", "zero=0")),
}


@pytest.mark.slow
@pytest.mark.timeout(3600)  # bfloat16 takes minutes on a CPU that has no instructions for it
@pytest.mark.skipif(not PROCESS.is_file(), reason="needs the process files of Linux")
@pytest.mark.parametrize("name", PROCESSES)
def test_peaks_of_processes_on_a_cpu_are_met_within_10_percent(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, chosen = PROCESSES[name]
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    write_llm(tmp_path / "llm", SMALL)
    overrides = ("batch_size=2", "micro_batch_size=2", "gradient_checkpointing=false", "use_gpu=false", *chosen)
    of = (tmp_path / "llm", "nextgpt_7b", overrides, "cpu", 1, True, None, stage)
    figures = in_a_process_of_its_own(measure_steps, *of)
    assert figures is not None
    footprint = predicted(tmp_path / "llm", *overrides, stage=stage, gpu=False)
    assert footprint.training == pytest.approx(figures.peak_bytes, rel=0.1)


def test_more_workers_share_what_zero_spreads(tmp_path: Path) -> None:
    llm = folder_of(tmp_path, SMALL)
    alone, four = (predicted(llm, workers=workers) for workers in (1, 4))
    assert four.optimizer == pytest.approx(alone.optimizer / 4, rel=1e-6)
    assert (four.frozen, four.trained, four.gradients) == (alone.frozen, alone.trained, alone.gradients)
    spread = predicted(llm, "zero=2", workers=4)
    assert spread.gradients == pytest.approx(alone.gradients / 4, rel=1e-6)


def test_4_bits_make_frozen_weights_small_and_an_offloaded_optimizer_leaves_the_gpu(tmp_path: Path) -> None:
    llm = folder_of(tmp_path, VICUNA)
    small = predicted(llm, "model.llm.load_in_4bit=true", "offload_optimizer=true", "gradient_checkpointing=true")
    linear = 32 * (4 * 4096**2 + 3 * 4096 * 11_008)
    embeddings = 2 * 2 * 32_000 * 4096
    assert small.frozen == pytest.approx(linear * (0.5 + 4 / 64) + embeddings, rel=0.01)
    assert small.optimizer == 0
    assert small.host > 12 * 133_900_000


def test_a_connector_is_in_the_weights_and_in_the_memory_of_a_step(tmp_path: Path) -> None:
    llm = folder_of(tmp_path, SMALL)
    plain, connected = (predicted(llm, *chosen, stage=2) for chosen in ((), CONNECTORS))
    width, layers = 384, 4
    attention = 4 * width * (width + 1)
    feed_forward = 2 * 4 * width * width + 5 * width
    block = attention + feed_forward + 4 * width
    resampler = block + attention + 2 * width
    total = 0
    for queries, dim in ((77, 768), (77, 1024), (1, 512)):
        ends = (512 + 1) * width + (width + 1) * width + (width + 1) * dim
        total += layers * block + resampler + ends + (64 + queries + 2) * width
    rows = 2 * (2 + 3 * 64) * 512
    assert connected.trained == 2 * (total + rows)
    assert connected.activations > plain.activations
