"""Predicts the memory and disk usage of a training run from its settings; no weights are read or allocated.

The step itself runs on the meta device, where allocations are counted (`meta_step.py`); what DeepSpeed 0.19 keeps is
computed from the number of trained weights. Validated against the peaks of `jobs/bench.py gpu`; the estimate for CPU
processes was fitted to four runs, and is checked on others by slow tests only (tests/model/test_footprint.py). All
sizes are in bytes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

from torch import nn

from model.checkpoints.checkpoint import trained_state
from model.core.adapter import is_adapter_tensor
from model.core.nextgpt import NextGPT
from model.footprint.meta_step import MetaDenoiser, meta_model, step_bytes
from model.parts.config import ModelConfig
from model.training.engine import DTYPES, accumulation
from model.training.train_settings import TrainSettings

_FLOAT = 4
_MOMENTS = 2 * _FLOAT
# NF4 with a float32 scale for each block of 64 weights (Dettmers et al. 2023), as bitsandbytes keeps it.
_NF4_BYTES = 0.5 + _FLOAT / 64
_BUCKET_ELEMENTS = 500_000_000  # DeepSpeed's default reduce_bucket_size
_LIVE_ELEMENTS = 1_000_000_000  # and its default stage3_max_live_parameters
# A process with Python, torch, Ray and DeepSpeed: measured on a CPU. With CUDA's libraries, and CUDA's context on the
# GPU: typical values, not measured here.
_CPU_PROCESS = 700_000_000
_GPU_PROCESS = 3_000_000_000
_CUDA_CONTEXT = 550_000_000
# A GPU's allocator cannot use all memory, because of fragmentation.
_USABLE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """A worker's use of device memory, in bytes.

    Permanent: `process` (CUDA's context, or the libraries), `frozen` and `trained` weights, the `optimizer` (float32
    copies of the weights, moments), and the `decoders` of sample replies once loaded. Temporary, one after another:
    `gradients`, reduction `buckets` and `activations` during a step; `update` while the optimizer runs; `saving`, the
    copies in main memory from which a checkpoint is written. On a CPU the last two include the memory of the step and
    of the weights before DeepSpeed flattened them, since glibc keeps freed blocks of a few MB. `host` is a GPU worker's
    use of main memory, 0 on a CPU. `checkpoint` is the size of a checkpoint on disk, over all workers.
    """

    process: int
    frozen: int
    trained: int
    optimizer: int
    decoders: int
    gradients: int
    buckets: int
    activations: int
    update: int
    saving: int
    host: int
    checkpoint: int

    @property
    def held(self) -> int:
        """The memory in use between steps."""
        return self.process + self.frozen + self.trained + self.optimizer + self.decoders

    @property
    def training(self) -> int:
        """The peak during training steps."""
        return self.held + max(self.gradients + self.buckets + self.activations, self.update)

    @property
    def peak(self) -> int:
        """The peak, including checkpoints."""
        return max(self.training, self.held + self.saving)

    def fits(self, device: int) -> bool:
        """Whether it fits into a device with this many bytes, leaving headroom for fragmentation."""
        return self.peak <= _USABLE * device


def trained_weights(config: ModelConfig) -> int:
    """The number of weights in a checkpoint after all stages; reads only the LLM's configuration.

    Raises OSError if the LLM is neither on this machine nor described.
    """
    return sum(tensor.numel() for tensor in trained_state(meta_model(config, local_files_only=True)).values())


def measure(
    settings: TrainSettings,
    deepspeed: Mapping[str, Any],
    *,
    world_size: int,
    gpu: bool,
    decoders: int = 0,
    step: int | None = None,
) -> Footprint:
    """Estimates the footprint of each of `world_size` workers.

    `decoders` is the size of the decoders for sample replies; `step` is the result of `step_bytes`, if known. Raises
    OSError if the LLM's configuration cannot be read, and ValueError if the LLM cannot be used.
    """
    dtype = DTYPES[settings.precision]
    model = meta_model(settings.model, dtype, adapter=settings.stage == 3)
    names = set(model.set_stage(settings.stage))
    num_trained = sum(p.numel() for name, p in model.named_parameters() if name in names)
    trained = num_trained * dtype.itemsize
    steps = accumulation(settings, world_size)
    engine = _engine(settings, deepspeed, num_trained, world_size, gpu)
    if step is None:
        step = step_bytes(settings, gpu=gpu, accumulates=steps > 1)
    # Without earlier micro-batches, gradients are allocated within the step.
    activations = step if steps > 1 else max(0, step - trained)
    frozen, unpacked = _frozen(model, settings)
    if settings.zero == 3:
        frozen, trained, gathered = _sharded(frozen, trained, dtype.itemsize, world_size)
        unpacked += gathered
    kept = sum(tensor.numel() for tensor in trained_state(model).values())
    saving = engine.saved + kept * dtype.itemsize
    heap = 0 if gpu else activations + engine.gradients + (trained if settings.zero == 1 else 0)
    return Footprint(
        process=_CUDA_CONTEXT if gpu else _CPU_PROCESS,
        frozen=frozen,
        trained=trained,
        optimizer=engine.optimizer,
        decoders=decoders,
        gradients=engine.gradients,
        buckets=engine.buckets,
        activations=activations + unpacked,
        update=heap + engine.update,
        saving=0 if gpu else heap + saving,
        host=_GPU_PROCESS + engine.host + saving if gpu else 0,
        checkpoint=kept * dtype.itemsize + world_size * engine.saved,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Engine:
    """DeepSpeed's share of a footprint; `saved` is the size of this worker's files in a checkpoint."""

    optimizer: int
    gradients: int
    buckets: int
    update: int
    host: int
    saved: int


def _engine(
    settings: TrainSettings, deepspeed: Mapping[str, Any], num_trained: int, world_size: int, gpu: bool
) -> _Engine:
    """The memory of DeepSpeed's optimizer at each ZeRO stage, for `num_trained` weights.

    ZeRO keeps a float32 copy of its partition, even of float32 weights; without ZeRO only bfloat16 weights have one.
    Buckets are allocated in full, but unused pages count on a GPU only.
    """
    zero = deepspeed.get("zero_optimization", {})
    itemsize = DTYPES[settings.precision].itemsize
    part = ceil(num_trained / world_size) if settings.zero else num_trained
    has_copy = settings.zero > 0 or settings.precision == "bf16"
    states = part * (_MOMENTS + (_FLOAT if has_copy else 0))
    elements = int(zero.get("reduce_bucket_size", _BUCKET_ELEMENTS))
    buckets = 0
    if settings.zero:
        buckets = (elements if gpu else min(elements, num_trained)) * itemsize * (2 if zero.get("overlap_comm") else 1)
    else:
        buckets = num_trained * itemsize
    gradients = (part if settings.zero > 1 else num_trained) * itemsize
    # The partition's gradient in float32, and AdamW's temporary for the square root of its moments.
    update = gradients + part * 2 * _FLOAT if gpu else part * 3 * _FLOAT
    if not settings.zero:  # updates tensor by tensor, after reducing gradients in a flat copy
        update = 2 * num_trained * itemsize
    saved = states + (num_trained if settings.zero < 3 else part) * itemsize
    if not settings.offload_optimizer:
        return _Engine(optimizer=states, gradients=gradients, buckets=buckets, update=update, host=0, saved=saved)
    host = states + part * (_FLOAT + itemsize) + num_trained * itemsize
    return _Engine(
        optimizer=0 if gpu else host, gradients=gradients, buckets=buckets, update=gradients, host=host, saved=saved
    )


def _frozen(model: NextGPT, settings: TrainSettings) -> tuple[int, int]:
    """The size of frozen weights and buffers, and that of the largest 4-bit weight while it is dequantised."""
    packed = set(_packed(model)) if settings.model.llm.load_in_4bit else set[str]()
    total, largest = 0.0, 0
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            continue
        size = parameter.numel() * parameter.element_size()
        total += parameter.numel() * _NF4_BYTES if name in packed else size
        largest = max(largest, size if name in packed else 0)
    denoisers = [MetaDenoiser(modality, settings).unet for modality in settings.loss.denoised]
    total += sum(p.numel() * p.element_size() for unet in denoisers for p in unet.parameters())
    total += sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    return round(total), largest


def _packed(model: NextGPT) -> Iterator[str]:
    """The names of the weights that bitsandbytes packs: the LLM's linear layers except its head."""
    head = model.llm.get_output_embeddings()
    for name, module in model.named_modules():
        ours = not name.startswith("llm.") or module is head or is_adapter_tensor(name)
        if isinstance(module, nn.Linear) and not ours:
            yield f"{name}.weight"


def _sharded(frozen: int, trained: int, itemsize: int, world_size: int) -> tuple[int, int, int]:
    """A worker's frozen and trained weights under ZeRO-3, and the most it gathers from others at a time."""
    gathered = min(frozen + trained, _LIVE_ELEMENTS * itemsize)
    return ceil(frozen / world_size), ceil(trained / world_size), gathered
