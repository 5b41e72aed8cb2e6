"""Sounds as ImageBind takes them: log-mel spectrograms of three clips. The numbers are torch's, made on a CPU."""

from functools import cache

import numpy as np
import soxr
import torch
import torch.nn.functional as F
from torch import Tensor

from model.architectures.imagebind import MEL_BINS, MEL_FRAMES
from model.encoders.clips import CLIP_SECONDS, clip_starts
from pipelines.sample import Audio

AUDIO_CLIPS = 3
SAMPLE_RATE = 16_000
WINDOW = 400  # samples: 25 ms
SHIFT = 160  # samples: 10 ms
FFT_LENGTH = 512
LOWEST_HZ = 20.0
PREEMPHASIS = 0.97
MEL_MEAN = -4.268
MEL_STD = 9.138


def audio_inputs(audio: Audio) -> Tensor:
    """Makes the normalised log-mel spectrograms of 3 clips of 2 s, evenly spaced; returns float32 (3, 1, 128, 204).

    Sounds are mixed to mono and resampled to 16 kHz; if one is shorter than a clip, every clip is the whole sound.
    Raises ValueError for a sound without samples.
    """
    if not audio.waveform.size:
        raise ValueError("audio: it has no samples; leave it out")
    mono = soxr.resample(audio.waveform.mean(axis=0, dtype=np.float32), audio.sample_rate, SAMPLE_RATE)
    starts = clip_starts(len(mono) / SAMPLE_RATE, AUDIO_CLIPS)
    clips = [mono[int(start * SAMPLE_RATE) : int((start + CLIP_SECONDS) * SAMPLE_RATE)] for start in starts]
    return torch.stack([log_mel(torch.from_numpy(np.ascontiguousarray(clip, np.float32))) for clip in clips])


def log_mel(waveform_T: Tensor) -> Tensor:
    """Kaldi's log-mel filter bank of a 16 kHz clip, padded with 0 or cut to 204 frames, then normalised.

    Returns float32 (1, 128, 204). Kaldi's conventions: frames that fit whole, the mean of each taken off,
    pre-emphasis, a symmetric Hann window, power spectrum, triangles even in mel (kaldi-asr.org, feature-fbank).
    """
    # A sound shorter than one window still makes one frame.
    waveform_T = F.pad(waveform_T - waveform_T.mean(), (0, max(0, WINDOW - len(waveform_T))))
    frames_FT = waveform_T.unfold(0, WINDOW, SHIFT)
    frames_FT = frames_FT - frames_FT.mean(dim=1, keepdim=True)
    previous_FT = torch.cat([frames_FT[:, :1], frames_FT[:, :-1]], dim=1)
    frames_FT = (frames_FT - PREEMPHASIS * previous_FT) * torch.hann_window(WINDOW, periodic=False)
    power = torch.fft.rfft(frames_FT, n=FFT_LENGTH).abs().square()
    mel_FM = (power @ _mel_filters()).clamp_min(torch.finfo(torch.float32).eps).log()[:MEL_FRAMES]
    mel_MF = F.pad(mel_FM.T, (0, MEL_FRAMES - len(mel_FM)))
    return (mel_MF[None] - MEL_MEAN) / MEL_STD


@cache
def _mel_filters() -> Tensor:
    """Triangles of equal width on the mel scale, from 20 Hz to Nyquist: (257, 128)."""

    def mel(hz: Tensor) -> Tensor:
        return 1127.0 * torch.log1p(hz / 700.0)

    low, high = mel(torch.tensor([LOWEST_HZ, SAMPLE_RATE / 2], dtype=torch.float64))
    width = (high - low) / (MEL_BINS + 1)
    centres_M = low + width * torch.arange(1, MEL_BINS + 1)
    bins = mel(torch.linspace(0, SAMPLE_RATE / 2, FFT_LENGTH // 2 + 1, dtype=torch.float64))
    return (1 - (bins[:, None] - centres_M).abs() / width).clamp_min(0).float()
