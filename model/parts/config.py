"""A model's configuration: parts, widths and signal tokens, read from a preset."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from pipelines.sample import Modality

PRESETS = Path(__file__).parents[1] / "presets"


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LanguageModelConfig(_Settings):
    """The frozen base LLM: any causal LM supported by transformers, by hub id or path.

    The LLM is checked against each width that is given. `attention` is transformers' name of the kernel; `load_in_4bit`
    keeps the LLM's linear layers in NF4 (Dettmers et al. 2023, arXiv:2305.14314). `template` is how dialogues are
    written: `auto` by the chat template of the LLM's own tokenizer, `vicuna_v0` in the layout of the released weights.
    `system` is what the system says where a dialogue does not say it; by default what the template itself writes.
    """

    name: str
    template: Literal["auto", "vicuna_v0"] = "auto"
    system: str | None = None
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    load_in_4bit: bool = False
    hidden_size: PositiveInt | None = None
    vocab_size: PositiveInt | None = None
    num_layers: PositiveInt | None = None


class MediaEncoderConfig(_Settings):
    """A frozen media encoder, and what it makes of an item: its pooled vector, or so many `patches`; `dim` wide."""

    name: str
    dim: PositiveInt
    patches: PositiveInt | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of an item's embedding: (dim,) if pooled, else (patches, dim)."""
        return (self.dim,) if self.patches is None else (self.patches, self.dim)


class EncoderConfig(_Settings):
    """The frozen media encoders: one for all modalities, or one for each modality that the model takes."""

    name: str | None = None
    dim: PositiveInt | None = None
    patches: PositiveInt | None = None
    image: MediaEncoderConfig | None = None
    video: MediaEncoderConfig | None = None
    audio: MediaEncoderConfig | None = None

    @model_validator(mode="after")
    def _one_or_several(self) -> Self:
        if self._several and (self.name or self.dim or self.patches):
            raise ValueError(f"name, dim and patches are of one encoder for all, but {_listed(self._several)} is named")
        if not self._several and not (self.name and self.dim):
            raise ValueError("name and dim must be set, or those of image, video or audio")
        return self

    @model_serializer
    def _given(self) -> dict[str, Any]:
        # Only what is set, so that a configuration with one pooled encoder is what it always was.
        return {name: value for name, value in self if value is not None}

    @property
    def _several(self) -> dict[Modality, MediaEncoderConfig]:
        found = {modality: getattr(self, modality.value) for modality in Modality}
        return {modality: encoder for modality, encoder in found.items() if encoder is not None}

    @property
    def inputs(self) -> dict[Modality | None, MediaEncoderConfig]:
        """The encoders by the modality whose items they embed; one for all is under None."""
        inputs: dict[Modality | None, MediaEncoderConfig] = dict(self._several.items())
        if self.name is not None and self.dim is not None:
            inputs[None] = MediaEncoderConfig(name=self.name, dim=self.dim, patches=self.patches)
        return inputs

    @property
    def by_modality(self) -> dict[Modality, MediaEncoderConfig]:
        """The encoder of each modality that the model takes."""
        return self._several or dict.fromkeys(Modality, self.inputs[None])

    @property
    def names(self) -> list[str]:
        """The names of the encoders, each once."""
        return list(dict.fromkeys(encoder.name for encoder in self.inputs.values()))

    @property
    def shared(self) -> dict[MediaEncoderConfig, list[Modality | None]]:
        """What is embedded alike, and so projected by one projection: encoders, and the keys of `inputs` of each."""
        groups: dict[MediaEncoderConfig, list[Modality | None]] = {}
        for modality, encoder in self.inputs.items():
            groups.setdefault(encoder, []).append(modality)
        return groups

    @property
    def pooled(self) -> "EncoderConfig":
        """The same encoders without patches, for what compares items; the widths are still those of patches."""
        alone = {m.value: encoder.model_copy(update={"patches": None}) for m, encoder in self._several.items()}
        return self.model_copy(update={**alone, "patches": None})

    def renamed(self, names: Mapping[Modality | None, str]) -> "EncoderConfig":
        """The same with encoders renamed, by the keys of `inputs`."""
        renamed = {
            modality.value: encoder.model_copy(update={"name": names.get(modality, encoder.name)})
            for modality, encoder in self._several.items()
        }
        return self.model_copy(update=renamed or {"name": names.get(None, self.name)})


class InputProjectionConfig(_Settings):
    """Maps an item's embedding to `num_input_tokens` LLM tokens, with one projection for all that is embedded alike.

    `linear` maps a pooled vector to one token, and each of several patches to one of its own; `query` reads the
    embedding with learned queries; `resampler` does too, with `layers` layers, and knows where each patch stands.
    `hidden` and `heads` do not apply to `linear`.
    """

    kind: Literal["linear", "query", "resampler"] = "linear"
    num_input_tokens: PositiveInt = 1
    hidden: PositiveInt = 512
    heads: PositiveInt = 4
    layers: PositiveInt = 2


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

    @model_validator(mode="after")
    def _tokens_fit(self) -> Self:
        projection = self.input_projection
        for encoder in self.encoder.inputs.values():
            if projection.kind == "linear" and projection.num_input_tokens != (encoder.patches or 1):
                vectors = f"{encoder.patches} patches" if encoder.patches else "one vector"
                raise ValueError(
                    f"input_projection: num_input_tokens is {projection.num_input_tokens}, but kind linear makes a "
                    f"token of each vector, and {encoder.name} gives {vectors}; set it to that, or kind to resampler"
                )
        return self

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


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


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
        found = _read_preset(layer)
        if _names_modalities(found) != _names_modalities(values) and found.get("encoder"):
            values.pop("encoder", None)  # one encoder for all instead of several, or the other way round
        values = _merged(values, found)
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


def _names_modalities(values: Mapping[str, Any]) -> bool:
    """Whether settings name an encoder for each modality."""
    encoder = values.get("encoder")
    return isinstance(encoder, dict) and any(modality.value in encoder for modality in Modality)


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    both = [key for key in base.keys() & over if isinstance(base[key], dict) and isinstance(over[key], dict)]
    return {**base, **over, **{key: _merged(base[key], over[key]) for key in both}}
