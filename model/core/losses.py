"""Loss terms and metrics of a batch, each as a sum and the count to divide it by.

Sums and counts, not means, so that a global batch gives the same gradient however it is split over ranks and
micro-batches. Suffixes: F figures (terms and metrics), T loss terms, M output items of a modality, L and D length and
width of a condition, P positions with a label, V vocabulary, K output items with latents.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from model.core.batch import Batch, Targets
from model.core.dialogue import IGNORE
from model.core.nextgpt import Predictions
from model.core.vocabulary import SignalVocabulary
from pipelines.sample import Modality

if TYPE_CHECKING:
    from model.decoders.denoising import Denoiser  # imports diffusers, which takes seconds

# The loss terms, followed by metrics that are only logged.
TERMS = ("token_loss", *(f"{m}_alignment" for m in Modality), *(f"{m}_denoising" for m in Modality))
_WATCHED = ("mean_ratio", "cosine", "well_formed", "token_accuracy")
FIGURES = (*TERMS, "token_accuracy", *(f"{m}_{name}" for m in Modality for name in _WATCHED))


@dataclass(frozen=True, slots=True, kw_only=True)
class LossWeights:
    """The weight of each term in the total; 1 for a modality that is not listed."""

    tokens: float = 1.0
    alignment: Mapping[Modality, float] = field(default_factory=dict)
    denoising: Mapping[Modality, float] = field(default_factory=dict)

    def to_list(self) -> list[float]:
        """In the order of `TERMS`."""
        return [self.tokens, *(kind.get(m, 1.0) for kind in (self.alignment, self.denoising) for m in Modality)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """Sums over a batch and the counts to divide them by, float64 (F), in the order of `FIGURES`.

    `token_loss` is the mean cross-entropy in nats. `<modality>_alignment` is the weighted squared error relative to a
    predictor of the mean, or in legacy mode the mean L2 norm, plus the cosine distance if it has a weight.
    `<modality>_mean_ratio` is the relative error and `<modality>_cosine` the cosine in either mode: at a ratio of 1.0 a
    model has learned nothing but the mean. `<modality>_denoising` is the squared error of the UNet's prediction.
    `token_accuracy`, over all labels and over a modality's signal tokens, is the share with the highest logit, and
    `<modality>_well_formed` the share of signal groups in which every token has it.
    """

    sums_F: Tensor
    counts_F: Tensor

    def to_list(self) -> list[float]:
        """Numbers to add up over batches and ranks, in one transfer from the device; `from_list` reads them."""
        values: list[float] = torch.cat([self.sums_F.detach(), self.counts_F]).tolist()
        return values

    @classmethod
    def from_list(cls, values: Sequence[float]) -> "Losses":
        """Reads what `to_list` wrote; the sums have no gradient."""
        sums_F, counts_F = torch.tensor(values, dtype=torch.float64).chunk(2)
        return cls(sums_F=sums_F, counts_F=counts_F)

    def means(self) -> dict[str, float]:
        """The figures by name, without those that have no count in the batch."""
        values = self.to_list()
        sums, counts = values[: len(FIGURES)], values[len(FIGURES) :]
        return {name: total / count for name, total, count in zip(FIGURES, sums, counts, strict=True) if count}


@dataclass(frozen=True, slots=True, kw_only=True)
class Criterion:
    """Computes the losses of predictions, without synchronising with the device.

    `alignment_variance[m]` is the mean squared error per value of a modality's mean predictor (`mean_predictor_error`).
    `padding_weight` is the weight of positions outside the caption: the constant first one and those after the end
    token. `legacy` minimises NExT-GPT's original distance instead, the L2 norm at each position. `cosine_weight` adds
    one minus the cosine at each position, as often. `denoisers` add the denoising loss of their modalities, for items
    with latents; where a modality learns its null condition, that takes the place of a share `null_share` of theirs.
    """

    vocabulary: SignalVocabulary
    alignment_variance: Mapping[Modality, float]
    padding_weight: float = 0.1
    legacy: bool = False
    cosine_weight: float = 0.0
    null_share: float = 0.0
    denoisers: Mapping[Modality, "Denoiser"] = field(default_factory=dict)

    def __call__(self, predictions: Predictions, batch: Batch, generator: torch.Generator | None = None) -> Losses:
        """Sums the losses of a batch, in float32; denoisers draw from `generator`, which is on the CPU.

        Raises ValueError if caption embeddings or latents do not have the shape of the model's conditions or decoders.
        """
        logits_PV, labels_P = predictions.logits_PV.float(), predictions.labels_P
        correct_P = logits_PV.argmax(-1) == labels_P
        sums = {
            "token_loss": functional.cross_entropy(logits_PV, labels_P, reduction="sum"),
            "token_accuracy": correct_P.sum(),
        }
        counts = self._term_counts(batch)
        counts["token_accuracy"] = counts["token_loss"]
        for modality, conditions_MLD in predictions.conditions.items():
            self._score_signals(modality, labels_P, correct_P, sums, counts)
            targets = batch.targets.get(modality)
            if targets is None:
                # A sum of nothing: 0, but with a gradient, so that every rank reduces the same tensors.
                sums[f"{modality}_alignment"] = conditions_MLD.float().sum()
                continue
            self._score_alignment(modality, conditions_MLD.float(), targets, sums, counts)
            if modality in self.denoisers and len(targets.latents_K):
                assert generator is not None, "denoisers need a generator"
                conditions_KLD = conditions_MLD[targets.latent_items_K]
                if self.null_share and modality in predictions.nulls:
                    conditions_KLD = self._some_null(conditions_KLD, predictions.nulls[modality], generator)
                denoised = self.denoisers[modality](conditions_KLD, targets.latents_K, generator)
                sums[f"{modality}_denoising"] = denoised
        return Losses(sums_F=_stacked(sums, FIGURES, labels_P), counts_F=_stacked(counts, FIGURES, labels_P))

    def count(self, batch: Batch) -> Tensor:
        """A batch's contribution to the global counts of the terms, float64 (T); needs no forward pass."""
        return _stacked(self._term_counts(batch), TERMS, batch.labels_BT)

    def _term_counts(self, batch: Batch) -> dict[str, Tensor]:
        counts = {"token_loss": (batch.labels_BT[:, 1:] != IGNORE).sum()}
        for modality, targets in batch.targets.items():
            counts[f"{modality}_alignment"] = self._weights(targets, 1.0 if self.legacy else self.padding_weight).sum()
            if modality in self.denoisers:
                counts[f"{modality}_denoising"] = targets.lengths_M.new_full((), len(targets.latents_K))
        return counts

    def _some_null(self, conditions_KLD: Tensor, null_LD: Tensor, generator: torch.Generator) -> Tensor:
        is_null_K = torch.rand(len(conditions_KLD), generator=generator) < self.null_share
        return torch.where(is_null_K.to(conditions_KLD.device)[:, None, None], null_LD, conditions_KLD)

    def _score_signals(
        self,
        modality: Modality,
        labels_P: Tensor,
        correct_P: Tensor,
        sums: dict[str, Tensor],
        counts: dict[str, Tensor],
    ) -> None:
        ids = self.vocabulary.group(modality)
        of_modality_P = (labels_P >= ids[0]) & (labels_P <= ids[-1])
        sums[f"{modality}_token_accuracy"] = (correct_P & of_modality_P).sum()
        counts[f"{modality}_token_accuracy"] = of_modality_P.sum()
        # A group's labels are contiguous, since a dialogue is never truncated inside one.
        last_P = labels_P == ids[-1]
        so_far = functional.pad(correct_P.cumsum(0), (len(ids), 0))
        whole_P = so_far[len(ids) :] - so_far[: -len(ids)] == len(ids)
        sums[f"{modality}_well_formed"] = (whole_P & last_P).sum()
        counts[f"{modality}_well_formed"] = last_P.sum()

    def _score_alignment(
        self,
        modality: Modality,
        conditions_MLD: Tensor,
        targets: Targets,
        sums: dict[str, Tensor],
        counts: dict[str, Tensor],
    ) -> None:
        if conditions_MLD.shape != targets.embeddings_MLD.shape:
            given, wanted = tuple(targets.embeddings_MLD.shape[1:]), tuple(conditions_MLD.shape[1:])
            raise ValueError(
                f"{modality.value} caption embeddings are {given}, but the model's output projection gives {wanted}; "
                "embed the captions with the decoder that the preset names"
            )
        if modality not in self.alignment_variance:
            raise ValueError(f"alignment_variance has no {modality.value}; measure it on the training embeddings")
        differences_MLD = conditions_MLD - targets.embeddings_MLD
        weights_ML = self._weights(targets, self.padding_weight)
        error = (weights_ML * differences_MLD.pow(2).mean(-1)).sum() / self.alignment_variance[modality]
        norms_ML = differences_MLD.pow(2).sum(-1).clamp(min=1e-12).sqrt()
        cosines_ML = functional.cosine_similarity(conditions_MLD, targets.embeddings_MLD, dim=-1)
        alignment = norms_ML.sum() if self.legacy else error
        if self.cosine_weight:
            counted_ML = torch.ones_like(weights_ML) if self.legacy else weights_ML
            alignment = alignment + self.cosine_weight * (counted_ML * (1 - cosines_ML)).sum()
        sums[f"{modality}_alignment"] = alignment
        sums[f"{modality}_mean_ratio"] = error.detach()
        sums[f"{modality}_cosine"] = (weights_ML * cosines_ML).sum().detach()
        counts[f"{modality}_mean_ratio"] = counts[f"{modality}_cosine"] = weights_ML.sum()

    @staticmethod
    def _weights(targets: Targets, padding_weight: float) -> Tensor:
        return position_weights(targets.lengths_M, targets.embeddings_MLD.shape[1], padding_weight)


def _stacked(values: Mapping[str, Tensor], names: Sequence[str], like: Tensor) -> Tensor:
    """Values by name as one float64 tensor on the device of `like`; 0 for missing ones."""
    zero = torch.zeros((), dtype=torch.float64, device=like.device)
    return torch.stack([values[name].double() if name in values else zero for name in names])


def position_weights(lengths_M: Tensor, num_positions: int, padding_weight: float) -> Tensor:
    """Weights (M, L): 1 on the caption's positions (1 to length - 1), `padding_weight` elsewhere.

    A condition with a single position has weight 1.
    """
    if num_positions == 1:
        return torch.ones(len(lengths_M), 1, device=lengths_M.device)
    places_L = torch.arange(num_positions, device=lengths_M.device)
    own_ML = (places_L >= 1) & (places_L < lengths_M[:, None])
    return torch.where(own_ML, 1.0, padding_weight)


def total(losses: Losses, global_counts: Tensor, weights: LossWeights | None = None) -> Tensor:
    """A batch's share of the global batch's loss; the shares of all ranks and micro-batches add up to that loss.

    `global_counts` is the sum of `Criterion.count` over all of them, or longer. A framework that averages gradients
    over `n` ranks or micro-batches needs `n` times this.
    """
    counts_T = global_counts[: len(TERMS)].to(losses.sums_F.device)
    # Where the count is 0 the sum is 0 too, but its gradient must still flow.
    shares_T = losses.sums_F[: len(TERMS)] / counts_T.where(counts_T > 0, 1.0)
    weighted = [weight * share for weight, share in zip((weights or LossWeights()).to_list(), shares_T, strict=True)]
    return torch.stack(weighted).sum().float()


def mean_predictor_error(batches: Iterable[tuple[Tensor, Tensor]], padding_weight: float = 0.1) -> float:
    """The weighted squared error per value of the best constant prediction, in one pass over (M, L, D) and lengths (M).

    Relative to this error, a collapsed model, which has learned nothing but the mean, scores 1.0.
    Raises ValueError if there are no embeddings, or all are equal.
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


def caption_scale(batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The root mean square of a value at the captions' own positions, of embeddings (M, L, D) and lengths (M).

    Raises ValueError if there are no captions.
    """
    squares, count = 0.0, 0.0
    for embeddings_MLD, lengths_M in batches:
        own_ML = position_weights(lengths_M, embeddings_MLD.shape[1], 0.0).double()
        squares += float((own_ML[..., None] * embeddings_MLD.double().pow(2)).sum())
        count += float(own_ML.sum()) * embeddings_MLD.shape[2]
    if not count:
        raise ValueError("no caption embeddings to measure the scale of; run embed first")
    return float((squares / count) ** 0.5)
