"""Reads a stage's settings: base.yaml, the preset, stage_N.yaml, then key=value from the command line."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from jobs.cli import UsageError
from model.config import load_preset
from model.settings import TrainSettings
from pipelines.catalog import load_catalog
from pipelines.files import read_json

CONFIGS = Path(__file__).parent / "configs"
ENGINES = CONFIGS / "deepspeed"


def load_settings(stage: int, preset: str, overrides: Sequence[str] = ()) -> TrainSettings:
    """The effective settings of a stage.

    Raises:
        UsageError: all mistakes, one line each.
    """
    mistakes: list[str] = []
    values: dict[str, Any] = {"stage": stage}
    try:
        values["model"] = load_preset(preset).model_dump(mode="json")
    except ValueError as error:
        raise UsageError(f"--preset: {error}") from None
    for layer in (CONFIGS / "base.yaml", CONFIGS / f"{preset}.yaml", CONFIGS / f"stage_{stage}.yaml"):
        if layer.is_file():
            values = _merged(values, yaml.safe_load(layer.read_text(encoding="utf-8")))
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            mistakes.append(f"{override}: not of the form key=value")
            continue
        if key == "stage" or key.startswith("model.preset"):
            mistakes.append(f"{override}: is set by --{key.rpartition('.')[2]}")
            continue
        try:
            values = _merged(values, _nested(key.split("."), yaml.safe_load(text)))
        except yaml.YAMLError:
            mistakes.append(f"{override}: the value is not valid YAML")
    mistakes += _unknown_names(values)
    try:
        settings = TrainSettings.model_validate(values)
    except ValidationError as error:
        mistakes += [f"{'.'.join(map(str, fault['loc']))}: {_message(fault)}" for fault in error.errors()]
    if mistakes:
        raise UsageError("\n".join(mistakes))
    return settings


def deepspeed_settings(settings: TrainSettings) -> dict[str, Any]:
    """The DeepSpeed JSON a stage names, a file of jobs/configs/deepspeed or a path."""
    values: dict[str, Any] = read_json(_deepspeed_file(settings.deepspeed))
    return values


def _deepspeed_file(name: str) -> Path:
    path = ENGINES / name
    return path if path.is_file() else Path(name)


def _unknown_names(values: Mapping[str, Any]) -> list[str]:
    """Names in the settings that lead nowhere."""
    mistakes = []
    datasets, views = values.get("datasets"), load_catalog().views
    if isinstance(datasets, str):
        datasets = [] if datasets == "auto" else [name.strip() for name in datasets.split(",")]
    unknown = [str(name) for name in datasets or () if name not in views]
    if unknown:
        mistakes.append(f"datasets: {', '.join(unknown)} not in the catalog; it has {', '.join(views)}")
    name = str(values.get("deepspeed"))
    if not _deepspeed_file(name).is_file():
        known = ", ".join(sorted(file.name for file in ENGINES.glob("*.json")))
        mistakes.append(f"deepspeed: {name}: no such file; use one of {known} or a path")
    return mistakes


def settings_hash(values: Mapping[str, Any]) -> str:
    """Twelve hex digits that name a configuration."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:12]


def _message(fault: Any) -> str:
    if fault["type"] == "extra_forbidden":
        return "no such setting"
    return f"{fault['msg']} (got {fault['input']!r})" if fault["type"] != "missing" else "must be set"


def _merged(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides key by key; `datasets` is one value, not merged, so that naming some drops the others."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        merge = isinstance(old, dict) and isinstance(value, Mapping) and key != "datasets"
        result[key] = _merged(old, value) if merge else value  # type: ignore[arg-type]
    return result


def _nested(keys: Sequence[str], value: Any) -> dict[str, Any]:
    for key in reversed(keys):
        value = {key: value}
    return value
