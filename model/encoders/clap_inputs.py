"""Sounds as CLAP takes them: log-mel spectrograms, made by its own feature extractor."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import soxr

from model.parts.builtin import resolve
from pipelines.sample import Audio, Decoded

MOST_CLIPS = 3


class MelInputs:
    """Makes what a CLAP takes of sounds, with its own feature extractor: float32 (S, frames, mel bands).

    A sound that fits is one clip; of a longer one there are 3, evenly spaced, where the extractor itself would cut at
    random.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    @cached_property
    def extractor(self) -> Any:
        """The feature extractor in the encoder's folder."""
        from transformers import ClapFeatureExtractor

        return ClapFeatureExtractor.from_pretrained(resolve(self._name))

    def __call__(self, media: Sequence[Decoded]) -> list[npt.NDArray[Any]]:
        """One array a sound.

        Raises:
            ValueError: a sound has no samples, or it is no sound.
        """
        return [self._one(medium) for medium in media]

    def _one(self, medium: Decoded) -> npt.NDArray[np.float32]:
        if not isinstance(medium, Audio):
            raise ValueError("a CLAP embeds sounds; name an encoder of images and videos")
        if not medium.waveform.size:
            raise ValueError("audio: it has no samples; leave it out")
        rate, most = self.extractor.sampling_rate, self.extractor.nb_max_samples
        mono = soxr.resample(medium.waveform.mean(axis=0, dtype=np.float32), medium.sample_rate, rate)
        if not len(mono):
            raise ValueError("audio: it is too short to be resampled; leave it out")
        starts = [0] if len(mono) <= most else _starts(len(mono), most)
        found = self.extractor([mono[start : start + most] for start in starts], sampling_rate=rate)
        # With `fusion`, a clip that fits is given four times over.
        return np.stack([mel[0] for mel in found["input_features"]]).astype(np.float32)


def _starts(length: int, most: int) -> list[int]:
    return [(length - most) * number // (MOST_CLIPS - 1) for number in range(MOST_CLIPS)]
