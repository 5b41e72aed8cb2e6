"""Encodes media as the latents that a diffusion decoder's UNet is trained on.

Shape suffixes: F frames of an item, C channels, H and W rows and columns.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import diffusers
import numpy as np
import numpy.typing as npt
import PIL.Image
import PIL.ImageOps
import soxr
import torch
from torch import Tensor
from torch.nn import functional
from transformers.audio_utils import mel_filter_bank

from model.decoders.decoder import VIDEO_FPS
from model.decoders.text_encoders import loading, readable
from model.parts.devices import Sender, Sent
from model.parts.families import latent_grid, latent_shape, locate
from model.parts.mixed_precision import Precision, use_bfloat16
from model.parts.weights import weights_hash
from pipelines.sample import Audio, Decoded, Image, Modality, Video

# Part of every id: increment it with any change below that affects values.
PREPROCESSING_VERSION = 1
PIECE = 8  # frames per VAE batch
SAMPLE_RATE = 16_000
HOP = 160  # samples between mel frames
WINDOW = 1024  # samples


class LatentInputs:
    """What a decoder's VAE takes of media, made on any CPU: uint8 frames (F, H, W, 3), or a float32 log-mel (T, bands).

    Raises FileNotFoundError and ValueError as `LatentEncoder` does.
    """

    def __init__(self, modality: Modality, name: str) -> None:
        self._prepare, self._grid = _PREPARED[modality], latent_grid(modality, name)

    def __call__(self, media: Sequence[Decoded]) -> list[npt.NDArray[Any]]:
        """One array a medium. Raises ValueError for an empty one."""
        return [self._prepare(medium, self._grid) for medium in media]


class LatentEncoder:
    """Encodes media with a diffusion decoder's VAE: the posterior mean, times the VAE's scaling factor.

    Media are fitted to the decoder's default size: frames are resized (bicubic) to cover it and centre-cropped; a video
    gives its first frames at 8 fps (repeating the last one if it is shorter), a sound its first seconds as a log-mel
    spectrogram. `shape` is that of one item's latents, see `families.latent_shape`; `id` identifies weights, shape and
    preprocessing, and the precision where it is not float32. Raises FileNotFoundError and ValueError as
    `CaptionEncoder` does.
    """

    def __init__(
        self, modality: Modality, name: str, device: str | torch.device = "cpu", precision: Precision = "float32"
    ) -> None:
        self.modality = modality
        self.shape = latent_shape(modality, name)
        path = locate(modality, name)
        with loading(path):
            vae = diffusers.AutoencoderKL.from_pretrained(path, subfolder="vae")
        self._vae = vae.requires_grad_(False).eval()
        facts = json.dumps([weights_hash(dict(vae.named_parameters())), self.shape, PREPROCESSING_VERSION])
        self.id = f"{readable(name)}-{hashlib.sha256(facts.encode()).hexdigest()[:12]}"
        if precision == "bfloat16":
            use_bfloat16(self._vae)
            self.id += "-bfloat16"
        self._vae.to(device)
        self._sender = Sender(torch.device(device))
        self.prepare = LatentInputs(modality, name)

    def __call__(self, media: Sequence[Decoded]) -> npt.NDArray[np.float32]:
        """Encodes media of the decoder's modality: (len(media), *shape). Raises ValueError for an empty one."""
        return self.embed(self.send(self.prepare(media)))

    def send(self, inputs: Sequence[npt.NDArray[Any]]) -> Sent:
        """Begins to move what `prepare` made to the device."""
        return self._sender.send(inputs)

    @torch.inference_mode()
    def embed(self, sent: Sent) -> npt.NDArray[np.float32]:
        """Encodes what was sent, in order: (N, *shape)."""
        tensors = sent.take()
        if not tensors:
            return np.zeros((0, *self.shape), np.float32)
        pictures_FCHW = torch.cat([_pictures(tensor) for tensor in tensors])
        latents_FCHW = torch.cat([self._encode(piece) for piece in torch.split(pictures_FCHW, PIECE)])
        latents = latents_FCHW.view(len(tensors), -1, *latents_FCHW.shape[1:]).transpose(1, 2)  # frames after channels
        return latents.reshape(len(tensors), *self.shape).cpu().numpy()

    def _encode(self, pictures_FCHW: Tensor) -> Tensor:
        posterior = self._vae.encode(pictures_FCHW).latent_dist
        return (posterior.mean * self._vae.config.scaling_factor).float()


def _pictures(prepared: Tensor) -> Tensor:
    """Frames in [-1, 1] as the VAE takes them (F, 3, H, W), or a spectrogram (1, 1, T, bands)."""
    if prepared.ndim == 2:
        return prepared[None, None]
    return prepared.permute(0, 3, 1, 2).float() / 127.5 - 1


def _image(image: Image, grid: tuple[int, ...]) -> npt.NDArray[Any]:
    return _fitted([image.pixels], grid)


def _video(video: Video, grid: tuple[int, ...]) -> npt.NDArray[Any]:
    num_frames = len(video.frames)
    if not num_frames or not video.fps > 0:
        raise ValueError(f"video: {num_frames} frames at {video.fps} frames per second; leave it out")
    places = [min(int(index * video.fps / VIDEO_FPS), num_frames - 1) for index in range(grid[0])]
    return _fitted([video.frames[place] for place in places], grid)


def _fitted(pictures: Sequence[npt.NDArray[np.uint8]], grid: tuple[int, ...]) -> npt.NDArray[Any]:
    """Resizes and crops pictures to rows and columns: uint8 (F, H, W, 3)."""
    _, height, width = grid
    return np.stack(
        [
            np.asarray(PIL.ImageOps.fit(PIL.Image.fromarray(pixels), (width, height), PIL.Image.Resampling.BICUBIC))
            for pixels in pictures
        ]
    )


def _audio(audio: Audio, grid: tuple[int, ...]) -> npt.NDArray[Any]:
    if not audio.waveform.size:
        raise ValueError("audio: it has no samples; leave it out")
    mono = soxr.resample(audio.waveform.mean(axis=0, dtype=np.float32), audio.sample_rate, SAMPLE_RATE)
    _, frames, bands = grid
    return log_mel(torch.from_numpy(np.ascontiguousarray(mono, np.float32)), frames, bands).numpy()


def log_mel(waveform_T: Tensor, num_frames: int, num_bands: int) -> Tensor:
    """AudioLDM's log-mel spectrogram of a 16 kHz sound, cut or padded with silence: float32 (num_frames, num_bands).

    The mean is removed and the peak scaled to 0.5; STFT magnitudes with a centred Hann window of 1024 samples and a hop
    of 160; Slaney mel filters from 0 to 8000 Hz; log, clamped at 1e-5 (Liu et al. 2023, arXiv:2301.12503, and its
    code). Released models have 64 bands.
    """
    waveform_T = waveform_T - waveform_T.mean()
    waveform_T = 0.5 * waveform_T / (waveform_T.abs().max() + 1e-8)
    waveform_T = functional.pad(waveform_T, (0, max(0, num_frames * HOP - len(waveform_T))))[: num_frames * HOP]
    window = torch.hann_window(WINDOW)
    spectrum = torch.stft(waveform_T, WINDOW, HOP, window=window, pad_mode="reflect", return_complex=True).abs()
    filters = mel_filter_bank(
        WINDOW // 2 + 1, num_bands, 0.0, SAMPLE_RATE / 2, SAMPLE_RATE, norm="slaney", mel_scale="slaney"
    )
    return (spectrum.T @ torch.from_numpy(filters).float()).clamp_min(1e-5).log()[:num_frames]


_PREPARED: dict[Modality, Callable[[Any, tuple[int, ...]], npt.NDArray[Any]]] = {
    Modality.IMAGE: _image,
    Modality.VIDEO: _video,
    Modality.AUDIO: _audio,
}
