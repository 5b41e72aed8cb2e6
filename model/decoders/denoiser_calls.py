"""How the denoiser of each family is called: with what, in which shape and types, as its pipeline does.

Suffixes: K items, L positions of a condition, D its width, C channels of latents, T places in time.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn.functional import normalize

from model.decoders.conditions import Condition
from model.parts.family_table import Family


@dataclass(frozen=True, slots=True)
class Denoising:
    """A family's denoiser, its projection of conditions where it has one, and the sizes that it is told."""

    family: Family
    module: Any
    projection: Any
    sizes: Mapping[str, Any]


def call_denoiser(denoising: Denoising, noisy: Tensor, timesteps_K: Tensor, condition: Condition) -> Tensor:
    """What a denoiser predicts for K noisy latents, in their shape."""
    dtype = denoising.module.dtype
    sequence, mask, pooled = condition
    condition = Condition(sequence.to(dtype), mask, pooled)
    return _CALLS[denoising.family.pipeline](denoising, noisy, timesteps_K, condition)


def _attended(of: Denoising, noisy: Tensor, timesteps_K: Tensor, condition: Condition) -> Tensor:
    predicted: Tensor = of.module(noisy, timesteps_K, encoder_hidden_states=condition.sequence_NLD).sample
    return predicted


def _classed(of: Denoising, noisy: Tensor, timesteps_K: Tensor, condition: Condition) -> Tensor:
    # AudioLDM has only self-attention. A pooled condition is a unit vector, a projected one only approximately.
    vectors_KD = normalize(condition.pooled_NP.float(), dim=-1).to(of.module.dtype)
    predicted: Tensor = of.module(noisy, timesteps_K, encoder_hidden_states=None, class_labels=vectors_KD).sample
    return predicted


_Call = Callable[[Denoising, Tensor, Tensor, Condition], Tensor]
_CALLS: dict[str, _Call] = {
    "StableDiffusionPipeline": _attended,
    "TextToVideoSDPipeline": _attended,
    "AudioLDMPipeline": _classed,
}
