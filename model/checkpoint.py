"""Checkpoints: the trained tensors, the adapter in PEFT's files, the tokenizer, and what they belong to.

checkpoint/
  config.json          the model's configuration, the stages it went through, versions; written last
  model.safetensors    both projections and the new rows
  adapter/             the LoRA adapter, as PEFT writes and reads it; only where stage 3 ran
  tokenizer files      the base tokenizer with the new tokens at their ids
  README.md            the model card
"""

import json
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer

from model.adapter import is_adapter_tensor, read_adapter, save_adapter
from model.card import model_card
from model.description import CONFIG, FORMAT, check_compatible, latest_checkpoint, model_config, read_config
from model.nextgpt import NextGPT
from model.tokenizer import check_tokens

WEIGHTS = "model.safetensors"
ADAPTER = "adapter"
_LLM = "llm."
_LIBRARIES = ("torch", "transformers", "peft", "safetensors")


def trained_state(model: NextGPT) -> dict[str, Tensor]:
    """All tensors that any stage trains, by their names in the model: what a checkpoint holds."""
    return {
        name: parameter.detach()
        for name, parameter in model.named_parameters()
        if not name.startswith(_LLM) or is_adapter_tensor(name)
    }


def save_pretrained(
    model: NextGPT,
    directory: Path | str,
    tokenizer: Any,
    *,
    stages: Sequence[Mapping[str, Any]] = (),
    card: Mapping[str, Any] | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes a checkpoint.

    `stages` is the history, oldest first, one mapping a stage; `card` the sections of the README (such as `data`,
    `metrics` and `untrained`). `state` is given where the model's own tensors are spread over ranks (ZeRO-3): the
    gathered `trained_state`.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.cpu().contiguous() for name, value in (state or trained_state(model)).items()}
    assert tensors.keys() == trained_state(model).keys()
    own = {name: value for name, value in tensors.items() if not name.startswith(_LLM)}
    save_file(own, directory / WEIGHTS, metadata={"format": "pt"})
    if model.has_adapter:
        adapter = {name.removeprefix(_LLM): value for name, value in tensors.items() if name.startswith(_LLM)}
        save_adapter(model.llm, adapter, directory / ADAPTER)
    tokenizer.save_pretrained(directory)
    (directory / "README.md").write_text(model_card(model.config, stages, card or {}), encoding="utf-8")
    _write_config(directory, _description(model, own, stages))


def _description(model: NextGPT, tensors: Mapping[str, Tensor], stages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    dtype = next(iter(tensors.values())).dtype
    return {
        "format": FORMAT,
        "model": model.config.model_dump(mode="json"),
        "dtype": str(dtype).removeprefix("torch."),
        "adapter": model.has_adapter,
        "llm_fingerprint": model.llm_fingerprint,
        "stages": [dict(stage) for stage in stages],
        "versions": {library: version(library) for library in _LIBRARIES},
    }


def _write_config(directory: Path, description: Mapping[str, Any]) -> None:
    # Its presence says that all else is there: last, and in one step.
    partial = directory / f".{CONFIG}.partial"
    partial.write_text(json.dumps(description, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, directory / CONFIG)


def from_pretrained(
    directory: Path | str, *, dtype: torch.dtype | None = None, llm: str | None = None
) -> tuple[NextGPT, Any]:
    """Loads a checkpoint onto its base LLM, ready to generate: (model, tokenizer).

    `dtype` is that of the checkpoint unless given; `llm` says where the base LLM is now, should it have moved.

    Raises FileNotFoundError for missing files, and ValueError when tensors are missing, left over or of another shape,
    or when the base LLM is not the one the checkpoint was trained on.
    """
    directory = latest_checkpoint(directory)
    description = read_config(directory)
    config = model_config(description, directory)
    if llm is not None:
        config = config.model_copy(update={"llm": config.llm.model_copy(update={"name": llm})})
    dtype = dtype or getattr(torch, description["dtype"])
    model = NextGPT.from_config(config, adapter=description["adapter"], dtype=dtype)
    _check_llm(model, description, directory)
    _load(model, directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    check_tokens(tokenizer, model.vocabulary, str(directory))
    return model.eval(), tokenizer


def load_weights(model: NextGPT, directory: Path | str) -> list[dict[str, Any]]:
    """Starts a model from a checkpoint's tensors, and returns the stages that it went through.

    A checkpoint with an adapter gives the model one; without, an adapter that the model has stays as it is.

    Raises ValueError when the checkpoint is of another preset, other widths or another base LLM.
    """
    directory = latest_checkpoint(directory)
    check_compatible(model.config, directory)
    description = read_config(directory)
    _check_llm(model, description, directory)
    if description["adapter"] and not model.has_adapter:
        model.add_adapter()
    _load(model, directory, adapter=description["adapter"])
    return list(description["stages"])


def _check_llm(model: NextGPT, description: Mapping[str, Any], directory: Path) -> None:
    if model.llm_fingerprint != description["llm_fingerprint"]:
        raise ValueError(
            f"{directory}: trained on another base LLM than {model.config.llm.name} holds now; "
            "use that LLM or train anew"
        )


def _load(model: NextGPT, directory: Path, *, adapter: bool = True) -> None:
    """Copies a checkpoint's tensors into a model that has a place for each."""
    path = directory / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing; the checkpoint is not complete, use another one")
    try:
        tensors = load_file(path)
        if adapter and model.has_adapter:
            saved = read_adapter(directory / ADAPTER, model.config.lora)
            tensors |= {_LLM + name: value for name, value in saved.items()}
    except SafetensorError as error:
        raise ValueError(f"{directory}: damaged weights ({error}); use another checkpoint") from None
    places = {n: p for n, p in trained_state(model).items() if adapter or not is_adapter_tensor(n)}
    _check_tensors(tensors, places, directory)
    for name, place in places.items():
        place.copy_(tensors[name])


def _check_tensors(tensors: Mapping[str, Tensor], places: Mapping[str, Tensor], directory: Path) -> None:
    faults = [f"{name} is missing" for name in places if name not in tensors]
    faults += [f"{name} has no place in the model" for name in tensors if name not in places]
    faults += [
        f"{name} is {tuple(tensors[name].shape)}, not {tuple(place.shape)}"
        for name, place in places.items()
        if name in tensors and tensors[name].shape != place.shape
    ]
    if faults:
        more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
        raise ValueError(f"{directory}: {faults[0]}{more}; use a checkpoint of this model")
