"""The frozen base LLM: any causal LM of transformers, loaded as its settings say."""

from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from model.parts.builtin import resolve
from model.parts.config import LanguageModelConfig, ModelConfig
from model.parts.library_logs import quiet_libraries
from model.parts.weights import weights_hash

# What some families multiply their logits by after the head (Granite, Cohere, Falcon-H1): ours would lack it.
_SCALES = ("logits_scaling", "logit_scale", "lm_head_multiplier", "output_multiplier")


def load_llm(settings: LanguageModelConfig, dtype: torch.dtype, device: torch.device) -> Any:
    """Loads an LLM onto a device without a detour over another one; in 4 bits its linear layers but the head are NF4.

    Raises ValueError naming what a setting needs that is not here.
    """
    check_loadable(settings, dtype, device)
    quantization = (
        BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
        if settings.load_in_4bit
        else None
    )
    try:
        with quiet_libraries():
            llm = AutoModelForCausalLM.from_pretrained(
                resolve(settings.name),
                dtype=dtype,
                attn_implementation=settings.attention,
                quantization_config=quantization,
                # The CPU is where it loads anyway, and under ZeRO-3 transformers refuses to be told.
                device_map=None if device.type == "cpu" else {"": device},
            )
    except ValueError as error:
        if "attn_implementation" in str(error) or "Flash Attention" in str(error):
            message = f"llm.attention: {settings.name} has no {settings.attention} in transformers; use eager"
            raise ValueError(message) from None
        raise
    except (SafetensorError, UnpicklingError, EOFError) as error:
        raise ValueError(f"{settings.name}: damaged weights ({error}); fetch them anew") from None
    widen_products(llm)
    return llm


def check_loadable(settings: LanguageModelConfig, dtype: torch.dtype, device: torch.device) -> None:
    """Raises ValueError, one line a setting, naming what it needs that is not here."""
    faults = []
    if settings.attention == "flash_attention_2" and (needs := ", ".join(_flash_needs(dtype, device))):
        faults.append(f"llm.attention: flash_attention_2 needs {needs}; use sdpa")
    if settings.load_in_4bit and (needs := ", ".join(_missing("bitsandbytes", device))):
        faults.append(f"llm.load_in_4bit: needs {needs}; set it to false")
    if faults:
        raise ValueError("\n".join(faults))


def _flash_needs(dtype: torch.dtype, device: torch.device) -> Iterator[str]:
    yield from _missing("flash_attn", device)
    if dtype == torch.float32:
        yield "bf16 weights (these are fp32)"


def _missing(package: str, device: torch.device) -> Iterator[str]:
    if find_spec(package) is None:
        yield f"the package {package}"
    if device.type != "cuda":
        yield f"a CUDA device (this is {device.type})"


def check_fits(config: ModelConfig, llm: Any) -> None:
    """Raises ValueError when an LLM does not have the widths that the configuration expects, or is of no use to us."""
    given = llm.config.get_text_config()
    expected = {
        "hidden_size": ("hidden_size", config.llm.hidden_size),
        "vocab_size": ("vocab_size", config.llm.vocab_size),
        "num_hidden_layers": ("num_layers", config.llm.num_layers),
    }
    for name, (setting, value) in expected.items():
        if value is not None and getattr(given, name) != value:
            raise ValueError(
                f"{config.llm.name}: {name} is {getattr(given, name)}, but preset {config.preset} expects {value}; "
                f"use its own LLM or set llm.{setting}"
            )
    for name in _SCALES:
        if getattr(given, name, None) not in (None, 1.0):
            raise ValueError(
                f"{config.llm.name}: scales its logits by {name}, which is not supported; use an LLM of another family"
            )


def fingerprint(llm: Any) -> str:
    """Tells base LLMs apart by rows, norms and biases, which are alike in every dtype an LLM is loaded in."""
    tensors = {
        "input": llm.get_input_embeddings().weight[:64],
        "output": llm.get_output_embeddings().weight[:64],
        **{name: parameter for name, parameter in llm.named_parameters() if parameter.ndim == 1},
    }
    return weights_hash({name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()})


# Fewer rows are faster as they are: reading the weights is all that takes time.
_MANY_ROWS = 48
_PIECE = 2**24  # weights widened at once: 64 MB


def widen_products(llm: nn.Module) -> None:
    """Lets the frozen linear layers of a model on a CPU compute in float32 where that is the faster way.

    Weights that are trained, or spread over ranks by ZeRO-3, are multiplied as ever.
    """
    for module in llm.modules():
        if type(module) is nn.Linear and _is_slow(module.weight):
            module.forward = partial(_forward, module)  # type: ignore[method-assign]


def _is_slow(weight: Tensor) -> bool:
    supported = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    is_supported = supported.get(weight.dtype)
    return (
        weight.device.type == "cpu" and is_supported is not None and not is_supported() and not hasattr(weight, "ds_id")
    )


def _forward(module: nn.Linear, input: Tensor) -> Tensor:
    if module.weight.requires_grad:
        return linear(input, module.weight, module.bias)
    product: Tensor = _Product.apply(input, module.weight)  # type: ignore[no-untyped-call]
    return product if module.bias is None else product + module.bias


class _Product(torch.autograd.Function):
    """`input @ weight.T`: (..., I) by (O, I) to (..., O)."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        if input.numel() // input.shape[-1] < _MANY_ROWS:
            return linear(input, weight)
        wide = input.float()
        return torch.cat([(wide @ weight[piece].float().T).to(input.dtype) for piece in _pieces(weight)], dim=-1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,), (weight,) = grads, ctx.saved_tensors
        wide = grad.float()
        total = sum(wide[..., piece] @ weight[piece].float() for piece in _pieces(weight))
        return total.to(grad.dtype), None  # type: ignore[union-attr]


def _pieces(weight: Tensor) -> Iterator[slice]:
    length = max(1, _PIECE // weight.shape[1])
    return (slice(start, start + length) for start in range(0, len(weight), length))
