"""The LoRA adapter of stage 3: adding, saving and loading it with PEFT (Hu et al. 2021, arXiv:2106.09685)."""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from model.parts.config import LoraSettings

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
_HERE, _IN_FILE = ".default.weight", ".weight"  # PEFT leaves the adapter's name out of its files


def add_adapter(llm: nn.Module, settings: LoraSettings, llm_name: str) -> PeftModel:
    """Wraps an LLM with a fresh adapter in the LLM's dtype; its saved files will name `llm_name` as the base model.

    Raises ValueError if the LLM lacks one of the target modules.
    """
    targets, _ = lora_targets(llm, settings, llm_name)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(targets),
    )
    try:
        with warnings.catch_warnings():
            # PEFT still uses a transformers attribute that is about to be removed.
            warnings.filterwarnings("ignore", message="fan_in_fan_out")  # which it then sets itself
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
            wrapped = get_peft_model(llm, config, autocast_adapter_dtype=False)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"lora.targets: {', '.join(targets)} do not fit {llm_name}: {reason}") from None
    wrapped.peft_config["default"].base_model_name_or_path = llm_name
    return wrapped


def lora_targets(llm: Any, settings: LoraSettings, llm_name: str) -> tuple[tuple[str, ...], list[str]]:
    """The names of the layers that an adapter adapts, and notes on those that only some layers of the LLM have.

    A name stands for all modules whose own name ends with it. Raises ValueError for one that the LLM has not.
    """
    own = _attention_layers(llm)
    if settings.targets == "auto":
        if not own:
            raise ValueError(f"lora.targets: auto finds no linear layers of attention in {llm_name}; name the layers")
        return own, []
    names = [name for name, _ in llm.named_modules()]
    found = {target: _ending(names, target) for target in settings.targets}
    if missing := [target for target, places in found.items() if not places]:
        fit = "do not fit" if len(missing) > 1 else "does not fit"
        raise ValueError(
            f"lora.targets: {', '.join(missing)} {fit} {llm_name}, which has no such layers; use auto"
            + (f", here {', '.join(own)}" if own else "")
        )
    total = llm.config.get_text_config().num_hidden_layers
    counts = {target: len({_layer(name) for name in places}) for target, places in found.items()}
    notes = [
        f"lora.targets: {target} is in {count} of the {total} layers of {llm_name}, and adapts these"
        for target, count in counts.items()
        if count < total
    ]
    return settings.targets, notes


def _attention_layers(llm: nn.Module) -> tuple[str, ...]:
    """The names of the linear layers within attention, each as short as tells them from all other linear layers."""
    kinds = dict(llm.named_modules())
    linear = [name for name, module in kinds.items() if isinstance(module, nn.Linear | Conv1D)]
    inside = {name for name in linear if any(_is_attention(outer, kinds[outer]) for outer in _around(name))}
    found = dict[str, None]()
    for name in linear:
        if name in inside:
            parts = name.split(".")
            ends = (".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1))
            found[next(end for end in ends if inside.issuperset(_ending(linear, end)))] = None
    return tuple(found)


def _around(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts)))


def _is_attention(name: str, module: nn.Module) -> bool:
    own = f"{name.rpartition('.')[2]} {type(module).__name__}".lower()
    # Of a list or a decoder layer the class may name its kind of attention, but it holds more than that.
    return ("attention" in own or "attn" in own) and "layer" not in own


def _ending(names: Iterable[str], end: str) -> list[str]:
    return [name for name in names if f".{name}".endswith(f".{end}")]


def _layer(name: str) -> str:
    """The beginning of a module's name that says in which layer it is."""
    parts = name.split(".")
    number = next((place for place, part in enumerate(parts) if part.isdigit()), len(parts) - 1)
    return ".".join(parts[: number + 1])


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


def read_adapter(directory: Path, llm: PeftModel) -> dict[str, Tensor]:
    """Reads the tensors of an adapter for a wrapped LLM, by their names in it.

    Raises ValueError if its settings differ from the model's, FileNotFoundError if a file is missing.
    """
    for name in (CONFIG, WEIGHTS):
        if not (directory / name).is_file():
            raise FileNotFoundError(f"{directory / name}: missing; the checkpoint is incomplete, use another one")
    saved, own = PeftConfig.from_pretrained(str(directory)), llm.peft_config["default"]
    given = (saved.r, saved.lora_alpha, sorted(saved.target_modules))
    wanted = (own.r, own.lora_alpha, sorted(own.target_modules))
    if given != wanted:
        raise ValueError(
            f"{directory / CONFIG}: r, alpha and targets are {given}, but the model has {wanted}; set lora to match"
        )
    tensors = load_file(directory / WEIGHTS)
    return {name.removesuffix(_IN_FILE) + _HERE: tensor for name, tensor in tensors.items()}
