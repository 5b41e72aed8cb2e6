"""A training step on the meta device: the real model, losses and backward pass, without weights, values or time.

Suffixes: those of nextgpt.py and batch.py.
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

from model.core.batch import Batch, Targets
from model.core.losses import TERMS, Criterion, total
from model.core.nextgpt import NextGPT
from model.decoders.denoising import Denoiser
from model.parts.builtin import resolve
from model.parts.config import ModelConfig
from model.parts.library_logs import quiet_libraries
from model.training.engine import DTYPES
from model.training.train_settings import TrainSettings
from pipelines.sample import Modality

# The share of a sample's tokens that are an answer's, and so have logits.
LEARNED_SHARE = 0.6


def meta_model(
    config: ModelConfig, dtype: torch.dtype = torch.float32, *, adapter: bool = True, local_files_only: bool = False
) -> NextGPT:
    """The model without its weights, of which the LLM's `config.json` alone is read, from a hub if need be.

    Its linear layers are whole where the LLM is to be in 4 bits. Raises OSError when there is no such LLM.
    """
    described = AutoConfig.from_pretrained(resolve(config.llm.name), local_files_only=local_files_only)
    attention = "sdpa" if config.llm.attention == "flash_attention_2" else config.llm.attention
    with torch.device("meta"), quiet_libraries():
        llm = AutoModelForCausalLM.from_config(described, dtype=dtype, attn_implementation=attention)
        model = NextGPT(config, llm)
        for name, part in model.named_children():
            if name != "llm":
                part.to(dtype)
        if adapter:
            model.add_adapter()
    return model.train()


def step_bytes(settings: TrainSettings, *, gpu: bool, accumulates: bool) -> int:
    """What a forward and a backward pass take at most, in bytes, besides weights; gradients of the weights are in it.

    One micro-batch of samples as long as they may be, with an item of each modality in and out. With `accumulates`,
    gradients of micro-batches before are there already, and not in it.
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
    criterion = Criterion(
        vocabulary=model.vocabulary,
        alignment_variance=dict.fromkeys(Modality, 1.0),
        padding_weight=settings.loss.padding_weight,
        legacy=settings.loss.alignment == "l2",
        denoisers={modality: MetaDenoiser(modality, settings) for modality in settings.loss.denoised},
    )
    counts_T = torch.ones(len(TERMS), device="meta")
    with fused_attention(), Allocations(_held(model, criterion), num_learned(settings)) as allocations:
        batch = _batch(settings, criterion.denoisers)
        losses = criterion(model(batch), batch, torch.Generator())
        total(losses, counts_T).backward()  # type: ignore[no-untyped-call]
    return allocations.peak


def num_learned(settings: TrainSettings) -> int:
    """How many positions of a micro-batch have logits: those of answers, in stage 2 those of signal tokens alone."""
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
    items_N = zeros(num_rows * len(Modality), dtype=torch.long)
    rows_M = zeros(num_rows, dtype=torch.long)
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
        features_NE=zeros(len(items_N), config.encoder.dim),
        feature_rows_N=items_N,
        feature_positions_N=items_N,
        targets=targets,
        keys=(),
    )


def _fuse_dropout(model: nn.Module) -> None:
    """A GPU's dropout keeps a byte a value; elsewhere it keeps noise in the values' own type."""

    def fused(values: Tensor, p: float) -> Tensor:
        return torch.native_dropout(values, p, True)[0]

    for module in model.modules():
        if isinstance(module, nn.Dropout) and module.p and module.training:
            module.forward = partial(fused, p=module.p)  # type: ignore[method-assign]


class MetaDenoiser(Denoiser):
    """A denoiser whose UNet has no weights; its configuration must be on this machine or on a hub."""

    def __init__(self, modality: Modality, settings: TrainSettings) -> None:
        decoder = settings.model.outputs[modality].decoder
        super().__init__(modality, decoder, "meta", DTYPES[settings.precision], settings.gradient_checkpointing)

    def _load_unet(self, path: str, dtype: torch.dtype) -> Any:
        kind = getattr(diffusers, self._family.unet)
        with torch.device("meta"):
            return kind.from_config(kind.load_config(path, subfolder="unet")).to(dtype)


_ATEN = torch.ops.aten


class Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within it, `now` and `peak` are the bytes of the tensors made since; those that were there `before` cost nothing.

    Meta tensors have no values. Code that asks for one (is nothing masked?) is told True, and a mask selects
    `num_selected` places, whatever is indexed by it.
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
    """Within it, attention takes what fused kernels take: its output and a float32 a row, never a matrix of scores.

    On the meta device PyTorch would choose the kernel that writes all scores out. It is put in the function's place,
    since modes of PyTorch do not reach what gradient checkpointing computes again.
    """

    def attend(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return _ATEN._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, True)[0]

    with patch.object(functional, "scaled_dot_product_attention", attend):
        yield


def _is_masked(func: Any, args: Sequence[Any]) -> bool:
    """Whether values are taken by a mask, how many of which are set nobody knows."""
    return func is _ATEN.index.Tensor and args[1][0] is not None and args[1][0].dtype is torch.bool
