"""What a training run is set to: one place for each setting, checked before anything starts."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, field_validator

from model.config import ModelConfig
from pipelines.sample import Modality

Stage = Literal[1, 2, 3]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class OptimizerSettings(_Settings):
    """AdamW with linear warm-up and linear decay to zero.

    A stage sets `learning_rate`; a preset may scale it, since narrow models take larger steps.
    """

    learning_rate: PositiveFloat
    learning_rate_scale: PositiveFloat = 1.0
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(0.001, ge=0)
    warmup_ratio: float = Field(0.1, ge=0, le=1)


class LossSettings(_Settings):
    """How the parts of the loss are weighed; `alignment` is normalised MSE or the legacy L2 norm."""

    alignment: Literal["mse", "l2"] = "mse"
    padding_weight: float = Field(0.1, ge=0)
    text_weight: float = Field(1.0, ge=0)
    alignment_weights: dict[Modality, float] = {modality: 1.0 for modality in Modality}


class TrainSettings(_Settings):
    """The effective configuration of a stage.

    `datasets` is `auto` (every prepared dataset that the catalog gives to the stage) or catalog names with weights;
    `batch_size` counts samples of a global batch, over all workers; `workers` and `gpus` of None are taken from the
    cluster; `sidecars` names an encoder id by kind where a dataset has several.
    """

    stage: Stage
    model: ModelConfig
    datasets: Literal["auto"] | Annotated[dict[str, PositiveFloat], Field(min_length=1)] = "auto"
    sidecars: dict[str, str] = {}
    batch_size: PositiveInt
    micro_batch_size: PositiveInt
    epochs: PositiveInt
    max_steps: PositiveInt | None = None
    workers: PositiveInt | None = None
    use_gpu: bool | None = None
    precision: Literal["fp32", "bf16"]
    gradient_checkpointing: bool = False
    seed: int = Field(0, ge=0)
    log_every: PositiveInt = 10
    checkpoint_every: PositiveInt | None = None
    optimizer: OptimizerSettings
    loss: LossSettings = LossSettings()
    deepspeed: str

    @field_validator("datasets", mode="before")
    @classmethod
    def _names_to_weights(cls, value: object) -> object:
        if isinstance(value, list):
            return {str(name): 1.0 for name in value}
        if isinstance(value, str) and value != "auto":
            return {name.strip(): 1.0 for name in value.split(",")}
        return value
