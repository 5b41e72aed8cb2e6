"""Checkpoints: the trained tensors, the adapter in PEFT's format, the tokenizer, and a description.

checkpoint/
  config.json              the model's configuration, its training history, versions; written last
  model.safetensors        both projections and the new rows
  adapter/                 the LoRA adapter in PEFT's format; only after stage 3
  base_rows.safetensors    replaced base rows after an import; a run keeps them next to its checkpoints
  tokenizer files          the base tokenizer with the new tokens at their ids
  README.md                the model card
"""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer

from model.checkpoints import hub
from model.checkpoints.base_rows import load_base_rows, save_base_rows
from model.checkpoints.card import model_card
from model.checkpoints.description import (
    ADAPTER,
    CONFIG,
    FORMAT,
    as_path,
    check_compatible,
    model_config,
    read_config,
)
from model.core.adapter import is_adapter_tensor, read_adapter, save_adapter
from model.core.nextgpt import NextGPT
from model.core.tokenizer import check_tokens, load_tokenizer
from model.parts.config import ModelConfig
from pipelines.storage.files import write_json

__all__ = [
    "finish",
    "from_pretrained",
    "load_weights",
    "push_to_hub",
    "save_pretrained",
    "trained_state",
    "write_files",
]

WEIGHTS = "model.safetensors"
CARD = "README.md"
_LLM = "llm."
_LIBRARIES = ("torch", "transformers", "peft", "safetensors")


def trained_state(model: NextGPT) -> dict[str, Tensor]:
    """What stages train, and connectors' measured scales, by their names in the model: a checkpoint's contents."""
    return {
        name: tensor.detach()
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
        if not name.startswith(_LLM) or is_adapter_tensor(name)
    }


def save_pretrained(
    model: NextGPT,
    directory: Path | str,
    tokenizer: Any | None = None,
    *,
    stages: Sequence[Mapping[str, Any]] | None = None,
    card: Mapping[str, Any] | None = None,
    state: Mapping[str, Tensor] | None = None,
    base_rows: bool = True,
) -> None:
    """Writes a whole checkpoint, by default with the base LLM's tokenizer: `write_files`, then `finish`."""
    tokenizer = load_tokenizer(model.config) if tokenizer is None else tokenizer
    finish(
        directory,
        write_files(model, directory, tokenizer, stages=stages, card=card, state=state, base_rows=base_rows),
    )


def write_files(
    model: NextGPT,
    directory: Path | str,
    tokenizer: Any,
    *,
    stages: Sequence[Mapping[str, Any]] | None = None,
    card: Mapping[str, Any] | None = None,
    state: Mapping[str, Tensor] | None = None,
    base_rows: bool = True,
) -> dict[str, Any]:
    """Writes all of a checkpoint but its `config.json` to a local folder; returns the description for `finish`.

    `stages` is the history, oldest first, one mapping per stage, and `card` holds further sections of the README (such
    as `untrained`); they default to the model's own. Pass `state`, a gathered copy of `trained_state`, if the model's
    tensors may change meanwhile or are sharded (ZeRO-3). Without `base_rows`, the checkpoint refers to the file that
    `save_base_rows` wrote to its parent folder.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / CONFIG).unlink(missing_ok=True)  # an older checkpoint there is no longer valid
    stages = model.stages if stages is None else stages
    card = model.card if card is None else card
    state = trained_state(model) if state is None else state
    assert state.keys() == trained_state(model).keys()
    tensors = {name: value.cpu().contiguous() for name, value in state.items()}
    own = {name: value for name, value in tensors.items() if not name.startswith(_LLM)}
    save_file(own, directory / WEIGHTS, metadata={"format": "pt"})
    if model.has_adapter:
        adapter = {name.removeprefix(_LLM): value for name, value in tensors.items() if name.startswith(_LLM)}
        save_adapter(model.llm, adapter, directory / ADAPTER)
    if base_rows:
        save_base_rows(model, directory)
    tokenizer.save_pretrained(directory)
    (directory / CARD).write_text(model_card(model.config, stages, card), encoding="utf-8")
    return {
        "format": FORMAT,
        "model": model.config.model_dump(mode="json"),
        "dtype": str(next(iter(own.values())).dtype).removeprefix("torch."),
        "adapter": model.has_adapter,
        "llm_fingerprint": model.llm_fingerprint,
        "base_rows": model.base_rows,
        "stages": [dict(stage) for stage in stages],
        "card": dict(card),
        "versions": {library: version(library) for library in _LIBRARIES},
    }


def finish(directory: Path | str, description: Mapping[str, Any]) -> None:
    """Completes a checkpoint in a local or remote folder: writes `config.json`, which marks the rest as complete."""
    write_json(as_path(directory) / CONFIG, description, sort_keys=False)


def push_to_hub(model: NextGPT, repo_id: str, *, private: bool | None = None, token: str | None = None) -> str:
    """Uploads a model to the Hugging Face hub, creating the repository if needed; returns the commit's URL."""
    with TemporaryDirectory() as name:
        directory = Path(name)
        save_pretrained(model, directory)
        card = model_card(model.config, model.stages, model.card, name=repo_id)
        (directory / CARD).write_text(card, encoding="utf-8")
        return hub.upload(directory, repo_id, private=private, token=token)


def from_pretrained(
    name_or_path: Path | str,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    config: ModelConfig | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> tuple[NextGPT, Any]:
    """Loads a checkpoint onto its base LLM, ready to generate: (model, tokenizer).

    `name_or_path` is a checkpoint's folder, a run's folder (its last checkpoint is loaded), the URL of one, or a hub
    repository, at `revision`. `dtype` defaults to the checkpoint's. `config`, if given, is the checkpoint's with other
    names of frozen parts, if these have moved (`model.parts.sources.with_names`), or other ways to load them.

    Raises FileNotFoundError for missing files, and ValueError if tensors are missing, unexpected or of the wrong shape,
    or if the checkpoint was trained on another base LLM.
    """
    with hub.local_checkpoint(name_or_path, revision=revision, token=token) as directory:
        description = read_config(directory)
        if config is None:
            config = model_config(description, directory)
        else:
            check_compatible(config, directory)
        dtype = dtype or getattr(torch, description["dtype"])
        model = NextGPT.from_config(
            config, adapter=description["adapter"], dtype=dtype, device=device, draws_rows=False
        )
        _load(model, directory, description)
        tokenizer = AutoTokenizer.from_pretrained(directory)
    check_tokens(tokenizer, model.vocabulary, str(name_or_path))
    return model.eval(), tokenizer


def load_weights(model: NextGPT, directory: Path | str) -> list[dict[str, Any]]:
    """Initialises a model from a checkpoint, and returns the checkpoint's training history.

    A checkpoint with an adapter gives the model one; without, the model's adapter, if any, is left alone.

    Raises ValueError if the checkpoint has other widths or another base LLM.
    """
    with hub.local_checkpoint(directory) as local:
        check_compatible(model.config, local)
        description = read_config(local)
        if description["adapter"] and not model.has_adapter:
            model.add_adapter()
        _load(model, local, description)
    return list(description["stages"])


def _load(model: NextGPT, directory: Path, description: Mapping[str, Any]) -> None:
    """Loads everything in a checkpoint into a model."""
    _check_llm(model, description, directory)
    _copy_tensors(model, directory, adapter=description["adapter"])
    load_base_rows(model, description["base_rows"], directory)
    model.stages, model.card = description["stages"], description["card"]


def _check_llm(model: NextGPT, description: Mapping[str, Any], directory: Path) -> None:
    if model.llm_fingerprint != description["llm_fingerprint"]:
        raise ValueError(
            f"{directory}: was trained on another base LLM than {model.config.llm.name}; use that LLM or train again"
        )


def _copy_tensors(model: NextGPT, directory: Path, *, adapter: bool) -> None:
    """Copies a checkpoint's tensors into a model, which may have an additional adapter."""
    path = directory / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing; the checkpoint is incomplete, use another one")
    try:
        tensors = load_file(path)
        if adapter:
            saved = read_adapter(directory / ADAPTER, model.llm)
            tensors |= {_LLM + name: value for name, value in saved.items()}
    except SafetensorError as error:
        raise ValueError(f"{directory}: damaged weights ({error}); use another checkpoint") from None
    places = {n: p for n, p in trained_state(model).items() if adapter or not is_adapter_tensor(n)}
    _check_tensors(tensors, places, directory)
    for name, place in places.items():
        place.copy_(tensors[name])


def _check_tensors(tensors: Mapping[str, Tensor], places: Mapping[str, Tensor], directory: Path) -> None:
    faults = [f"{name} is missing" for name in places if name not in tensors]
    faults += [f"{name} is unexpected" for name in tensors if name not in places]
    faults += [
        f"{name} is {tuple(tensors[name].shape)}, not {tuple(place.shape)}"
        for name, place in places.items()
        if name in tensors and tensors[name].shape != place.shape
    ]
    if faults:
        more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
        raise ValueError(f"{directory}: {faults[0]}{more}; use a checkpoint of this model")
