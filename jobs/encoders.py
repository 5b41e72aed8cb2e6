"""Makes the frozen encoders inside the actors that use them: model parts behind the `Encoder` of pipelines."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from model.config import ModelConfig
from model.devices import best_device
from model.parts import is_untrained
from model.precision import Precision
from pipelines.sample import Modality
from pipelines.shard_embedder import Embeddings, Encoder
from pipelines.sidecars import ENCODER, LATENTS, output_modality


def encoder_factory(config: ModelConfig, kind: str, precision: Precision = "float32") -> Callable[[], Encoder]:
    """What makes the encoder of a sidecar kind; `precision` is for captions alone."""
    modality = output_modality(kind)
    if modality is None:
        return partial(FeatureEncoder, config.encoder.name)
    name = config.outputs[modality].decoder
    if kind in LATENTS:
        return partial(MediumEncoder, modality, name)
    return partial(CaptionTextEncoder, modality, name, precision)


class CaptionTextEncoder:
    """A decoder's own text encoder; see model.decoders.CaptionEncoder."""

    def __init__(self, modality: Modality, name: str, precision: Precision = "float32") -> None:
        device = best_device()
        from model.decoders import CaptionEncoder

        self._encoder = CaptionEncoder(modality, name, device=device, precision=precision)
        self.name = name
        self.untrained = is_untrained(name)
        self.id = f"{modality.value}-{self._encoder.id}"

    def __call__(self, inputs: Sequence[Any]) -> Embeddings:
        """Caption embeddings (N, L, D) and how many of the L positions are each caption's own."""
        result = self._encoder(inputs)
        return result.embeddings, result.lengths


class MediumEncoder:
    """A decoder's own VAE on decoded media; see model.latents.LatentEncoder."""

    def __init__(self, modality: Modality, name: str) -> None:
        device = best_device()
        from model.latents import LatentEncoder

        self._encoder = LatentEncoder(modality, name, device=device)
        self.name = name
        self.untrained = is_untrained(name)
        self.id = f"{modality.value}_latents-{self._encoder.id}"

    def __call__(self, inputs: Sequence[Any]) -> Embeddings:
        """Latents (N, C, ...), which have no positions."""
        latents = self._encoder(inputs)
        return latents, np.ones(len(latents), np.int32)


class FeatureEncoder:
    """ImageBind on decoded media; see model.imagebind_inputs.ImageBindEncoder."""

    def __init__(self, name: str) -> None:
        device = best_device()
        from model.imagebind_inputs import ImageBindEncoder

        self._encoder = ImageBindEncoder(name, device=device)
        self.name = name
        self.untrained = is_untrained(name)
        self.id = f"{ENCODER}-{self._encoder.id}"

    def __call__(self, inputs: Sequence[Any]) -> Embeddings:
        """Features (N, E); a feature has no positions."""
        features = self._encoder(inputs)
        return features, np.ones(len(features), np.int32)
