"""A checkpoint's README: what it is, what was trained on what, and what it scored."""

from collections.abc import Mapping, Sequence
from typing import Any

from model.config import ModelConfig

_TITLES = {
    "data": "Data (sha256 of the shards)",
    "metrics": "Metrics",
    "untrained": "Parts with random weights",
}


def model_card(config: ModelConfig, stages: Sequence[Mapping[str, Any]], details: Mapping[str, Any]) -> str:
    """Writes the card in Markdown; `stages` in the order they ran, `details` by section title."""
    lines = [
        "---",
        "library_name: nextgpt-ray",
        "tags: [nextgpt, multimodal, any-to-any]",
        "---",
        "",
        f"# NExT-GPT, preset {config.preset}",
        "",
        "The trained parts only; they run on the frozen parts named here.",
        "",
        *_table(("part", "name"), _parts(config)),
    ]
    if stages:
        names = list(dict.fromkeys(name for stage in stages for name in stage))
        rows = [[_text(stage.get(name, "")) for name in names] for stage in stages]
        lines += ["", "## Stages, in the order they ran", "", *_table(names, rows)]
    for name, value in details.items():
        lines += ["", f"## {_TITLES.get(name, name.capitalize())}", "", *_section(value)]
    return "\n".join(lines) + "\n"


def _parts(config: ModelConfig) -> list[list[str]]:
    rows = [["LLM", config.llm.name], ["encoder", config.encoder.name]]
    return rows + [[f"{modality.value} decoder", output.decoder] for modality, output in config.outputs.items()]


def _section(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return _table(("name", "value"), [[str(name), _text(entry)] for name, entry in value.items()])
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [f"* {_text(entry)}" for entry in value] or ["None."]
    return [_text(value)]


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (names, ["---"] * len(names), *rows)]


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(entry)}" for name, entry in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_text(entry) for entry in value)
    # A line break or a bar would end the table's cell.
    return " ".join(str(value).split()).replace("|", "\\|")
