"""Reads settings from layers; key=value on the command line comes last.

The layers of a stage are base.yaml, PRESET.yaml, stage_N.yaml and PRESET_stage_N.yaml; a media policy has one file.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from jobs.common.cli import UsageError
from model.parts.config import ModelConfig, is_file, load_preset, preset_layers
from model.parts.sources import decoder_key, encoder_key, find_parts
from model.training.train_settings import TrainSettings
from pipelines.media.policy import MediaPolicy
from pipelines.sample import Modality
from pipelines.sources.catalog import load_catalog
from pipelines.storage.files import read_json

S = TypeVar("S", bound=BaseModel)
CONFIGS = Path(__file__).parents[1] / "configs"
ENGINES = CONFIGS / "deepspeed"
_PRESET = "model.preset"
# The settings of a checkpoint's model that say how its frozen parts are loaded; the others are fixed by training.
LOADING = (
    "model.llm.name",
    "model.llm.attention",
    "model.llm.load_in_4bit",
    *map(encoder_key, (None, *Modality)),
    *map(decoder_key, Modality),
    "model.decoders.",
)

_WHOLE = ("datasets",)


def load_settings(
    stage: int, preset: str, overrides: Sequence[str] = (), own_views: Iterable[str] = ()
) -> TrainSettings:
    """The effective settings of a stage; `own_views` are views of prepared datasets outside the built-in catalog.

    Raises:
        UsageError: all mistakes, one line each.
    """
    mistakes: list[str] = []
    values: dict[str, Any] = {"stage": stage, "model": _preset(preset).model_dump(mode="json")}
    presets = [layer for layer in preset_layers(preset) if not is_file(layer)]
    layers = ["base", *presets, f"stage_{stage}", *(f"{name}_stage_{stage}" for name in presets)]
    for layer in (CONFIGS / f"{name}.yaml" for name in layers):
        if layer.is_file():
            values = _merged(values, yaml.safe_load(layer.read_text(encoding="utf-8")))
    own = [text for text in overrides if text.startswith(("stage=", _PRESET))]
    mistakes += [f"{text}: is set by --{text.partition('=')[0].rpartition('.')[2]}" for text in own]
    values, faults = override(values, [text for text in overrides if text not in own])
    mistakes += [*faults, *_unknown_names(values, own_views)]
    return _validated(TrainSettings, values, mistakes)


def load_model(preset: str, overrides: Sequence[str] = (), needed: Collection[str] | None = None) -> ModelConfig:
    """The model of a preset with `model.KEY=VALUE` applied and its parts located by `model.parts.sources.find_parts`.

    Raises:
        UsageError: all mistakes, one line each.
    """
    return _found(_overridden(_preset(preset), overrides, allowed=("model.",)), needed)


def checkpoint_model(
    checkpoint: Path | str, overrides: Sequence[str] = (), needed: Collection[str] | None = None
) -> ModelConfig:
    """The model of a checkpoint; `model.KEY=VALUE` may change how and from where its frozen parts are loaded.

    Raises:
        UsageError: all mistakes, one line each.
    """
    from model.checkpoints.hub import read_model_config  # late: most mistakes do not need the client of the hub

    return _found(_overridden(read_model_config(checkpoint), overrides, allowed=LOADING), needed)


def _preset(name: str) -> ModelConfig:
    try:
        return load_preset(name)
    except ValueError as error:
        raise UsageError(f"--preset: {error}") from None


def _overridden(config: ModelConfig, overrides: Sequence[str], allowed: Sequence[str]) -> ModelConfig:
    """A model with `model.KEY=VALUE` applied; only keys that start with one of `allowed` may be set."""
    fixed = [text for text in overrides if not text.startswith(tuple(allowed)) or text.startswith(_PRESET)]
    values, mistakes = override(
        {"model": config.model_dump(mode="json")}, [text for text in overrides if text not in fixed]
    )
    mistakes += [f"{text}: cannot be set here; use {', '.join(allowed)}..." for text in fixed]
    try:
        config = ModelConfig.model_validate(values["model"])
    except ValidationError as error:
        mistakes += [f"model.{line}" for line in explain(error)]
    if mistakes:
        raise UsageError("\n".join(mistakes))
    return config


def _found(config: ModelConfig, needed: Collection[str] | None) -> ModelConfig:
    found, mistakes = find_parts(config, needed)
    if mistakes:
        raise UsageError("\n".join(mistakes))
    return found


def load_media_policy(path: Path | None, overrides: Sequence[str] = ()) -> MediaPolicy:
    """How media are stored: the defaults, then a YAML file, then key=value.

    Raises:
        UsageError: all mistakes, one line each.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) if path else {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"--media-policy {path}: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UsageError(f"--media-policy {path}: must map image, video, audio ... to their settings")
    values, mistakes = override(values, overrides)
    return _validated(MediaPolicy, values, mistakes)


def _validated(kind: type[S], values: Mapping[str, Any], mistakes: list[str]) -> S:
    """Settings of a kind; raises UsageError with the earlier mistakes and all of its own."""
    try:
        settings = kind.model_validate(values)
    except ValidationError as error:
        mistakes = [*mistakes, *explain(error)]
    if mistakes:
        raise UsageError("\n".join(mistakes))
    return settings


def override(values: dict[str, Any], overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Settings with `key=value` applied (`a.b=c` sets b in a), and the mistakes found, one line each."""
    mistakes, given = [], dict[str, Any]()
    for text in overrides:
        key, separator, value = text.partition("=")
        if not separator or not key:
            mistakes.append(f"{text}: not of the form key=value")
            continue
        try:
            names = key.split(".")
            given = _merged(given, _nested(names, yaml.safe_load(value)), whole=_WHOLE if len(names) == 1 else ())
        except yaml.YAMLError:
            mistakes.append(f"{text}: the value is not valid YAML")
    return _merged(values, given), mistakes


def explain(error: ValidationError) -> list[str]:
    """What is wrong with settings, one line per mistake."""
    return [": ".join(filter(None, (".".join(map(str, fault["loc"])), _message(fault)))) for fault in error.errors()]


def deepspeed_settings(settings: TrainSettings) -> dict[str, Any]:
    """The DeepSpeed JSON that a stage names: a file in jobs/configs/deepspeed, or a path.

    Raises:
        UsageError: it contradicts the settings of the stage.
    """
    values: dict[str, Any] = read_json(_deepspeed_file(settings.deepspeed))
    zero = values.get("zero_optimization", {})
    mistakes = []
    if zero.get("stage", settings.zero) != settings.zero:
        mistakes.append(f"ZeRO stage {zero['stage']}, but zero is {settings.zero}; set zero={zero['stage']}")
    if "offload_optimizer" in zero and not settings.offload_optimizer:
        mistakes.append("offloads the optimizer; set offload_optimizer=true")
    if mistakes:
        raise UsageError("\n".join(f"deepspeed: {settings.deepspeed}: {mistake}" for mistake in mistakes))
    return values


def _deepspeed_file(name: str) -> Path:
    path = ENGINES / name
    return path if path.is_file() else Path(name)


def _unknown_names(values: Mapping[str, Any], own_views: Iterable[str]) -> list[str]:
    """Datasets and files named in the settings that do not exist."""
    mistakes = []
    datasets, views = values.get("datasets"), dict.fromkeys([*load_catalog().views, *own_views])
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
    """Twelve hex digits that identify a configuration."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:12]


def _message(fault: Any) -> str:
    if fault["type"] == "extra_forbidden":
        return "no such setting"
    if isinstance(fault["input"], Mapping) and "error" in fault.get("ctx", {}):  # of several settings together
        return str(fault["ctx"]["error"])
    return f"{fault['msg']} (got {fault['input']!r})" if fault["type"] != "missing" else "must be set"


def _merged(base: dict[str, Any], over: Mapping[str, Any], whole: Collection[str] = _WHOLE) -> dict[str, Any]:
    """Merges key by key; those of `whole` are replaced, so that naming some datasets drops those of a file."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        merge = isinstance(old, dict) and isinstance(value, Mapping) and key not in whole
        result[key] = _merged(old, value, whole) if merge else value  # type: ignore[arg-type]
    return result


def _nested(keys: Sequence[str], value: Any) -> dict[str, Any]:
    for key in reversed(keys):
        value = {key: value}
    return value
