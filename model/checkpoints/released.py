"""Import and export of NExT-GPT's own weight files, such as the released `7b_tiva_v0/pytorch_model.pt`.

A file holds what its stage trained: the LLM's two embedding matrices in full, base rows included; in stages 1 and 3 the
input projection, in 2 and 3 the output projections, in 3 the LoRA adapter.
"""

import hashlib
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from functools import reduce
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from model.checkpoints.base_rows import own_rows, replace_base_rows
from model.core.adapter import is_adapter_tensor
from model.core.nextgpt import STAGES, NextGPT
from model.parts.config import ModelConfig
from pipelines.sample import Modality

_LLM = "llama_model."
_WRAPPED = "llama_model.base_model.model."  # with the LLM wrapped by PEFT, in stage 3
_ROWS = {"input": "model.embed_tokens.weight", "output": "lm_head.weight"}
_INPUT = "llama_proj."
_OUTPUTS = {
    Modality.IMAGE: "gen_text_hidden_fcs.0.",
    Modality.VIDEO: "gen_text_hidden_fcs_video.0.",
    Modality.AUDIO: "gen_text_hidden_fcs_audio.0.",
}
_HEAD_WIDTH = 128  # of every Llama
_MOST_FAULTS = 3


def legacy_delta_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the released file for a Llama-based configuration, in the file's order; allocates no memory.

    Raises ValueError if the configuration omits a width of the LLM.
    """
    with torch.device("meta"):
        model = NextGPT(config, LlamaForCausalLM(_llama(config)))
        model.add_adapter()
    return _shapes(model, 3, _places(model, 3))


def legacy_dtype(path: Path | str) -> torch.dtype:
    """The dtype that holds all tensors of a legacy file exactly: float16, as released, or float32."""
    return reduce(torch.promote_types, {tensor.dtype for tensor in _read(Path(path)).values()}, torch.float16)


@torch.no_grad()
def load_legacy(model: NextGPT, path: Path | str) -> dict[str, Any]:
    """Loads a legacy file of any stage into a model; returns the entry added to the model's history.

    Parts that are not in the file are left alone. The file's base rows replace the base LLM's, and a file of stage 3
    gives the model an adapter if it has none.

    Raises FileNotFoundError, and ValueError naming tensors that are missing, unexpected or of the wrong shape, or that
    the model's dtype cannot hold exactly.
    """
    path = Path(path)
    tensors = _read(path)
    stage = _stage_of(tensors)
    if stage == 3 and not model.has_adapter:
        model.add_adapter()
    # If stage 1 ran before, a file of stage 2 may also hold its projection.
    places = _places(model, stage, with_input=stage == 2 and any(name.startswith(_INPUT) for name in tensors))
    _check(tensors, _shapes(model, stage, places), f"{path}: not a stage {stage} file for {model.config.preset}")
    _check_dtype(tensors, model.new_input_rows.weight.dtype, path)
    base_size = model.vocabulary.base_size
    rows = {kind: tensors[name] for kind, name in _row_names(stage).items()}
    replace_base_rows(model, {kind: rows_VH[:base_size] for kind, rows_VH in rows.items()})
    for kind, place in _new_rows(model).items():
        place.copy_(rows[kind][base_size:])
    for name, place in places.items():
        place.copy_(tensors[name])
    entry = {"stage": stage, "imported": path.name, "sha256": _sha256(path)}
    model.stages = [*model.stages, entry]
    return entry


def export_legacy(
    model: NextGPT, path: Path | str, *, stage: int = 3, dtype: torch.dtype = torch.float16
) -> dict[str, tuple[int, ...]]:
    """Writes what a stage trains to a legacy file; returns the names and shapes.

    Tensors imported from a file of `dtype` are exported bit for bit.

    Raises ValueError if the model lacks parts of that stage, or has values that overflow in `dtype`.
    """
    places = _places(model, stage)
    base, new = own_rows(model), _new_rows(model)
    tensors = {name: torch.cat([base[kind], new[kind]]) for kind, name in _row_names(stage).items()} | places
    for name, tensor in tensors.items():
        tensors[name] = tensor.to(device="cpu", dtype=dtype).contiguous()
        if not torch.equal(tensors[name].isinf(), tensor.isinf().cpu()):
            raise ValueError(f"{name}: has values too large for {_name_of(dtype)}; export it in float32")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".export-", dir=path.parent) as scratch:
        torch.save(tensors, Path(scratch) / path.name)  # the zip archive contains the file's name
        (Path(scratch) / path.name).replace(path)
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _places(model: NextGPT, stage: int, *, with_input: bool = False) -> dict[str, Tensor]:
    """The model's tensors by their names in a stage's file, in its order; without the embedding rows."""
    if stage not in STAGES:
        raise ValueError(f"stage is {stage}; use 1, 2 or 3")
    projection, *more = model.input_projections
    if more or projection.kind != "linear":
        raise ValueError(
            f"preset {model.config.preset}: legacy files hold a linear input projection; use a preset that has one"
        )
    if any(output.kind != "projection" for output in model.config.outputs.values()):
        raise ValueError(
            f"preset {model.config.preset}: legacy files hold output projections; use a preset without connectors"
        )
    if stage == 3 and not model.has_adapter:
        raise ValueError("a stage 3 file holds a LoRA adapter, but this model has none; export stage 1 or 2")
    places: dict[str, Tensor] = {}
    if stage == 3:
        places |= {_LLM + name: tensor for name, tensor in model.llm.named_parameters() if is_adapter_tensor(name)}
    if stage != 2 or with_input:
        places |= {_INPUT + name: tensor for name, tensor in projection.linear.named_parameters()}
    if stage != 1:
        for modality in model.config.outputs:
            output = model.output_projections[modality.value]
            places |= {_OUTPUTS[modality] + name: tensor for name, tensor in output.named_parameters()}
    return {name: tensor.detach() for name, tensor in places.items()}


def _row_names(stage: int) -> dict[str, str]:
    prefix = _WRAPPED if stage == 3 else _LLM
    return {kind: prefix + name for kind, name in _ROWS.items()}


def _new_rows(model: NextGPT) -> dict[str, Tensor]:
    return {"input": model.new_input_rows.weight.detach(), "output": model.new_output_rows.weight.detach()}


def _shapes(model: NextGPT, stage: int, places: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    rows = (model.vocabulary.total_size, model.new_input_rows.embedding_dim)
    return {name: rows for name in _row_names(stage).values()} | {
        name: tuple(tensor.shape) for name, tensor in places.items()
    }


def _stage_of(names: Iterable[str]) -> int:
    names = list(names)
    if any(name.startswith(_WRAPPED) for name in names):
        return 3
    return 2 if any(name.startswith(tuple(_OUTPUTS.values())) for name in names) else 1


def _read(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give a pytorch_model.pt of NExT-GPT")
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{path}: cannot be read as tensors ({reason}); download it again") from error
    if not isinstance(tensors, Mapping) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise ValueError(f"{path}: not a mapping of names to tensors; give a pytorch_model.pt of NExT-GPT")
    return tensors


def _check(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], refusal: str) -> None:
    faults = [f"{name} is missing" for name in shapes if name not in tensors]
    faults += [f"{name} is unexpected" for name in tensors if name not in shapes]
    faults += [
        f"{name} is {tuple(tensors[name].shape)}, not {shape}"
        for name, shape in shapes.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    if faults:
        more = f" and {len(faults) - _MOST_FAULTS} more" if len(faults) > _MOST_FAULTS else ""
        raise ValueError(f"{refusal}: {', '.join(faults[:_MOST_FAULTS])}{more}; use the preset it was made with")


def _check_dtype(tensors: Mapping[str, Tensor], dtype: torch.dtype, path: Path) -> None:
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or torch.promote_types(tensor.dtype, dtype) != dtype:
            raise ValueError(
                f"{path}: {name} is {_name_of(tensor.dtype)}, which a model in {_name_of(dtype)} cannot hold exactly; "
                "load it in float32"
            )


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _llama(config: ModelConfig) -> LlamaConfig:
    llm = config.llm
    if llm.hidden_size is None or llm.vocab_size is None or llm.num_layers is None:
        raise ValueError(
            f"preset {config.preset}: llm needs hidden_size, vocab_size and num_layers to name its tensors"
        )
    return LlamaConfig(
        hidden_size=llm.hidden_size,
        vocab_size=llm.vocab_size,
        num_hidden_layers=llm.num_layers,
        num_attention_heads=max(1, llm.hidden_size // _HEAD_WIDTH),
    )
