"""Preprocesses media for ImageBind, and embeds any mix of them.

Shape suffixes as in `model/architectures/imagebind.py`.
"""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache, partial
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image
import soxr
import torch
import torch.nn.functional as F
from torch import Tensor

from model.architectures.imagebind import MEL_BINS, MEL_FRAMES, load_imagebind
from model.parts.weights import weights_hash
from pipelines.sample import Audio, Decoded, Image, Video

# Part of every encoder id: increment it with any change below that affects values.
PREPROCESSING_VERSION = 1

PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
CLIP_SECONDS = 2
VIDEO_CLIPS = 5
VIDEO_CROPS = 3
AUDIO_CLIPS = 3
SAMPLE_RATE = 16_000
WINDOW = 400  # samples: 25 ms
SHIFT = 160  # samples: 10 ms
FFT_LENGTH = 512
LOWEST_HZ = 20.0
PREEMPHASIS = 0.97
MEL_MEAN = -4.268
MEL_STD = 9.138

Box = tuple[float, float, float, float]


def image_inputs(image: Image, size: int = 224) -> Tensor:
    """Resizes (bicubic, short side `size`), centre-crops and normalises; returns float32 (3, size, size)."""
    [box] = _boxes(image.pixels.shape, size, num_crops=1)
    crop = PIL.Image.fromarray(image.pixels).resize((size, size), PIL.Image.Resampling.BICUBIC, box=box)
    return _normalised(torch.from_numpy(np.array(crop)).permute(2, 0, 1).float())


def video_inputs(video: Video, size: int = 224) -> Tensor:
    """Takes the first and last frame of 5 clips of 2 s, each in 3 crops along the long side.

    Returns float32 (15, 3, 2, size, size), with the crops of a clip adjacent. If the video is shorter than a clip,
    every clip is the whole video. Raises ValueError for a video without frames or without a frame rate.
    """
    num_frames = len(video.frames)
    if not num_frames or not video.fps > 0:
        raise ValueError(f"video: {num_frames} frames at {video.fps} frames per second; leave it out")
    indices = []
    for start in _clip_starts(num_frames / video.fps, VIDEO_CLIPS):
        first = min(ceil(start * video.fps), num_frames - 1)
        last = min(ceil((start + CLIP_SECONDS) * video.fps), num_frames) - 1
        indices.append((first, max(first, last)))
    boxes = _boxes(video.frames.shape[1:], size, VIDEO_CROPS)
    crops = {i: _cut(video.frames[i], boxes, size) for pair in indices for i in pair}
    clips = [torch.stack([crops[i][place] for i in pair], dim=1) for pair in indices for place in range(VIDEO_CROPS)]
    return _normalised(torch.stack(clips).transpose(1, 2)).transpose(1, 2).contiguous()


def audio_inputs(audio: Audio) -> Tensor:
    """Makes the normalised log-mel spectrograms of 3 clips of 2 s, evenly spaced; returns float32 (3, 1, 128, 204).

    Sounds are mixed to mono and resampled to 16 kHz; if one is shorter than a clip, every clip is the whole sound.
    Raises ValueError for a sound without samples.
    """
    if not audio.waveform.size:
        raise ValueError("audio: it has no samples; leave it out")
    mono = soxr.resample(audio.waveform.mean(axis=0, dtype=np.float32), audio.sample_rate, SAMPLE_RATE)
    starts = _clip_starts(len(mono) / SAMPLE_RATE, AUDIO_CLIPS)
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


def _clip_starts(duration: float, num_clips: int) -> list[float]:
    """Start times of clips in seconds, evenly spaced; the last clip ends with the medium."""
    latest = max(duration - CLIP_SECONDS, 0.0)
    return [latest * i / (num_clips - 1) for i in range(num_clips)]


def _boxes(shape: Sequence[int], size: int, num_crops: int) -> list[Box]:
    """Square crops of an (H, W, ...) picture that are `size` wide once its short side is resized to `size`.

    A single crop is the centre; three lie along the long side, at both ends and the centre. Each box is left, top,
    right and bottom in original pixels, so that only cropped pixels are computed: a 2 x 20,000 picture costs no more
    than any other.
    """
    height, width = shape[:2]
    short = min(height, width)
    scaled_height, scaled_width = size * height // short, size * width // short
    y, x = height / scaled_height, width / scaled_width
    # If the margin is odd, torchvision rounds half to even for images, ImageBind's video crops round up.
    places, whole = ((0.5,), round) if num_crops == 1 else ((0.0, 0.5, 1.0), ceil)
    corners = [(whole((scaled_width - size) * place), whole((scaled_height - size) * place)) for place in places]
    return [(left * x, top * y, (left + size) * x, (top + size) * y) for left, top in corners]


def _cut(frame: npt.NDArray[np.uint8], boxes: Sequence[Box], size: int) -> Tensor:
    """Crops boxes of a frame and resizes them; returns float32 (len(boxes), 3, size, size) in [0, 255].

    Bilinear without antialiasing, as in ImageBind; Pillow can only antialias or truncate.
    """
    height, width = frame.shape[:2]
    to_frame = [
        [
            [(right - left) / width, 0, (right + left) / width - 1],
            [0, (bottom - top) / height, (bottom + top) / height - 1],
        ]
        for left, top, right, bottom in boxes
    ]
    grid = F.affine_grid(torch.tensor(to_frame), [len(boxes), 3, size, size], align_corners=False)
    pixels = torch.tensor(frame).permute(2, 0, 1).float().expand(len(boxes), -1, -1, -1)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _normalised(pixels: Tensor) -> Tensor:
    """Normalises (..., 3, H, W) in [0, 255] by ImageBind's mean and standard deviation."""
    mean, std = (torch.tensor(value)[:, None, None] for value in (PIXEL_MEAN, PIXEL_STD))
    return (pixels / 255 - mean) / std


class ImageBindEncoder:
    """Embeds any mix of images, videos and sounds with a frozen ImageBind, loaded once.

    `name` is resolved by `builtin.resolve`: a built-in part, a file such as `imagebind_huge.pth` or a directory.
    `batch_size` counts clips per forward pass (an image is 1 clip, a video 15, a sound 3). `id` is a readable name plus
    a hash of weights, sizes and preprocessing: equal ids give equal embeddings. `dim` is the embedding's width.
    """

    def __init__(
        self, name: str, device: str = "cpu", dtype: torch.dtype = torch.float32, batch_size: int = 60
    ) -> None:
        from model.parts.builtin import resolve

        model = load_imagebind(resolve(name), dtype=dtype)
        self.id = _encoder_id(name, asdict(model.config), weights_hash(model.state_dict()))
        self.dim = model.config.embed_dim
        self.device = torch.device(device)
        self.batch_size = batch_size
        self.model = model.to(self.device)
        size = model.config.image_size
        # Per type of media: preprocessing, tower, number of clips.
        self._kinds: dict[type, tuple[Callable[[Any], Tensor], Callable[[Tensor], Tensor], int]] = {
            Image: (partial(image_inputs, size=size), model.forward_vision, 1),
            Video: (partial(video_inputs, size=size), model.forward_vision, VIDEO_CLIPS * VIDEO_CROPS),
            Audio: (audio_inputs, model.forward_audio, AUDIO_CLIPS),
        }

    @torch.inference_mode()
    def __call__(self, items: Sequence[Decoded]) -> npt.NDArray[np.float32]:
        """Embeds items, in order; returns (len(items), dim). An item's row does not depend on the others."""
        embeddings_NE = np.empty((len(items), self.dim), dtype=np.float32)
        for kind, (prepare, forward, num_clips) in self._kinds.items():
            rows = [row for row, item in enumerate(items) if isinstance(item, kind)]
            step = max(1, self.batch_size // num_clips)
            for chunk in (rows[start : start + step] for start in range(0, len(rows), step)):
                inputs = torch.stack([prepare(items[row]) for row in chunk]).to(self.device)
                embeddings_NE[chunk] = forward(inputs).cpu().numpy()
        return embeddings_NE


def _encoder_id(name: str, config: dict[str, int], weights: str) -> str:
    readable = name.removeprefix("builtin:") if name.startswith("builtin:") else name.rstrip("/").rsplit("/", 1)[-1]
    slug = re.sub(r"[^A-Za-z0-9_]+", "-", readable.removesuffix(".pth")).strip("-") or "imagebind"
    identity = json.dumps([PREPROCESSING_VERSION, config, weights], sort_keys=True)
    return f"{slug}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
