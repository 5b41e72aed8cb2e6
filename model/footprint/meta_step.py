"""Counts the memory of a training step on the meta device: the real model, losses and backward pass, without weights.

Code on the meta device computes nothing, but allocates and frees as it would. Memory that a kernel uses internally is
not seen; `fused_attention` models the one kernel for which that matters. Suffixes as in nextgpt.py and batch.py.
"""

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import diffusers
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM

from model.core.batch import Batch, InputFeatures, Targets
from model.core.losses import TERMS, Criterion, total
from model.core.nextgpt import NextGPT
from model.decoders.denoising import Denoiser
from model.parts.builtin import resolve
from model.parts.config import MediaEncoderConfig, ModelConfig
from model.parts.library_logs import quiet_libraries
from model.parts.published import described
from model.training.engine import DTYPES
from model.training.objective import Objective
from model.training.train_settings import TrainSettings
from pipelines.sample import Modality

# The share of a sample's tokens that belong to answers, and so have logits.
LEARNED_SHARE = 0.6


def meta_model(
    config: ModelConfig, dtype: torch.dtype = torch.float32, *, adapter: bool = True, local_files_only: bool = False
) -> NextGPT:
    """The model without weights; only the LLM's `config.json` is read, or its description if the LLM is not here.

    One that is not described is read from the hub. Linear layers are unquantised even for an LLM in 4 bits. Raises
    OSError if there is no such LLM.
    """
    sizes = AutoConfig.from_pretrained(resolve(described(config.llm.name)), local_files_only=local_files_only)
    attention = "sdpa" if config.llm.attention == "flash_attention_2" else config.llm.attention
    with torch.device("meta"), quiet_libraries():
        llm = AutoModelForCausalLM.from_config(sizes, dtype=dtype, attn_implementation=attention)
        model = NextGPT(config, llm)
        for name, part in model.named_children():
            if name != "llm":
                part.to(dtype)
        if adapter:
            model.add_adapter()
    return model.train()


def step_bytes(settings: TrainSettings, *, gpu: bool, accumulates: bool) -> int:
    """The peak memory of a forward and backward pass in bytes, without weights but with their gradients.

    Assumes a micro-batch of samples of maximum length, with one input and one output item of each modality. With
    `accumulates`, gradients exist already from earlier micro-batches and are not counted.
    """
    model = meta_model(settings.model, DTYPES[settings.precision], adapter=settings.stage == 3)
    model.set_stage(settings.stage)
    if settings.gradient_checkpointing:
        model.llm.activation_checkpointing_enable({"use_reentrant": False})
    if gpu:
        _fuse_dropout(model)
    if accumulates:
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    variance = dict.fromkeys(Modality, 1.0)
    denoiser = partial(MetaDenoiser, settings=settings)
    criterion = Objective(settings.loss, 1, model.vocabulary, variance, denoiser).last.criterion
    counts_T = torch.ones(len(TERMS), device="meta")
    with fused_attention(), Allocations(_held(model, criterion), num_learned(settings)) as allocations:
        batch = _batch(settings, criterion.denoisers)
        losses = criterion(model(batch), batch, torch.Generator())
        total(losses, counts_T).backward()  # type: ignore[no-untyped-call]
    return allocations.peak


def num_learned(settings: TrainSettings) -> int:
    """The number of positions in a micro-batch with logits: answers, or in stage 2 only signal tokens."""
    signals = sum(settings.model.signal_groups.values())
    answer = max(signals, round(LEARNED_SHARE * settings.model.max_length))
    return settings.micro_batch_size * (signals if settings.stage == 2 else answer)


def _held(model: nn.Module, criterion: Criterion) -> Iterator[Tensor]:
    for module in (model, *(denoiser.unet for denoiser in criterion.denoisers.values())):
        yield from module.buffers()
        for parameter in module.parameters():
            yield parameter
            if parameter.grad is not None:
                yield parameter.grad


def _batch(settings: TrainSettings, denoisers: Any) -> Batch:
    config, num_rows = settings.model, settings.micro_batch_size
    zeros = partial(torch.zeros, device="meta")
    ids_BT = zeros(num_rows, config.max_length, dtype=torch.long)
    rows_M = zeros(num_rows, dtype=torch.long)

    def items(key: Modality | None, encoder: MediaEncoderConfig) -> InputFeatures:
        rows_N = rows_M.repeat(1 if key else len(Modality))
        return InputFeatures(values_N=zeros(len(rows_N), *encoder.shape), rows_N=rows_N, positions_N=rows_N)

    targets = {}
    for modality, output in config.outputs.items():
        denoiser = denoisers.get(modality)
        targets[modality] = Targets(
            embeddings_MLD=zeros(num_rows, output.num_queries, output.dim),
            lengths_M=rows_M,
            rows_M=rows_M,
            positions_M=rows_M,
            group_length=output.num_signal_tokens,
            latents_K=zeros(num_rows, *denoiser.latent_shape) if denoiser else zeros(0),
            latent_items_K=rows_M if denoiser else rows_M[:0],
        )
    return Batch(
        input_ids_BT=ids_BT,
        labels_BT=torch.zeros_like(ids_BT),
        attention_mask_BT=torch.zeros_like(ids_BT),
        features={key: items(key, encoder) for key, encoder in config.encoder.inputs.items()},
        targets=targets,
        keys=(),
    )


def _fuse_dropout(model: nn.Module) -> None:
    """Models dropout on a GPU, which keeps one byte per value; on a CPU it keeps noise in the values' dtype."""

    def fused(values: Tensor, p: float) -> Tensor:
        return torch.native_dropout(values, p, True)[0]

    for module in model.modules():
        if isinstance(module, nn.Dropout) and module.p and module.training:
            module.forward = partial(fused, p=module.p)  # type: ignore[method-assign]


class MetaDenoiser(Denoiser):
    """A denoiser without weights; its configuration must be on this machine, described, or on the hub."""

    def __init__(self, modality: Modality, settings: TrainSettings) -> None:
        decoder = described(settings.model.outputs[modality].decoder)
        super().__init__(modality, decoder, "meta", DTYPES[settings.precision], settings.gradient_checkpointing)

    def _load_part(self, path: str, part: str, kind: str, dtype: torch.dtype) -> Any:
        made = getattr(diffusers, kind)
        with torch.device("meta"):
            return made.from_config(made.load_config(path, subfolder=part)).to(dtype)


_ATEN = torch.ops.aten


class Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context that counts the bytes of new tensors in `now` and `peak`; tensors in `before` are not counted.

    Meta tensors have no values: code that reads one (is anything masked?) gets True, and a boolean mask always selects
    `num_selected` positions.
    """

    def __init__(self, before: Iterable[Tensor], num_selected: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._num_selected = num_selected
        self._before = {tensor.untyped_storage()._cdata for tensor in before}
        self._storages: dict[int, weakref.ref] = {}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is _ATEN._local_scalar_dense.default:
            return True
        result = self._selected(*args) if _is_masked(func, args) else func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._count(value)
        return result

    def _selected(self, values: Tensor, indices: Sequence[Tensor | None]) -> Tensor:
        mask = indices[0]
        assert mask is not None
        return values.new_empty(self._num_selected, *values.shape[mask.ndim :])

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._before or key in self._storages:
            return

        def freed(_: Any) -> None:
            self.now -= size
            del self._storages[key]

        self._storages[key] = weakref.ref(storage, freed)
        self.now += size
        self.peak = max(self.peak, self.now)


@contextmanager
def fused_attention() -> Iterator[None]:
    """A context in which attention allocates as fused kernels do: its output and one float32 per row, no score matrix.

    On the meta device PyTorch would choose the kernel that materialises all scores. The function is patched, because
    PyTorch modes do not apply to recomputation in gradient checkpointing.
    """

    def attend(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return _ATEN._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, True)[0]

    with patch.object(functional, "scaled_dot_product_attention", attend):
        yield


def _is_masked(func: Any, args: Sequence[Any]) -> bool:
    """Whether values are selected by a boolean mask, whose count is unknown on the meta device."""
    return func is _ATEN.index.Tensor and args[1][0] is not None and args[1][0].dtype is torch.bool
