"""What a model is made of: parts, widths and signal tokens, read from a preset."""

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, field_validator

from pipelines.sample import Modality

PRESETS = Path(__file__).parent / "presets"


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LanguageModelConfig(_Settings):
    """The frozen base LLM. The widths are what is expected of it; one that is left out is not checked."""

    name: str
    hidden_size: PositiveInt | None = None
    vocab_size: PositiveInt | None = None
    num_layers: PositiveInt | None = None


class EncoderConfig(_Settings):
    """The frozen media encoder and the width of its embedding."""

    name: str
    dim: PositiveInt


class InputProjectionConfig(_Settings):
    """From one encoder embedding to `num_input_tokens` LLM tokens."""

    kind: Literal["linear", "query"] = "linear"
    num_input_tokens: PositiveInt = 1


class OutputConfig(_Settings):
    """One output modality: its decoder, its signal tokens, and the projection to (`num_queries`, `dim`)."""

    decoder: str
    num_signal_tokens: PositiveInt
    num_queries: PositiveInt
    dim: PositiveInt
    hidden: PositiveInt = 512
    ffn: PositiveInt = 2048
    layers: PositiveInt = 4
    heads: PositiveInt = 4


class LoraSettings(_Settings):
    """The adapter of stage 3 (LoRA, Hu et al. 2021)."""

    r: PositiveInt = 32
    alpha: PositiveInt = 32
    dropout: float = Field(default=0.1, ge=0, lt=1)
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")


class Prompts(_Settings):
    """What a user is made to say where the data hold only pairs."""

    caption: str = "generate a caption"


class ModelConfig(_Settings):
    """A whole model; `preset` is the name it is known by in checkpoints."""

    preset: str
    llm: LanguageModelConfig
    encoder: EncoderConfig
    input_projection: InputProjectionConfig = InputProjectionConfig()
    outputs: dict[Modality, OutputConfig]
    lora: LoraSettings = LoraSettings()
    max_length: PositiveInt = 512
    prompts: Prompts = Prompts()

    @field_validator("outputs")
    @classmethod
    def _in_order(cls, outputs: dict[Modality, OutputConfig]) -> dict[Modality, OutputConfig]:
        # The ids of signal tokens follow this order, so it must not depend on how a file happens to be sorted.
        return {modality: outputs[modality] for modality in Modality if modality in outputs}

    @property
    def signal_groups(self) -> dict[Modality, int]:
        """The number of signal tokens of each output modality."""
        return {modality: output.num_signal_tokens for modality, output in self.outputs.items()}


def parse_config(values: Any, where: str) -> ModelConfig:
    """Checks settings read from `where`.

    Raises ValueError with all mistakes in one line.
    """
    try:
        return ModelConfig.model_validate(values)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc'])) or 'the file'}: {fault['msg']}" for fault in error.errors()]
        raise ValueError(f"{where}: {'; '.join(faults)}") from None


def load_preset(name: str) -> ModelConfig:
    """Reads `presets/<name>.yaml`.

    Raises ValueError listing the presets when there is none of that name.
    """
    presets = sorted(path.stem for path in PRESETS.glob("*.yaml"))
    if name not in presets:
        raise ValueError(f"no preset {name!r}; choose one of {', '.join(presets)}")
    path = PRESETS / f"{name}.yaml"
    return parse_config({"preset": name, **yaml.safe_load(path.read_text(encoding="utf-8"))}, path.name)
