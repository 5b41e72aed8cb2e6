"""Steps of stage 3 on one device without Ray: random weights drawn on the device, synthetic samples, FLOPs counted.

Times `Trainer.step` (transfer, forward, losses, backward, update) on a DeepSpeed engine with one rank and the batch in
memory. Model FLOPs of a step, with N weights in the layers' frozen matrices, A in the adapter, hidden width H,
vocabulary V and L layers:

    4 N + 6 A   per token: 2 forward and 2 for the input's gradient; the adapter takes 2 more for its own gradient
    6 L H T^2   per sample of T tokens: attention, of which the causal half is counted
    4 H V       per token with a label: the frozen head

Recomputation by gradient checkpointing is not counted, nor are projections, norms and the optimizer, which are small.
The share of a device's peak is the MFU of Chowdhery et al. 2022 (arXiv:2204.02311, appendix B).
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from jobs.common.settings import deepspeed_settings, load_settings
from model.core.adapter import base_of, is_adapter_tensor
from model.core.batch import Batch, collate
from model.core.dialogue import IGNORE
from model.core.nextgpt import NextGPT
from model.parts.builtin import resolve
from model.parts.library_logs import quiet_libraries
from model.training.engine import DTYPES, Rank
from model.training.feed import Row
from model.training.train_settings import Stage
from model.training.trainer import Job, Trainer
from pipelines.sample import Item, Modality, Turn, turns_to_json
from pipelines.world.captions import caption
from pipelines.world.scenes import draw
from tests.benchmarks import Stopwatch, timed
from tests.benchmarks.gpu_memory import limit, reserved, wait_for
from tests.benchmarks.training import held_bytes, llm_settings, process_group

WARMUP_STEPS = 3
CAPTION_TOKENS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Steps of one configuration: seconds, samples, tokens and FLOPs per step, and the peak memory in bytes.

    `reserved_bytes` is the memory that PyTorch reserved on a GPU.
    """

    seconds: float
    samples: int
    tokens: int
    flops: float
    peak_bytes: int
    reserved_bytes: int


class DrawnTrainer(Trainer):
    """A trainer whose base LLM has random weights, drawn on its device, by the configuration in its folder."""

    def _build(self, checkpoint: Path | None) -> NextGPT:
        assert checkpoint is None
        settings, dtype = self.job.settings, DTYPES[self.job.settings.precision]
        config = transformers.AutoConfig.from_pretrained(settings.model.llm.name)
        with torch.device(self.rank.device):
            llm = transformers.AutoModelForCausalLM.from_config(
                config, dtype=dtype, attn_implementation=settings.model.llm.attention
            )
        model = NextGPT(settings.model, llm)
        for name, part in model.named_children():
            if name != "llm":
                part.to(self.rank.device, dtype)
        if settings.stage == 3:
            model.add_adapter()
        if settings.gradient_checkpointing:
            llm.activation_checkpointing_enable({"use_reentrant": False})
        return model.train()


def write_llm(folder: Path, llama: Mapping[str, Any]) -> None:
    """Writes an LLM's configuration, without weights, and the tiny tokenizer."""
    transformers.LlamaConfig(**llama).save_pretrained(folder)
    with quiet_libraries():
        transformers.AutoTokenizer.from_pretrained(resolve("builtin:tiny/llm")).save_pretrained(folder)


def measure(
    llm: Path,
    preset: str,
    overrides: Sequence[str],
    device: str,
    num_steps: int,
    is_drawn: bool = True,
    memory: int | None = None,
    stage: Stage = 3,
) -> Figures | None:
    """Times steps in this process; None if they do not fit into device memory, or into `memory` bytes of it.

    The LLM's weights are random, or read from its folder.
    """
    if memory is not None:
        limit(device, memory)
    with tempfile.TemporaryDirectory(prefix="bench-gpu-run-") as folder, process_group(Path(folder) / "group"):
        try:
            kind = DrawnTrainer if is_drawn else Trainer
            run = Path(folder) / "run"
            return _measure(make_trainer(llm, preset, overrides, device, run, kind, stage=stage), num_steps)
        except torch.OutOfMemoryError:
            return None


def make_trainer(
    llm: Path,
    preset: str,
    overrides: Sequence[str],
    device: str,
    run: Path,
    kind: type[Trainer] = DrawnTrainer,
    *,
    stage: Stage = 3,
) -> Trainer:
    """A trainer in this process, around the LLM configured in a folder."""
    settings = load_settings(stage, preset, [*llm_settings(llm), *overrides])
    job = Job(
        settings=settings,
        deepspeed=deepspeed_settings(settings),
        num_steps=1000,
        held_out_steps=0,
        alignment_variance=dict.fromkeys(Modality, 1.0),
        run=run,
        init=None,
        history={},
        card={},
    )
    return kind(job, Rank(rank=0, world_size=1, device=device))


def _measure(trainer: Trainer, num_steps: int) -> Figures:
    batch = make_batch(trainer)
    count = trainer.accumulation
    # A global batch of many micro-batches warms up within one step, which takes proportionally longer.
    warmup, num_steps = max(1, WARMUP_STEPS // count), max(2, num_steps // count)
    for step in range(warmup):
        trainer.step(step, [batch] * count)
    watch = _time(trainer, [batch] * count, range(warmup, warmup + num_steps))
    return Figures(
        seconds=watch.seconds / num_steps,
        samples=count * len(batch.keys),
        tokens=count * int(batch.attention_mask_BT.sum()),
        flops=count * model_flops(trainer.model, batch),
        peak_bytes=held_bytes()[1],
        reserved_bytes=reserved(trainer.rank.device),
    )


def _time(trainer: Trainer, batches: Sequence[Batch], steps: range) -> Stopwatch:
    """Seconds until the device has finished all steps."""
    with timed() as watch:
        for step in steps:
            trainer.step(step, batches)
        wait_for(trainer.rank.device)
    return watch


def make_batch(trainer: Trainer) -> Batch:
    """One micro-batch of synthetic samples of maximum length."""
    rows = [_row(trainer, number) for number in range(trainer.job.settings.micro_batch_size)]
    return collate([trainer.encode(row) for row in rows], int(trainer.tokenizer.pad_token_id or 0))


def _row(trainer: Trainer, number: int) -> Row:
    """A medium of each modality in and out; two fifths are the user's text, and the answer is truncated."""
    config, random = trainer.job.settings.model, np.random.default_rng(number)
    text = trainer.tokenizer.encode(" ".join(caption(draw(0, n)[Modality.IMAGE], n) for n in range(32)))
    asked = trainer.tokenizer.decode(text[: 2 * config.max_length // 5], skip_special_tokens=True)
    turns = (
        Turn(role="user", parts=(*(Item(modality=m, name=m.value) for m in Modality), asked)),
        Turn(role="assistant", parts=("Here.", *(Item(modality=m, caption="-") for m in config.outputs), asked * 4)),
    )
    row: dict[str, Any] = {"key": str(number), "turns": turns_to_json(turns)}
    row["encoder"] = random.standard_normal((len(Modality), *config.encoder.inputs[None].shape), np.float32)
    for modality in Modality:
        output = config.outputs[modality]
        row[modality.value] = random.standard_normal((1, output.num_queries, output.dim), np.float32)
        row[f"{modality.value}_lengths"] = [min(CAPTION_TOKENS, output.num_queries)]
    return row


def model_flops(model: NextGPT, batch: Batch) -> float:
    """The model FLOPs of a step on a batch, by the formula above."""
    config = base_of(model.llm).config.get_text_config()
    layers = {name: p.numel() for name, p in model.llm.named_parameters() if ".layers." in name and p.ndim == 2}
    adapter = sum(count for name, count in layers.items() if is_adapter_tensor(name))
    frozen = sum(layers.values()) - adapter
    lengths_B = batch.attention_mask_BT.sum(1).double()
    learned = int((batch.labels_BT[:, 1:] != IGNORE).sum())
    attention = 6 * config.num_hidden_layers * config.hidden_size * float(lengths_B.square().sum())
    head = 4 * config.hidden_size * config.vocab_size * learned
    return (4 * frozen + 6 * adapter) * float(lengths_B.sum()) + attention + head
