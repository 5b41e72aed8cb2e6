"""Base rows that replace the base LLM's own: NExT-GPT's released weights come with theirs.

The legacy code accidentally trained all rows of both embedding matrices, not just the new ones. To reproduce its
output, a model takes over its base rows; they stay frozen. They are large and never change, so all checkpoints of a run
share one file in the run's folder, identified by its hash.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.checkpoints.description import BASE_ROWS, as_path
from model.core.adapter import base_of
from model.core.nextgpt import NextGPT
from model.parts.weights import weights_hash
from pipelines.storage.files import atomic_path


def own_rows(model: NextGPT) -> dict[str, Tensor]:
    """The current base rows of a model's LLM: `input` and `output`, each (base vocabulary, LLM width)."""
    llm = base_of(model.llm)
    return {
        "input": llm.get_input_embeddings().weight.detach(),
        "output": llm.get_output_embeddings().weight.detach(),
    }


def replace_base_rows(model: NextGPT, rows: dict[str, Tensor]) -> None:
    """Copies base rows, named as by `own_rows`, into the LLM, and records their hash if they differ from its own.

    Raises ValueError if the LLM ties its input and output rows.
    """
    own = own_rows(model)
    rows = {name: tensor.to(own[name]) for name, tensor in rows.items()}
    if all(torch.equal(own[name], rows[name]) for name in own):
        return
    if own["input"].data_ptr() == own["output"].data_ptr():
        raise ValueError(f"{model.config.llm.name}: ties its input and output rows; use an LLM that does not")
    for name, tensor in own.items():
        tensor.copy_(rows[name])
    model.base_rows = _hash(rows)


def save_base_rows(model: NextGPT, directory: Path | str) -> None:
    """Writes the base rows to a local or remote folder if they are not the base LLM's own."""
    if model.base_rows:
        rows = {name: tensor.cpu().contiguous() for name, tensor in own_rows(model).items()}
        with atomic_path(as_path(directory) / BASE_ROWS) as temporary:
            save_file(rows, temporary, metadata={"format": "pt"})


def load_base_rows(model: NextGPT, expected: str, checkpoint: Path) -> None:
    """Loads the base rows with hash `expected` from a checkpoint or its run's folder into a model.

    An empty hash stands for the base LLM's own rows.

    Raises FileNotFoundError if there is no such file, ValueError if its hash differs or the model's rows were already
    replaced.
    """
    if expected == model.base_rows:
        return
    if model.base_rows:
        raise ValueError(f"{checkpoint}: has other base rows than the model already took over; reload the base LLM")
    places = [folder / BASE_ROWS for folder in (checkpoint, checkpoint.parent)]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{places[0]}: missing, also from {checkpoint.parent}; copy it from the run")
    try:
        rows = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged ({error}); copy it again from the run") from None
    if _hash(rows) != expected:
        raise ValueError(f"{path}: not the base rows that {checkpoint.name} was trained on; copy those of its run")
    replace_base_rows(model, rows)


def _hash(rows: dict[str, Tensor]) -> str:
    """A hash that is the same in every dtype that holds the rows without loss."""
    return weights_hash({name: tensor.float() for name, tensor in rows.items()})
