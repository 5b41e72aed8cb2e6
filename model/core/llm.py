"""The frozen base LLM: any causal LM of transformers, loaded as its settings say."""

from collections.abc import Iterator
from importlib.util import find_spec
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from model.core.wide_products import widen_products
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
