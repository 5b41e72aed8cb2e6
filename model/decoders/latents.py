"""Encodes media as the latents that a diffusion decoder's denoiser is trained on.

Shape suffixes: F frames of an item, C channels, H and W rows and columns.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import diffusers
import numpy as np
import numpy.typing as npt
import PIL.Image
import PIL.ImageOps
import soxr
import torch
from torch import Tensor

from model.decoders.spectrograms import SAMPLE_RATE, SMALL_HOP, spectrogram
from model.decoders.text_encoders import loading, readable
from model.parts.devices import Sender, Sent
from model.parts.families import family_of, latent_grid, latent_shape, locate, sound_format, vocoder_hop
from model.parts.mixed_precision import Precision, use_bfloat16
from model.parts.weights import weights_hash
from pipelines.sample import Audio, Decoded, Image, Modality, Video

# Part of every id: increment it with any change below that affects values.
PREPROCESSING_VERSION = 1
PIECE = 8  # frames per VAE batch
# VAEs that encode a film or a waveform as a whole, not frame by frame.
_WHOLE = ("AutoencoderKLWan", "AutoencoderKLLTXVideo", "AutoencoderOobleck")


class LatentInputs:
    """What a decoder's VAE takes of media, made on any CPU: uint8 frames (F, H, W, 3), or of a sound float32.

    That is a log-mel spectrogram (T, bands), or a waveform (channels, T) at the VAE's own rate. Raises
    FileNotFoundError and ValueError as `LatentEncoder` does.
    """

    def __init__(self, modality: Modality, name: str) -> None:
        self._grid = latent_grid(modality, name)
        self._prepare: Callable[[Any, tuple[int, ...]], npt.NDArray[Any]]
        if modality is Modality.IMAGE:
            self._prepare = _image
        elif modality is Modality.VIDEO:
            self._prepare = partial(_video, fps=family_of(modality, name).fps)
        elif sound := sound_format(modality, name):
            self._prepare = partial(_waveform, rate=sound[0], channels=sound[1])
        else:
            self._prepare = partial(_spectrogram, hop=vocoder_hop(modality, name))

    def __call__(self, media: Sequence[Decoded]) -> list[npt.NDArray[Any]]:
        """One array a medium. Raises ValueError for an empty one."""
        return [self._prepare(medium, self._grid) for medium in media]


class LatentEncoder:
    """Encodes media with a diffusion decoder's VAE: the posterior mean, scaled as the pipeline scales it back.

    Media are fitted to the decoder's default size: frames are resized (bicubic) to cover it and centre-cropped; a video
    gives its first frames at the decoder's rate (repeating the last one if it is shorter), a sound its first seconds,
    followed by silence. `shape` is that of one item's latents, see `families.latent_shape`; `id` identifies weights,
    shape and preprocessing, and the precision where it is not float32. Raises FileNotFoundError and ValueError as
    `CaptionEncoder` does.
    """

    def __init__(
        self, modality: Modality, name: str, device: str | torch.device = "cpu", precision: Precision = "float32"
    ) -> None:
        self.modality = modality
        self.shape = latent_shape(modality, name)
        path = locate(modality, name)
        self._kind = family_of(modality, name).vae
        with loading(path):
            vae = getattr(diffusers, self._kind).from_pretrained(path, subfolder="vae")
        self._vae = vae.requires_grad_(False).eval()
        facts = [weights_hash(dict(vae.named_parameters())), self.shape, PREPROCESSING_VERSION]
        if modality is Modality.AUDIO and vocoder_hop(modality, name) == SMALL_HOP:
            facts.append(SMALL_HOP)  # which was taken for a released model once
        self.id = f"{readable(name)}-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]}"
        self._dtype = torch.float32
        if precision == "bfloat16":
            self._dtype = _halve(self._vae, self._kind)
            self.id += "-bfloat16"
        self._vae.to(device)
        self._shift, self._factor = _scaling(self._vae)
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
        if self._kind in _WHOLE:
            latents = torch.cat([self._encode(_whole(tensor)) for tensor in tensors])
        else:
            pictures_FCHW = torch.cat([_pictures(tensor) for tensor in tensors])
            latents = torch.cat([self._encode(piece) for piece in torch.split(pictures_FCHW, PIECE)])
            latents = latents.view(len(tensors), -1, *latents.shape[1:]).transpose(1, 2)  # frames after channels
        return latents.reshape(len(tensors), *self.shape).cpu().numpy()

    def _encode(self, media: Tensor) -> Tensor:
        encoded = self._vae.encode(media.to(self._dtype))
        mean = encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded.latent
        return ((mean - self._shift) * self._factor).float()


def _halve(vae: Any, kind: str) -> torch.dtype:
    """Makes a VAE compute in bfloat16; returns the type of its inputs."""
    if kind == "AutoencoderKL":
        use_bfloat16(vae)
        return torch.float32
    vae.to(torch.bfloat16)  # others keep frames between convolutions, which have to be of one type
    return torch.bfloat16


def _scaling(vae: Any) -> tuple[Any, Any]:
    """What is taken from a VAE's latents, and what they are then multiplied with; of each channel or of all."""
    factor = vae.config.get("scaling_factor") or 1.0
    stored = {**vae.config, **dict(vae.named_buffers())}
    mean, std = stored.get("latents_mean"), stored.get("latents_std")
    if mean is None or std is None:
        return vae.config.get("shift_factor") or 0.0, factor
    places = (1, -1, *[1] * (2 if type(vae).__name__ == "AutoencoderKL" else 3))
    device = next(vae.parameters()).device
    mean, std = (torch.as_tensor(values, dtype=torch.float32, device=device).view(places) for values in (mean, std))
    return mean, factor / std


def _pictures(prepared: Tensor) -> Tensor:
    """Frames in [-1, 1] as the VAE takes them (F, 3, H, W), or a spectrogram (1, 1, T, bands)."""
    if prepared.ndim == 2:
        return prepared[None, None]
    return prepared.permute(0, 3, 1, 2).float() / 127.5 - 1


def _whole(prepared: Tensor) -> Tensor:
    """A film in [-1, 1] (1, 3, F, H, W), or a waveform (1, channels, T)."""
    return prepared[None] if prepared.ndim == 2 else _pictures(prepared).transpose(0, 1)[None]


def _image(image: Image, grid: tuple[int, ...]) -> npt.NDArray[Any]:
    return _fitted([image.pixels], grid)


def _video(video: Video, grid: tuple[int, ...], fps: float) -> npt.NDArray[Any]:
    num_frames = len(video.frames)
    if not num_frames or not video.fps > 0:
        raise ValueError(f"video: {num_frames} frames at {video.fps} frames per second; leave it out")
    places = [min(int(index * video.fps / fps), num_frames - 1) for index in range(grid[0])]
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


def _waveform(audio: Audio, grid: tuple[int, ...], rate: int, channels: int) -> npt.NDArray[Any]:
    """A sound at a rate, cut or followed by silence; of one channel where it has not just as many as are wanted."""
    _check_samples(audio)
    waveform_CT = audio.waveform
    if len(waveform_CT) != channels:
        waveform_CT = waveform_CT.mean(axis=0, dtype=np.float32, keepdims=True).repeat(channels, axis=0)
    found_CT = soxr.resample(np.ascontiguousarray(waveform_CT.T, np.float32), audio.sample_rate, rate).T
    prepared_CT = np.zeros((channels, grid[-1]), np.float32)
    prepared_CT[:, : found_CT.shape[1]] = found_CT[:, : grid[-1]]
    return prepared_CT


def _check_samples(audio: Audio) -> None:
    if not audio.waveform.size:
        raise ValueError("audio: it has no samples; leave it out")


def _spectrogram(audio: Audio, grid: tuple[int, ...], hop: int | None) -> npt.NDArray[Any]:
    _check_samples(audio)
    mono = soxr.resample(audio.waveform.mean(axis=0, dtype=np.float32), audio.sample_rate, SAMPLE_RATE)
    _, frames, bands = grid
    return spectrogram(torch.from_numpy(np.ascontiguousarray(mono, np.float32)), frames, bands, hop).numpy()
