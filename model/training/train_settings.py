"""The settings of a training run, validated before anything starts."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, field_validator, model_validator

from model.parts.config import ModelConfig
from pipelines.sample import Modality

Stage = Literal[1, 2, 3]
# What stands for every dataset of a stage in `where`.
EVERY = "*"


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
    """The weights of the loss terms; `alignment` is normalised MSE or the legacy L2 norm.

    `cosine_weight` adds to it one minus the cosine. `denoising_weights` enables the denoising loss through a frozen
    UNet, by modality, from the share `denoise_from` of the steps on; from there, `alignment_weights_after` replace
    those of alignment. `null_share` of the denoised items train the null condition of a modality that learns its own. A
    loss that is not finite, or more than `stop_above` times the mean of previous steps, stops the run.
    """

    alignment: Literal["mse", "l2"] = "mse"
    padding_weight: float = Field(0.1, ge=0)
    text_weight: float = Field(1.0, ge=0)
    alignment_weights: dict[Modality, float] = {modality: 1.0 for modality in Modality}
    cosine_weight: float = Field(0.0, ge=0)
    denoising_weights: dict[Modality, float] = {}
    denoise_from: float = Field(0.0, ge=0, lt=1)
    alignment_weights_after: dict[Modality, float] = {}
    null_share: float = Field(0.1, ge=0, lt=1)
    stop_above: PositiveFloat = 20.0

    @property
    def denoised(self) -> list[Modality]:
        """The modalities with a denoising loss."""
        return [modality for modality, weight in self.denoising_weights.items() if weight]

    @model_validator(mode="after")
    def _denoises_what_it_plans(self) -> Self:
        planned = [name for name in ("denoise_from", "alignment_weights_after") if getattr(self, name)]
        if planned and not self.denoised:
            raise ValueError(f"{planned[0]} is set, but denoising_weights names no modality; set it, as {{image: 1.0}}")
        return self


class ValidationSettings(_Settings):
    """The held-out split, by the hash of a sample's key: the same samples in every stage and run.

    `every` counts steps; None validates with each checkpoint. `samples` limits the samples of one validation;
    `generate` logs one reply per modality, `auto` if there is a GPU or the decoders are small.
    """

    fraction: float = Field(0.02, ge=0, le=0.5)
    samples: PositiveInt = 128
    every: PositiveInt | None = None
    generate: bool | Literal["auto"] = "auto"


def _is_column(weight: object) -> bool:
    return isinstance(weight, str) and weight.isidentifier() and weight not in ("nan", "inf", "infinity")


class TrainSettings(_Settings):
    """The effective configuration of a stage.

    `datasets` is `auto` (every prepared dataset that the catalog assigns to the stage) or catalog names with weights,
    or with a mapping of `weight` and `where`. `where` is a condition on the columns of jobs/curate.py that samples have
    to satisfy, for all datasets (`*`) or by name. A weight may be the name of such a column, which says how often each
    sample comes in an epoch: `weight_columns` has those by name of the dataset. `captions` are those of pairs: their
    own, the new ones of jobs/recaption.py, or both. `sidecars` selects an encoder id by
    kind if a dataset has several. `batch_size` counts samples of a global batch, over all workers. `max_steps`
    overrides `epochs`, and may exceed them. Global batches consist of samples of similar length: `length_window`
    batches are sorted together. If `workers` or `use_gpu` is None, the cluster decides; a pair of numbers lets a run
    continue with fewer workers while nodes are lost. `zero` is DeepSpeed's ZeRO stage. A run survives `max_failures`
    worker failures. Checkpoints are written every `checkpoint_every` steps and at the end; the best and the last
    `keep_last` are kept. `shuffle_items` trains a control on mismatched features and caption embeddings.
    """

    stage: Stage
    model: ModelConfig
    datasets: Literal["auto"] | Annotated[dict[str, PositiveFloat], Field(min_length=1)] = "auto"
    where: dict[str, str] | None = None
    weight_columns: dict[str, str] | None = None
    captions: Literal["original", "new", "both"] = "original"
    sidecars: dict[str, str] = {}
    batch_size: PositiveInt
    micro_batch_size: PositiveInt
    epochs: PositiveInt
    max_steps: PositiveInt | None = None
    length_window: PositiveInt = 16
    workers: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None
    use_gpu: bool | None = None
    max_failures: int = Field(3, ge=0)
    precision: Literal["fp32", "bf16"]
    zero: Literal[0, 1, 2, 3] = 1
    offload_optimizer: bool = False
    gradient_checkpointing: bool = False
    seed: int = Field(0, ge=0)
    log_every: PositiveInt = 10
    log_samples: bool = False
    shuffle_items: bool = False
    tracker: Literal["mlflow", "wandb"] | None = None
    checkpoint_every: PositiveInt | None = None
    keep_last: PositiveInt = 2
    optimizer: OptimizerSettings
    loss: LossSettings = LossSettings()
    validation: ValidationSettings = ValidationSettings()
    deepspeed: str

    @model_validator(mode="after")
    def _denoises_what_the_model_makes(self) -> Self:
        outputs, denoised, key = self.model.outputs, self.loss.denoised, "loss.denoising_weights"
        for modality in denoised:
            if modality not in outputs:
                raise ValueError(f"{key}: {modality}, but preset {self.model.preset} makes none; leave it out")
        for modality, output in outputs.items():
            if self.stage == 2 and output.null == "learned" and modality not in denoised:
                raise ValueError(
                    f"model.outputs.{modality}.null: learned, but {key}.{modality} is not set, so that nothing trains "
                    "it; set that, or null to encoder"
                )
        return self

    @property
    def num_micro_batches(self) -> int:
        """The number of micro-batches in a full global batch."""
        return -(-self.batch_size // self.micro_batch_size)

    @model_validator(mode="before")
    @classmethod
    def _columns_apart(cls, values: object) -> object:
        """Puts what datasets' entries say of columns to the others, so that each is in one place."""
        if not isinstance(values, dict):
            return values
        where, columns, datasets = (values.get(name) for name in ("where", "weight_columns", "datasets"))
        found = {EVERY: where} if isinstance(where, str) else where
        if isinstance(datasets, Mapping) and all(isinstance(one, dict) or one is None for one in (found, columns)):
            entries = {name: dict(entry) for name, entry in datasets.items() if isinstance(entry, Mapping)}
            own = {name: entry.pop("where") for name, entry in entries.items() if "where" in entry}
            weights = {**datasets, **{name: entry.pop("weight", 1.0) for name, entry in entries.items()}}
            named = {name: weight for name, weight in weights.items() if _is_column(weight)}
            # What is left over of an entry is no setting, and is refused as no number.
            left = {name: entry for name, entry in entries.items() if entry}
            values = {**values, "datasets": {**weights, **dict.fromkeys(named, 1.0), **left}}
            found, columns = {**(found or {}), **own} or None, {**(columns or {}), **named} or None
        return {**values, "where": found, "weight_columns": columns}

    @field_validator("datasets", mode="before")
    @classmethod
    def _names_to_weights(cls, value: object) -> object:
        if isinstance(value, list):
            return {str(name): 1.0 for name in value}
        if isinstance(value, str) and value != "auto":
            return {name.strip(): 1.0 for name in value.split(",")}
        return value
