"""The frozen base LLM: any causal LM of transformers; on CPUs without 16-bit instructions, faster products."""

from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from model.parts.builtin import resolve
from model.parts.config import LanguageModelConfig, ModelConfig
from model.parts.devices import MappedFiles
from model.parts.library_logs import quiet_libraries
from model.parts.weights import weights_hash

# Some families scale their logits after the head (Granite, Cohere, Falcon-H1); ours would not be scaled.
_SCALES = ("logits_scaling", "logit_scale", "lm_head_multiplier", "output_multiplier")


def load_llm(settings: LanguageModelConfig, dtype: torch.dtype, device: torch.device) -> Any:
    """Loads an LLM directly onto a device; in 4 bits, its linear layers except the head are NF4.

    On a CPU its weights are in memory once: those of a file in `dtype` are the file itself, mapped, and others are
    converted one by one.

    Raises ValueError naming what a setting needs that is not available.
    """
    check_loadable(settings, dtype, device)
    quantization = (
        BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
        if settings.load_in_4bit
        else None
    )
    stored = _stored_dtype(settings, dtype) if device.type == "cpu" else dtype
    try:
        with quiet_libraries():
            llm = AutoModelForCausalLM.from_pretrained(
                resolve(settings.name),
                dtype=stored,
                attn_implementation=settings.attention,
                quantization_config=quantization,
                # The CPU is the default, and under ZeRO-3 transformers rejects a device map.
                device_map=None if device.type == "cpu" else {"": device},
            )
    except ValueError as error:
        if "attn_implementation" in str(error) or "Flash Attention" in str(error):
            message = f"llm.attention: {settings.name} does not support {settings.attention} in transformers; use eager"
            raise ValueError(message) from None
        raise
    except (SafetensorError, UnpicklingError, EOFError) as error:
        raise ValueError(f"{settings.name}: damaged weights ({error}); download them again") from None
    if stored != dtype:
        _convert(llm, stored, dtype)
    widen_products(llm)
    return llm


def _stored_dtype(settings: LanguageModelConfig, dtype: torch.dtype) -> torch.dtype:
    """The dtype of an LLM's files; `dtype` where they are to be loaded in that directly."""
    if is_deepspeed_zero3_enabled():  # each worker keeps a part of what transformers converts
        return dtype
    described = AutoConfig.from_pretrained(resolve(settings.name))
    if getattr(described, "quantization_config", None) is not None:
        return dtype
    stored = described.get_text_config().dtype
    return stored if isinstance(stored, torch.dtype) and stored.is_floating_point else dtype


@torch.no_grad()
def _convert(llm: Any, stored: torch.dtype, dtype: torch.dtype) -> None:
    """Converts an LLM's parameters, and not its buffers, which are float32 in any dtype.

    Transformers would have the whole file and the whole result in memory.
    """
    mapped = MappedFiles()
    for parameter in llm.parameters():
        if parameter.dtype == stored:
            source, parameter.data = parameter.data, parameter.data.to(dtype)
            mapped.forget(source)
    for described in (llm.config, llm.config.get_text_config()):
        described.dtype = dtype


def check_loadable(settings: LanguageModelConfig, dtype: torch.dtype, device: torch.device) -> None:
    """Raises ValueError, one line per setting, naming what it needs that is not available."""
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
    """Raises ValueError if an LLM's widths differ from the configuration, or its family is not supported."""
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
                f"use the preset's LLM or set llm.{setting}"
            )
    for name in _SCALES:
        if getattr(given, name, None) not in (None, 1.0):
            raise ValueError(
                f"{config.llm.name}: scales its logits by {name}, which is not supported; use an LLM of another family"
            )


def capped(llm: Any, logits: Tensor) -> Tensor:
    """Logits as the LLM's family softens them: (..., V) to (..., V)."""
    cap = getattr(llm.config.get_text_config(), "final_logit_softcapping", None)  # Gemma
    return logits if cap is None else torch.tanh(logits / cap) * cap


def fingerprint(llm: Any) -> str:
    """Identifies a base LLM by embedding rows, norms and biases, which do not depend on the dtype it is loaded in."""
    tensors = {
        "input": llm.get_input_embeddings().weight[:64],
        "output": llm.get_output_embeddings().weight[:64],
        **{name: parameter for name, parameter in llm.named_parameters() if parameter.ndim == 1},
    }
    return weights_hash({name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()})


# PyTorch multiplies bfloat16 element by element on CPUs without instructions for it: on AVX2 the gradient of a linear
# layer takes sixty times as long as with weights cast to float32 in pieces. Both accumulate in float32. With fewer rows
# the cast does not pay: the time goes into reading the weights.
_MANY_ROWS = 48
_PIECE = 2**24  # weights widened at once: 64 MB


def widen_products(llm: nn.Module) -> None:
    """Makes a model's frozen 16-bit linear layers compute in float32 on CPUs where that is faster.

    Trained weights, and weights sharded by ZeRO-3, are left alone.
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
