"""A checkpoint's README in Hugging Face format: parts, usage, training history and scores."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from model.parts.config import ModelConfig

_TITLES = {
    "data": "Data, with the sha256 of its manifest",
    "metrics": "Training metrics at the end",
    "validation": "Validation metrics",
    "untrained": "Parts with random weights",
    "seconds": "Time",
}
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_USAGE = """\
The trained parts of a NExT-GPT (Wu et al. 2023, https://arxiv.org/abs/2309.05519); they run on the frozen parts named
below. With nextgpt-ray installed:

```python
from model.checkpoints.checkpoint import from_pretrained

model, tokenizer = from_pretrained("{name}")
```"""


def model_card(
    config: ModelConfig, stages: Sequence[Mapping[str, Any]], details: Mapping[str, Any], *, name: str = "."
) -> str:
    """Writes the card in Markdown.

    `stages` are in the order they ran: a mapping in one (such as `data` or `validation`) gets a section of its own, the
    rest goes into the overview, `seconds` as a duration. `details` are further sections by title. `name` is the model's
    name on the hub, or `.` before it has one.
    """
    blocks = [
        _front_matter(config),
        f"# NExT-GPT, preset {config.preset}",
        _USAGE.format(name=name),
        _table(("part", "name"), _parts(config)),
    ]
    if stages:
        blocks += ["## Stages, in the order they ran", _overview(stages)]
    for stage in stages:
        sections = {title: value for title, value in stage.items() if isinstance(value, Mapping)}
        blocks += _sections(sections, f"Stage {stage['stage']}: ")
    return "\n\n".join(blocks + _sections(details)) + "\n"


def _front_matter(config: ModelConfig) -> str:
    values: dict[str, Any] = {
        "library_name": "nextgpt-ray",
        "pipeline_tag": "any-to-any",
        "tags": ["nextgpt", "multimodal"],
    }
    # The hub accepts only hub ids here.
    if _HUB_ID.fullmatch(config.llm.name) and not Path(config.llm.name).exists():
        values["base_model"] = config.llm.name
        values["base_model_relation"] = "adapter"
    return f"---\n{yaml.safe_dump(values, sort_keys=False)}---"


def _parts(config: ModelConfig) -> list[list[str]]:
    rows = [["LLM", config.llm.name]]
    rows += [[f"{m} encoder" if m else "encoder", encoder.name] for m, encoder in config.encoder.inputs.items()]
    for modality, output in config.outputs.items():
        rows.append([f"{modality.value} decoder", output.decoder])
        if output.kind == "connector":
            joint = f"{output.num_signal_tokens} signal tokens to {output.num_queries} x {output.dim}"
            rows.append([f"{modality.value} connector", f"{output.layers} layers, {joint}"])
    return rows


def _overview(stages: Sequence[Mapping[str, Any]]) -> str:
    plain = [{name: value for name, value in stage.items() if not isinstance(value, Mapping)} for stage in stages]
    names = list(dict.fromkeys(name for stage in plain for name in stage))
    rows = [[_cell(name, stage.get(name, "")) for name in names] for stage in plain]
    return _table(["time" if name == "seconds" else name for name in names], rows)


def _sections(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    blocks = []
    for name, value in values.items():
        blocks += [f"## {prefix}{_TITLES.get(name, name.capitalize())}", _section(name, value)]
    return blocks


def _section(name: str, value: Any) -> str:
    if isinstance(value, Mapping) and value and all(isinstance(entry, Mapping) for entry in value.values()):
        columns = list(dict.fromkeys(column for entry in value.values() for column in entry))
        rows = [[_text(key), *(_text(entry.get(column, "")) for column in columns)] for key, entry in value.items()]
        return _table(["name", *columns], rows)
    if isinstance(value, Mapping):
        return _table(("name", "value"), [[_text(key), _text(entry)] for key, entry in value.items()])
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "\n".join(f"* {_text(entry)}" for entry in value) or "None."
    return _cell(name, value)


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (names, ["---"] * len(names), *rows))


def _cell(name: str, value: Any) -> str:
    return _time(value) if name == "seconds" and value != "" else _text(value)


def _time(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(entry)}" for name, entry in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_text(entry) for entry in value)
    # A line break or a bar would end the table's cell.
    return " ".join(str(value).split()).replace("|", "\\|")
