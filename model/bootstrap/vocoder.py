"""Trains the vocoder of the small AudioLDM.

Shape suffixes: N sounds, S samples, F frames, B bands.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.bootstrap.loop import train
from model.decoders.spectrograms import SMALL_HOP as HOP

_STRETCH = 8  # frames
_NOISE = 0.03  # on the vocoder's training spectrograms: a decoder's are not clean either


def train_vocoder(
    vocoder: Any, waveform_NS: Tensor, spectrogram_NFB: Tensor, *, steps: int, batch_size: int, state: Path
) -> None:
    """Trains a HiFi-GAN generator to reconstruct the samples, in segments of a few frames.

    No discriminator is needed: the sounds' phases follow from their spectrograms, so samples are compared directly.
    """
    num_frames = spectrogram_NFB.shape[1]

    def loss(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(waveform_NS), (batch_size,), generator=generator)
        start = int(torch.randint(num_frames - _STRETCH + 1, (), generator=generator))
        given_NFB = spectrogram_NFB[rows, start : start + _STRETCH]
        given_NFB = given_NFB + _NOISE * torch.randn(given_NFB.shape, generator=generator)
        wanted_NS = waveform_NS[rows, start * HOP : (start + _STRETCH) * HOP]
        return F.mse_loss(vocoder(given_NFB), wanted_NS) / waveform_NS.square().mean()

    train(state.stem, vocoder, loss, steps=steps, learning_rate=2e-3, state=state)
