"""The spectrograms of the small AudioLDM, and the training of its vocoder.

Shape suffixes: N sounds, S samples, F frames, B bands.
"""

from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.bootstrap.loop import train

SAMPLE_RATE = 16_000
HOP = 640  # samples per frame
BANDS = 64
_WINDOW = 1280
_LOWEST_HZ, _HIGHEST_HZ = 540.0, 7600.0
_FLOOR = 1e-3  # of amplitude
_STRETCH = 8  # frames
_NOISE = 0.03  # on the vocoder's training spectrograms: a decoder's are not clean either


def spectrogram(waveform_NS: Tensor) -> Tensor:
    """Log amplitudes in bands of equal width on a logarithmic frequency scale, (N, F, B), from about -1 to 1.

    The bands are 71 cents apart. A tone with a whole number of periods per frame has the same spectrum in every frame,
    which is how a vocoder can infer its phase.
    """
    padded_NS = F.pad(waveform_NS, ((_WINDOW - HOP) // 2, (_WINDOW - HOP) // 2))
    frames_NFS = padded_NS.unfold(-1, _WINDOW, HOP) * torch.hann_window(_WINDOW)
    amplitude = torch.fft.rfft(frames_NFS).abs() / (_WINDOW / 4)
    return ((amplitude @ _bands()).clamp_min(_FLOOR).log10() + 1.5) / 1.5


@cache
def _bands() -> Tensor:
    """Triangular filters of equal width in octaves: (bins, bands)."""
    centres = torch.linspace(0, 1, BANDS + 2) * torch.tensor(_HIGHEST_HZ / _LOWEST_HZ).log2()
    bins = (torch.fft.rfftfreq(_WINDOW, 1 / SAMPLE_RATE).clamp_min(1.0) / _LOWEST_HZ).log2()
    return (1 - (bins[:, None] - centres[1:-1]).abs() / (centres[1] - centres[0])).clamp_min(0)


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
