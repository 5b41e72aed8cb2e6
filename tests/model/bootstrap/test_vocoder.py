import numpy as np
import torch

from model.decoders.spectrograms import BANDS, SAMPLE_RATE
from model.decoders.spectrograms import SMALL_HOP as HOP
from model.decoders.spectrograms import small_spectrogram as spectrogram


def _tone(frequency: float, seconds: float = 1.28) -> torch.Tensor:
    time = torch.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return 0.3 * torch.sin(2 * np.pi * frequency * time)[None]


def test_a_spectrogram_has_a_frame_every_forty_milliseconds() -> None:
    assert spectrogram(_tone(800.0)).shape == (1, 32, BANDS)
    assert HOP / SAMPLE_RATE == 0.04


def test_a_higher_tone_lies_in_a_higher_band_and_louder_is_brighter() -> None:
    bands = [int(spectrogram(_tone(frequency))[0, 10].argmax()) for frequency in (600, 675, 1200, 1800, 7200)]
    assert bands == sorted(set(bands))
    assert spectrogram(_tone(800.0))[0, 10].max() > spectrogram(0.5 * _tone(800.0))[0, 10].max()


def test_silence_is_the_darkest() -> None:
    assert torch.allclose(spectrogram(torch.zeros(1, 20480)), torch.tensor(-1.0))


def test_a_tone_that_fits_into_a_frame_looks_the_same_in_every_one() -> None:
    frames = spectrogram(_tone(1125.0))[0, 1:-1]
    assert (frames - frames[0]).abs().max() < 1e-3
