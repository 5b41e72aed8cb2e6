"""The spectrograms that AudioLDM's autoencoders take: the released models', and the small one's.

Shape suffixes: N sounds, T or S samples, F frames, B bands.
"""

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional
from transformers.audio_utils import mel_filter_bank

SAMPLE_RATE = 16_000
HOP = 160  # samples between frames of the released models
_WINDOW = 1024  # samples
SMALL_HOP = 640
BANDS = 64
_SMALL_WINDOW = 1280
_LOWEST_HZ, _HIGHEST_HZ = 540.0, 7600.0
_FLOOR = 1e-3  # of amplitude


def spectrogram(waveform_T: Tensor, num_frames: int, num_bands: int, hop: int | None) -> Tensor:
    """The spectrogram of a 16 kHz sound, cut or followed by silence, as a vocoder of so many samples a frame takes it.

    Returns float32 (num_frames, num_bands).
    """
    if hop != SMALL_HOP:
        return log_mel(waveform_T, num_frames, num_bands)
    length = num_frames * SMALL_HOP
    return small_spectrogram(functional.pad(waveform_T, (0, max(0, length - len(waveform_T))))[None, :length])[0]


def log_mel(waveform_T: Tensor, num_frames: int, num_bands: int) -> Tensor:
    """AudioLDM's log-mel spectrogram of a 16 kHz sound, cut or padded with silence: float32 (num_frames, num_bands).

    The mean is removed and the peak scaled to 0.5; STFT magnitudes with a centred Hann window of 1024 samples and a hop
    of 160; Slaney mel filters from 0 to 8000 Hz; log, clamped at 1e-5 (Liu et al. 2023, arXiv:2301.12503, and its
    code). Released models have 64 bands.
    """
    waveform_T = waveform_T - waveform_T.mean()
    waveform_T = 0.5 * waveform_T / (waveform_T.abs().max() + 1e-8)
    waveform_T = functional.pad(waveform_T, (0, max(0, num_frames * HOP - len(waveform_T))))[: num_frames * HOP]
    window = torch.hann_window(_WINDOW)
    spectrum = torch.stft(waveform_T, _WINDOW, HOP, window=window, pad_mode="reflect", return_complex=True).abs()
    filters = mel_filter_bank(
        _WINDOW // 2 + 1, num_bands, 0.0, SAMPLE_RATE / 2, SAMPLE_RATE, norm="slaney", mel_scale="slaney"
    )
    return (spectrum.T @ torch.from_numpy(filters).float()).clamp_min(1e-5).log()[:num_frames]


def small_spectrogram(waveform_NS: Tensor) -> Tensor:
    """Those of the small AudioLDM, (N, F, B), from about -1 to 1.

    They are log amplitudes in bands of equal width on a logarithmic frequency scale.
    The bands are 71 cents apart. A tone with a whole number of periods per frame has the same spectrum in every frame,
    which is how a vocoder can infer its phase.
    """
    padded_NS = functional.pad(waveform_NS, ((_SMALL_WINDOW - SMALL_HOP) // 2, (_SMALL_WINDOW - SMALL_HOP) // 2))
    frames_NFS = padded_NS.unfold(-1, _SMALL_WINDOW, SMALL_HOP) * torch.hann_window(_SMALL_WINDOW)
    amplitude = torch.fft.rfft(frames_NFS).abs() / (_SMALL_WINDOW / 4)
    return ((amplitude @ _bands()).clamp_min(_FLOOR).log10() + 1.5) / 1.5


@cache
def _bands() -> Tensor:
    """Triangular filters of equal width in octaves: (bins, bands)."""
    centres = torch.linspace(0, 1, BANDS + 2) * torch.tensor(_HIGHEST_HZ / _LOWEST_HZ).log2()
    bins = (torch.fft.rfftfreq(_SMALL_WINDOW, 1 / SAMPLE_RATE).clamp_min(1.0) / _LOWEST_HZ).log2()
    return (1 - (bins[:, None] - centres[1:-1]).abs() / (centres[1] - centres[0])).clamp_min(0)
