"""What a stage minimises: from its first step on, or first alignment and later denoising as well."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from model.core.losses import Criterion, LossWeights
from model.core.vocabulary import SignalVocabulary
from model.training.train_settings import LossSettings
from pipelines.sample import Modality


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """The losses of some steps, and their weights."""

    criterion: Criterion
    weights: LossWeights


class Objective:
    """The phases of a stage of `num_steps`: `first` before step `switch`, counted from 0, `last` from it on.

    `denoiser` loads the frozen denoiser of a modality. `held_out` scores validation samples by the last phase in every
    step, so that scores of all checkpoints compare, and without replacing conditions by null ones.
    """

    def __init__(
        self,
        settings: LossSettings,
        num_steps: int,
        vocabulary: SignalVocabulary,
        alignment_variance: Mapping[Modality, float],
        denoiser: Callable[[Modality], Any],
    ) -> None:
        criterion = Criterion(
            vocabulary=vocabulary,
            alignment_variance=alignment_variance,
            padding_weight=settings.padding_weight,
            legacy=settings.alignment == "l2",
            cosine_weight=settings.cosine_weight,
            null_share=settings.null_share,
            denoisers={modality: denoiser(modality) for modality in settings.denoised},
        )
        weights = LossWeights(
            tokens=settings.text_weight,
            alignment=settings.alignment_weights,
            denoising=settings.denoising_weights,
        )
        after = {**settings.alignment_weights, **settings.alignment_weights_after}
        self.switch = round(num_steps * settings.denoise_from)
        self.first = Phase(criterion=replace(criterion, denoisers={}), weights=weights)
        self.last = Phase(criterion=criterion, weights=replace(weights, alignment=after))
        self.held_out = replace(self.last, criterion=replace(criterion, null_share=0.0))

    def at(self, step: int) -> Phase:
        """The phase of a step, counted from 0."""
        return self.first if step < self.switch else self.last
