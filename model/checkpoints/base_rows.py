"""Base rows that take the place of the base LLM's own: NExT-GPT's released weights come with theirs.

The legacy code trained all rows of both embedding matrices by accident, not the new ones alone. To give what it gave, a
model takes over its base rows; they stay frozen. They are large and never change, so the checkpoints of a run share one
file in the run's folder, which each names by its hash.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.checkpoints.description import as_path
from model.core.adapter import base_of
from model.core.nextgpt import NextGPT
from model.parts.weights import weights_hash
from pipelines.storage.files import atomic_path

BASE_ROWS = "base_rows.safetensors"


def own_rows(model: NextGPT) -> dict[str, Tensor]:
    """The base rows of a model's LLM as they are now: `input` and `output`, each (base vocabulary, LLM width)."""
    llm = base_of(model.llm)
    return {
        "input": llm.get_input_embeddings().weight.detach(),
        "output": llm.get_output_embeddings().weight.detach(),
    }


def replace_base_rows(model: NextGPT, rows: dict[str, Tensor]) -> None:
    """Copies base rows, as `own_rows` names them, into the LLM, and remembers them if they differ from its own.

    Raises ValueError when the LLM has one matrix for both.
    """
    own = own_rows(model)
    rows = {name: tensor.to(own[name]) for name, tensor in rows.items()}
    if all(torch.equal(own[name], rows[name]) for name in own):
        return
    if own["input"].data_ptr() == own["output"].data_ptr():
        raise ValueError(f"{model.config.llm.name}: has one matrix for input and output rows; use an LLM with two")
    for name, tensor in own.items():
        tensor.copy_(rows[name])
    model.base_rows = _hash(rows)


def save_base_rows(model: NextGPT, directory: Path | str) -> None:
    """Writes the base rows into a local or remote folder if they are not the base LLM's own."""
    if model.base_rows:
        rows = {name: tensor.cpu().contiguous() for name, tensor in own_rows(model).items()}
        with atomic_path(as_path(directory) / BASE_ROWS) as temporary:
            save_file(rows, temporary, metadata={"format": "pt"})


def load_base_rows(model: NextGPT, expected: str, checkpoint: Path) -> None:
    """Gives a model the base rows of hash `expected` that lie in a checkpoint or in the folder of its run.

    An empty hash stands for the base LLM's own rows.

    Raises FileNotFoundError when there is no such file, ValueError when its rows are others or the model's were
    replaced before.
    """
    if expected == model.base_rows:
        return
    if model.base_rows:
        raise ValueError(f"{checkpoint}: has other base rows than the model was given before; load the base LLM anew")
    places = [folder / BASE_ROWS for folder in (checkpoint, checkpoint.parent)]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{places[0]}: missing, and not in {checkpoint.parent} either; copy it from its run")
    try:
        rows = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged ({error}); copy it anew from its run") from None
    if _hash(rows) != expected:
        raise ValueError(f"{path}: not the base rows that {checkpoint.name} was trained on; copy those of its run")
    replace_base_rows(model, rows)


def _hash(rows: dict[str, Tensor]) -> str:
    """The same in every dtype that holds the rows without loss."""
    return weights_hash({name: tensor.float() for name, tensor in rows.items()})
