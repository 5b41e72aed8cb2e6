"""A checkpoint's description, read from its `config.json` without loading weights or importing torch."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.parts.config import ModelConfig, parse_config
from pipelines.storage.files import read_json, to_path

FORMAT = 2
CONFIG = "config.json"
ADAPTER = "adapter"
BASE_ROWS = "base_rows.safetensors"
SHIPPED, SMALL = "builtin:world", "builtin:small"


def as_path(value: Path | str) -> Path:
    """The path of a local folder, or for a URL (`s3://` ...) a `upath.UPath`, typed as a `Path`.

    `builtin:world` and `builtin:small` are the folders of the trained models that ship with this package.
    """
    if not isinstance(value, str):
        return value
    if value in (SHIPPED, SMALL):
        return Path(__file__).parents[1] / "trained" / value.partition(":")[2]
    return to_path(value) if "://" in value else Path(value)


def read_config(directory: Path | str) -> dict[str, Any]:
    """Reads a checkpoint's `config.json`; its `stages` are the training history.

    Raises FileNotFoundError if it is missing, ValueError if it is not one of ours.
    """
    path = as_path(directory) / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing; give the folder of a finished checkpoint")
    description = read_json(path)
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise ValueError(f"{path}: not a checkpoint of format {FORMAT}; use one written by this version")
    return description


def check_compatible(config: ModelConfig, directory: Path | str) -> None:
    """Checks, without loading weights, that a checkpoint can initialise a model of `config`.

    `directory` may be the folder of a run. Raises ValueError if the widths differ, FileNotFoundError if there is no
    finished checkpoint.
    """
    directory = latest_checkpoint(directory)
    description = read_config(directory)
    _check_same(config, model_config(description, directory), directory, description["adapter"])


def model_config(description: Mapping[str, Any], directory: Path) -> ModelConfig:
    """The model configuration in a checkpoint's description."""
    return parse_config(_with_template(description.get("model")), str(directory / CONFIG))


def _with_template(values: Any) -> Any:
    """The values of a configuration; before there was a choice, all dialogues were written as Vicuna v0 does."""
    if not isinstance(values, dict) or not isinstance(values.get("llm"), dict):
        return values
    return values | {"llm": {"template": "vicuna_v0"} | values["llm"]}


def _check_same(config: ModelConfig, saved: ModelConfig, directory: Path, adapter: bool) -> None:
    """Trained parts must match; names of frozen parts, and how they are loaded, may have changed since."""
    if config.llm.template != saved.llm.template:
        raise ValueError(
            f"{directory}: was trained on dialogues as {saved.llm.template} writes them, the model takes "
            f"{config.llm.template}; set llm.template: {saved.llm.template}"
        )
    names = ["encoder", "input_projection", "outputs", *(["lora"] if adapter else [])]
    ours, theirs = _shape_of(config), _shape_of(saved)
    for name in names:
        if ours[name] != theirs[name]:
            raise ValueError(
                f"{directory}: the checkpoint is of preset {saved.preset}, the model of {config.preset}: {name} of the "
                f"checkpoint is {theirs[name]}, of the model {ours[name]}; use the same preset or start from scratch"
            )


def _shape_of(config: ModelConfig) -> dict[str, Any]:
    """A configuration without the names of its frozen parts, and without what no tensor depends on."""
    values = config.model_dump(mode="json")
    for encoder in (values["encoder"], *values["encoder"].values()):
        if isinstance(encoder, dict):
            encoder.pop("name", None)
    for output in values["outputs"].values():
        del output["decoder"], output["null"]
    return values


def latest_checkpoint(path: Path | str) -> Path:
    """The checkpoint at `path`, or the last finished `checkpoint-*` in it if it is the folder of a run.

    Raises FileNotFoundError if there is neither.
    """
    path = as_path(path)
    if (path / CONFIG).is_file():
        return path
    found = [folder for folder in path.glob("checkpoint-*") if (folder / CONFIG).is_file()]
    if not found:
        raise FileNotFoundError(f"{path}: no finished checkpoint there; give a checkpoint or the folder of a run")
    return max(found, key=_step)


def _step(folder: Path) -> tuple[int, str]:
    digits = re.findall(r"\d+", folder.name)
    return (int(digits[-1]) if digits else -1, folder.name)
