"""The LoRA adapter of stage 3: adding, saving and loading it with PEFT (Hu et al. 2021, arXiv:2106.09685)."""

import warnings
from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.parts.config import LoraSettings

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
_HERE, _IN_FILE = ".default.weight", ".weight"  # PEFT leaves the adapter's name out of its files


def add_adapter(llm: nn.Module, settings: LoraSettings, llm_name: str) -> PeftModel:
    """Wraps an LLM with a fresh adapter in the LLM's dtype; its saved files will name `llm_name` as the base model.

    Raises ValueError if the LLM has none of the target modules.
    """
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets),
    )
    try:
        with warnings.catch_warnings():
            # PEFT still uses a transformers attribute that is about to be removed.
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
            wrapped = get_peft_model(llm, config, autocast_adapter_dtype=False)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"lora.targets: {', '.join(settings.targets)} do not fit {llm_name}: {reason}") from None
    wrapped.peft_config["default"].base_model_name_or_path = llm_name
    return wrapped


def has_adapter(llm: nn.Module) -> bool:
    """Whether an LLM is wrapped with an adapter."""
    return isinstance(llm, PeftModel)


def base_of(llm: Any) -> Any:
    """The causal LM inside the PEFT wrapper, if any; its layers include the adapter's."""
    return llm.get_base_model() if isinstance(llm, PeftModel) else llm


def is_adapter_tensor(name: str) -> bool:
    """Whether a parameter belongs to an adapter."""
    return "lora_" in name


def save_adapter(llm: PeftModel, tensors: Mapping[str, Tensor], directory: Path) -> None:
    """Writes an adapter that PEFT can load onto the bare LLM; `tensors` by their names in the wrapped LLM."""
    directory.mkdir(parents=True, exist_ok=True)
    renamed = {name.replace(_HERE, _IN_FILE): tensor for name, tensor in tensors.items()}
    save_file(renamed, directory / WEIGHTS, metadata={"format": "pt"})
    config = copy(llm.peft_config["default"])
    config.target_modules = sorted(config.target_modules)  # PEFT keeps a set, whose order differs between processes
    config.save_pretrained(directory)


def read_adapter(directory: Path, settings: LoraSettings) -> dict[str, Tensor]:
    """Reads an adapter's tensors by their names in the wrapped LLM.

    Raises ValueError if its settings differ from the model's, FileNotFoundError if a file is missing.
    """
    for name in (CONFIG, WEIGHTS):
        if not (directory / name).is_file():
            raise FileNotFoundError(f"{directory / name}: missing; the checkpoint is incomplete, use another one")
    saved = PeftConfig.from_pretrained(str(directory))
    given = (saved.r, saved.lora_alpha, sorted(saved.target_modules))
    wanted = (settings.r, settings.alpha, sorted(settings.targets))
    if given != wanted:
        raise ValueError(
            f"{directory / CONFIG}: r, alpha and targets are {given}, but the model has {wanted}; set lora to match"
        )
    tensors = load_file(directory / WEIGHTS)
    return {name.removesuffix(_IN_FILE) + _HERE: tensor for name, tensor in tensors.items()}
