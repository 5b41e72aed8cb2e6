"""Token cross-entropy and the distance of projected signal states to caption embeddings, as sums and counts.

Sums and counts, not means, so that a global batch gives the same gradient however it is split over ranks and
micro-batches. Suffixes: M output items of a modality, L and D length and width of a condition, P learned positions.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from model.batch import Batch, Targets
from model.dialogue import IGNORE
from model.nextgpt import Predictions
from pipelines.sample import Modality


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What the sums are divided by; of the global batch when they are added up over all ranks and micro-batches."""

    tokens: float = 0.0
    alignment: Mapping[Modality, float] = field(default_factory=dict)

    def to_list(self) -> list[float]:
        """As numbers to reduce over ranks: tokens, then each modality."""
        return [self.tokens, *(self.alignment.get(modality, 0.0) for modality in Modality)]

    @classmethod
    def from_list(cls, values: Iterable[float]) -> "Counts":
        """Reads what `to_list` wrote."""
        tokens, *alignment = values
        return cls(tokens=tokens, alignment=dict(zip(Modality, alignment, strict=True)))

    def __add__(self, other: "Counts") -> "Counts":
        return Counts.from_list(a + b for a, b in zip(self.to_list(), other.to_list(), strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class LossWeights:
    """How much each term counts in the total; a modality that is not named counts 1."""

    tokens: float = 1.0
    alignment: Mapping[Modality, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """Sums over a batch and what they are divided by: `token_sum / counts.tokens` is the mean cross-entropy in nats.

    `alignment_sums[m] / counts.alignment[m]` is the weighted squared error in units of the given variance: 1.0 is what
    a predictor of the mean scores. `num_correct` of the learned tokens have the highest logit.
    """

    token_sum: Tensor
    alignment_sums: dict[Modality, Tensor]
    num_correct: Tensor
    counts: Counts

    def to_list(self) -> list[float]:
        """As numbers to add up over batches and ranks; `from_list` reads them."""
        sums = [float(self.alignment_sums[m].detach()) if m in self.alignment_sums else 0.0 for m in Modality]
        return [float(self.token_sum.detach()), *sums, float(self.num_correct), *self.counts.to_list()]

    @classmethod
    def from_list(cls, values: Sequence[float]) -> "Losses":
        """Reads what `to_list` wrote; the sums have no gradient."""
        token_sum, *sums = values[: len(Modality) + 1]
        num_correct, *counts = values[len(Modality) + 1 :]
        return cls(
            token_sum=torch.tensor(token_sum, dtype=torch.float64),
            alignment_sums={m: torch.tensor(s, dtype=torch.float64) for m, s in zip(Modality, sums, strict=True)},
            num_correct=torch.tensor(num_correct),
            counts=Counts.from_list(counts),
        )

    def means(self) -> dict[str, float]:
        """Figures to log: `token_loss`, `token_accuracy`, `<modality>_alignment`; what the batch lacks is left out."""
        figures = {}
        if self.counts.tokens:
            figures["token_loss"] = self.token_sum.item() / self.counts.tokens
            figures["token_accuracy"] = self.num_correct.item() / self.counts.tokens
        for modality, count in self.counts.alignment.items():
            if count:
                figures[f"{modality.value}_alignment"] = self.alignment_sums[modality].item() / count
        return figures


@dataclass(frozen=True, slots=True, kw_only=True)
class Criterion:
    """Scores predictions.

    `alignment_variance[m]` is the mean squared error per value of a modality's mean predictor (`mean_predictor_error`),
    `padding_weight` the weight of the positions that are not the caption's own: the constant first one and those after
    the end token. `legacy` gives NExT-GPT's original distance instead, the L2 norm at each position.
    """

    alignment_variance: Mapping[Modality, float] = field(default_factory=dict)
    padding_weight: float = 0.1
    legacy: bool = False

    def __call__(self, predictions: Predictions, batch: Batch) -> Losses:
        """Sums the losses of a batch, in float32.

        Raises ValueError when caption embeddings have another shape than the model's conditions.
        """
        logits_PV, labels_P = predictions.logits_PV.float(), predictions.labels_P
        return Losses(
            token_sum=functional.cross_entropy(logits_PV, labels_P, reduction="sum"),
            alignment_sums={
                modality: self._align(modality, conditions_MLD.float(), batch.targets.get(modality))
                for modality, conditions_MLD in predictions.conditions.items()
            },
            num_correct=(logits_PV.argmax(-1) == labels_P).sum(),
            counts=self.count(batch),
        )

    def count(self, batch: Batch) -> Counts:
        """What a batch adds to the global counts; needs no forward pass, so a step can sum it up beforehand."""
        return Counts(
            tokens=float((batch.labels_BT[:, 1:] != IGNORE).sum()),
            alignment={m: float(self._weights(targets).sum()) for m, targets in batch.targets.items()},
        )

    def _weights(self, targets: Targets) -> Tensor:
        num_positions = targets.embeddings_MLD.shape[1]
        padding_weight = 1.0 if self.legacy else self.padding_weight
        return position_weights(targets.lengths_M, num_positions, padding_weight)

    def _align(self, modality: Modality, conditions_MLD: Tensor, targets: Targets | None) -> Tensor:
        if targets is None:
            return conditions_MLD.sum()  # of nothing: 0, with a gradient for every rank to reduce
        if conditions_MLD.shape != targets.embeddings_MLD.shape:
            given, wanted = tuple(targets.embeddings_MLD.shape[1:]), tuple(conditions_MLD.shape[1:])
            raise ValueError(
                f"{modality.value} caption embeddings are {given}, but the model's output projection gives {wanted}; "
                "embed the captions with the decoder that the preset names"
            )
        differences_MLD = conditions_MLD - targets.embeddings_MLD
        if self.legacy:
            return differences_MLD.pow(2).sum(-1).clamp(min=1e-12).sqrt().sum()
        if modality not in self.alignment_variance:
            raise ValueError(f"alignment_variance has no {modality.value}; measure it on the training embeddings")
        weighted_ML = self._weights(targets) * differences_MLD.pow(2).mean(-1)
        return weighted_ML.sum() / self.alignment_variance[modality]


def position_weights(lengths_M: Tensor, num_positions: int, padding_weight: float) -> Tensor:
    """Weights (M, L): 1 on positions 1 to length - 1, the caption's own, `padding_weight` elsewhere.

    A condition of a single position has weight 1.
    """
    if num_positions == 1:
        return torch.ones(len(lengths_M), 1, device=lengths_M.device)
    places_L = torch.arange(num_positions, device=lengths_M.device)
    own_ML = (places_L >= 1) & (places_L < lengths_M[:, None])
    return torch.where(own_ML, 1.0, padding_weight)


def total(losses: Losses, global_counts: Counts, weights: LossWeights | None = None) -> Tensor:
    """A batch's share of the global batch's loss; the shares of all ranks and micro-batches add up to the whole.

    A framework that averages gradients over `n` ranks or micro-batches needs `n` times this.
    """
    weights = weights or LossWeights()
    loss = weights.tokens * losses.token_sum / max(global_counts.tokens, 1.0)
    for modality, alignment_sum in losses.alignment_sums.items():
        count = global_counts.alignment.get(modality, 0.0)
        # Without a count the sum is of nothing, but the gradient must pass.
        loss = loss + weights.alignment.get(modality, 1.0) * alignment_sum / (count or 1.0)
    return loss


def mean_predictor_error(batches: Iterable[tuple[Tensor, Tensor]], padding_weight: float = 0.1) -> float:
    """The weighted squared error per value of the best constant prediction, in one pass over (M, L, D) and lengths (M).

    Errors in these units say how far a model is from collapse: at 1.0 it has learned the mean and nothing else.
    Raises ValueError when there are no embeddings, or only equal ones.
    """
    weights_L: Tensor | float = 0.0
    sums_LD: Tensor | float = 0.0
    squares_L: Tensor | float = 0.0
    for embeddings_MLD, lengths_M in batches:
        values_MLD = embeddings_MLD.double()
        weights_ML = position_weights(lengths_M, values_MLD.shape[1], padding_weight).double()
        weights_L = weights_L + weights_ML.sum(0)
        sums_LD = sums_LD + torch.einsum("ml,mld->ld", weights_ML, values_MLD)
        squares_L = squares_L + torch.einsum("ml,mld->l", weights_ML, values_MLD.pow(2))
    if not isinstance(weights_L, Tensor) or not isinstance(sums_LD, Tensor):
        raise ValueError("no caption embeddings to measure the variance of; run embed first")
    error_L = squares_L - sums_LD.pow(2).sum(-1) / weights_L
    error = float(error_L.sum() / (weights_L.sum() * sums_LD.shape[1]))
    if error <= 1e-12:
        raise ValueError("all caption embeddings are equal; check the captions they were made of")
    return error
