"""Trains a latent diffusion pipeline: its autoencoder, and its UNet with a trained text encoder.

Shape suffixes: N media, C channels, T frames, H height, W width, L condition positions, D condition width.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.bootstrap.loop import train, worded
from model.parts.family_table import FAMILIES

_KL_WEIGHT = 1e-6  # as Stable Diffusion's autoencoder (Rombach et al. 2022, arXiv:2112.10752, appendix G)
_VAGUENESS = 0.1  # noise on condition vectors, relative to their norm, against memorising the few there are
_UNCONDITIONED = 0.1  # share of dropped captions, for guidance (Ho and Salimans 2022, arXiv:2207.12598)


def train_autoencoder(vae: Any, media_NCHW: Tensor, *, steps: int, batch_size: int, state: Path) -> None:
    """Trains an AutoencoderKL on media in [-1, 1] and sets its scaling factor for latents of unit variance."""
    _channels_last(vae)

    def loss(generator: torch.Generator) -> Tensor:
        x_NCHW = media_NCHW[torch.randint(len(media_NCHW), (batch_size,), generator=generator)]
        x_NCHW = x_NCHW.float().contiguous(memory_format=torch.channels_last)
        posterior = vae.encode(x_NCHW).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator)
        back_NCHW = vae.decode(posterior.mean + posterior.std * noise).sample
        # L1 keeps edges and colours sharp, MSE keeps large areas from drifting.
        return F.l1_loss(back_NCHW, x_NCHW) + F.mse_loss(back_NCHW, x_NCHW) + _KL_WEIGHT * posterior.kl().mean()

    train(state.stem, vae, loss, steps=steps, learning_rate=2e-3, state=state)
    vae.register_to_config(scaling_factor=float(1 / to_latents(vae, media_NCHW[:1024], scale=1.0).std()))


@torch.no_grad()
def to_latents(vae: Any, media_NCHW: Tensor, scale: float | None = None, batch_size: int = 64) -> Tensor:
    """Encodes media in [-1, 1]: posterior means, times `scale` or the autoencoder's scaling factor."""
    pieces = [vae.encode(piece.float()).latent_dist.mean for piece in torch.split(media_NCHW, batch_size)]
    return torch.cat(pieces) * (vae.config.scaling_factor if scale is None else scale)


@torch.no_grad()
def from_latents(vae: Any, latents: Tensor, batch_size: int = 64) -> Tensor:
    """Decodes latents to media."""
    pieces = torch.split(latents / vae.config.scaling_factor, batch_size)
    return torch.cat([vae.decode(piece).sample for piece in pieces])


def train_pipeline(
    pipe: Any,
    latents: Tensor,
    captions: Sequence[Sequence[str]],
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    state: Path,
) -> None:
    """Trains the UNet of a pipeline to denoise latents (N, C, [T,] H, W) given their captions.

    Each medium has several captions, of which a step takes one. The text encoder is frozen.
    """
    noise_levels, pooled = pipe.scheduler, FAMILIES[type(pipe).__name__].pooled
    _channels_last(pipe.unet)

    def loss(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(latents), (batch_size,), generator=generator)
        texts = worded(captions, rows, generator)
        kept = torch.rand(batch_size, generator=generator) >= _UNCONDITIONED
        texts = [text if keep else "" for text, keep in zip(texts, kept.tolist(), strict=True)]
        clean = latents[rows]
        noise = torch.randn(clean.shape, generator=generator)
        levels = torch.randint(noise_levels.config.num_train_timesteps, (batch_size,), generator=generator)
        noisy = noise_levels.add_noise(clean, noise, levels)
        wanted = noise_levels.get_velocity(clean, noise, levels)
        condition = _condition(pipe, texts, pooled, generator)
        return F.mse_loss(pipe.unet(noisy, levels, **condition).sample, wanted)

    train(state.stem, pipe.unet, loss, steps=steps, learning_rate=learning_rate, state=state)


@torch.no_grad()
def _condition(pipe: Any, texts: Sequence[str], pooled: bool, generator: torch.Generator) -> dict[str, Any]:
    """The UNet's condition, in the pipelines' format: one vector per position, or one unit vector as a class.

    The states at a caption's words are swapped with another caption's, so that the UNet learns to use the states at the
    end token and padding, which encode the whole caption. States at words depend on the wording, so projections can
    predict half of them at best.
    """
    tokens = pipe.tokenizer(
        list(texts),
        padding="longest" if pooled else "max_length",
        max_length=pipe.tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    if pooled:
        output = pipe.text_encoder(tokens.input_ids, attention_mask=tokens.attention_mask)
        embeds_ND = _vague(F.normalize(output.text_embeds, dim=-1), generator)
        return {"encoder_hidden_states": None, "class_labels": F.normalize(embeds_ND, dim=-1)}
    states_NLD = pipe.text_encoder(tokens.input_ids).last_hidden_state
    positions_L, ends_N1 = torch.arange(states_NLD.shape[1]), tokens.attention_mask.sum(dim=1, keepdim=True) - 1
    words_NL = (positions_L > 0) & (positions_L < ends_N1)
    states_NLD = torch.where(words_NL[..., None], states_NLD.roll(1, dims=0), states_NLD)
    return {"encoder_hidden_states": _vague(states_NLD, generator)}


def _vague(values: Tensor, generator: torch.Generator) -> Tensor:
    """Adds noise to vectors (N, ..., D), the same for all positions of an item."""
    shape = (len(values), *[1] * (values.dim() - 2), values.shape[-1])
    return values + _VAGUENESS * values.norm(dim=-1, keepdim=True) * torch.randn(shape, generator=generator)


def _channels_last(module: nn.Module) -> None:
    """Converts 2D convolution weights to channels-last, which is several times as fast on CPUs."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            part.weight.data = part.weight.data.contiguous(memory_format=torch.channels_last)
