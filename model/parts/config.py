"""A model's configuration: parts, widths and signal tokens, read from a preset."""

from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, field_validator, model_validator

from pipelines.sample import Modality

PRESETS = Path(__file__).parents[1] / "presets"


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LanguageModelConfig(_Settings):
    """The frozen base LLM: any causal LM supported by transformers, by hub id or path.

    The LLM is checked against each width that is given. `attention` is transformers' name of the kernel; `load_in_4bit`
    keeps the LLM's linear layers in NF4 (Dettmers et al. 2023, arXiv:2305.14314). `template` is how dialogues are
    written: `auto` by the chat template of the LLM's own tokenizer, `vicuna_v0` in the layout of the released weights.
    """

    name: str
    template: Literal["auto", "vicuna_v0"] = "auto"
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    load_in_4bit: bool = False
    hidden_size: PositiveInt | None = None
    vocab_size: PositiveInt | None = None
    num_layers: PositiveInt | None = None


class EncoderConfig(_Settings):
    """The frozen media encoder and the width of its embedding."""

    name: str
    dim: PositiveInt


class InputProjectionConfig(_Settings):
    """Maps one encoder embedding to `num_input_tokens` LLM tokens; `hidden` and `heads` apply to kind `query` only."""

    kind: Literal["linear", "query"] = "linear"
    num_input_tokens: PositiveInt = 1
    hidden: PositiveInt = 512
    heads: PositiveInt = 4


class OutputConfig(_Settings):
    """One output modality: its decoder, its signal tokens, and what maps these to (`num_queries`, `dim`).

    `kind` is NExT-GPT's `projection`, to which `hidden` and `ffn` apply, or `connector`, to which `width` does (None is
    the LLM's). `null` is the negative condition of classifier-free guidance: the decoder's own embedding of an empty
    text (`encoder`), or what zeros are mapped to (`learned`), which a share of the denoising loss trains.
    """

    decoder: str
    num_signal_tokens: PositiveInt
    num_queries: PositiveInt
    dim: PositiveInt
    kind: Literal["projection", "connector"] = "projection"
    hidden: PositiveInt = 512
    ffn: PositiveInt = 2048
    width: PositiveInt | None = None
    layers: PositiveInt = 4
    heads: PositiveInt = 4
    null: Literal["encoder", "learned"] = "encoder"

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        if self.kind == "projection" and self.width is not None:
            raise ValueError(f"width is {self.width}, but kind projection has none; set hidden, or kind to connector")
        name, width = ("width", self.width) if self.kind == "connector" else ("hidden", self.hidden)
        if width is not None and width % self.heads:
            raise ValueError(_uneven(name, width, self.heads))
        return self


def _uneven(name: str, width: int, heads: int) -> str:
    return f"{name} is {width}, which {heads} heads cannot share; set heads to a divisor of it"


class LoraSettings(_Settings):
    """The adapter of stage 3 (LoRA, Hu et al. 2021).

    `targets` are the names of the layers that are adapted; `auto` stands for all linear layers of the attention.
    """

    r: PositiveInt = 32
    alpha: PositiveInt = 32
    dropout: float = Field(default=0.1, ge=0, lt=1)
    targets: tuple[str, ...] | Literal["auto"] = ("q_proj", "k_proj", "v_proj", "o_proj")


class DecoderSettings(_Settings):
    """How the frozen decoders run; the trained weights do not depend on it.

    `precision: auto` means float16 for full-size decoders on a GPU, else float32. With `safety_checker`, Stable
    Diffusion's own classifier withholds images. `on_device` sets how many decoders stay on the device: with `one`, the
    others are kept in host memory.
    """

    precision: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    safety_checker: bool = False
    on_device: Literal["all", "one"] = "all"


class ModelConfig(_Settings):
    """A whole model; `preset` is its name in checkpoints."""

    preset: str
    llm: LanguageModelConfig
    encoder: EncoderConfig
    input_projection: InputProjectionConfig = InputProjectionConfig()
    outputs: dict[Modality, OutputConfig]
    decoders: DecoderSettings = DecoderSettings()
    lora: LoraSettings = LoraSettings()
    max_length: PositiveInt = 512

    @field_validator("outputs")
    @classmethod
    def _in_order(cls, outputs: dict[Modality, OutputConfig]) -> dict[Modality, OutputConfig]:
        # Signal token ids follow this order, so it must not depend on the order of keys in a file.
        return {modality: outputs[modality] for modality in Modality if modality in outputs}

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Self:
        width = self.llm.hidden_size
        for modality, output in self.outputs.items():
            if output.kind == "connector" and output.width is None and width is not None and width % output.heads:
                raise ValueError(f"outputs.{modality}: {_uneven('width (that of the LLM)', width, output.heads)}")
        return self

    @property
    def signal_groups(self) -> dict[Modality, int]:
        """The number of signal tokens of each output modality."""
        return {modality: output.num_signal_tokens for modality, output in self.outputs.items()}


def parse_config(values: Any, where: str) -> ModelConfig:
    """Validates settings read from `where`.

    Raises ValueError listing all mistakes in one line.
    """
    try:
        return ModelConfig.model_validate(values)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc'])) or 'the file'}: {fault['msg']}" for fault in error.errors()]
        raise ValueError(f"{where}: {'; '.join(faults)}") from None


def load_preset(name: str) -> ModelConfig:
    """Reads `presets/<name>.yaml`, or the YAML file at path `name`, merged over its `base` presets.

    Raises ValueError listing the presets if the name is unknown.
    """
    values: dict[str, Any] = {}
    for layer in preset_layers(name):
        values = _merged(values, _read_preset(layer))
    values.pop("base", None)
    return parse_config({"preset": Path(name).stem if is_file(name) else name, **values}, _file(name).name)


def preset_layers(name: str) -> list[str]:
    """The chain of presets behind one: its `base` presets, bottom first, then itself.

    Raises ValueError listing the presets if the name is unknown.
    """
    layers = [name]
    while base := _read_preset(layers[0]).get("base"):
        if is_file(base) and is_file(layers[0]):
            base = str(Path(layers[0]).parent / base)
        if base in layers:
            raise ValueError(f"{base}: is its own base; name another base")
        layers.insert(0, base)
    return layers


def is_file(name: str) -> bool:
    """Whether a preset is given as a file rather than by the name of a shipped one."""
    return name.endswith((".yaml", ".yml"))


def _file(name: str) -> Path:
    return Path(name).expanduser() if is_file(name) else PRESETS / f"{name}.yaml"


def _read_preset(name: str) -> dict[str, Any]:
    path = _file(name)
    if not path.is_file():
        if is_file(name):
            raise ValueError(f"{name}: no such file; looked for {path.absolute()}")
        presets = sorted(path.stem for path in PRESETS.glob("*.yaml"))
        raise ValueError(f"no preset {name!r}; choose one of {', '.join(presets)}, or the path of a .yaml file")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{name}: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{name}: must map llm, encoder, outputs ... to their settings; base: names another preset")
    return values


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    both = [key for key in base.keys() & over if isinstance(base[key], dict) and isinstance(over[key], dict)]
    return {**base, **over, **{key: _merged(base[key], over[key]) for key in both}}
