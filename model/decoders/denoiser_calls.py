"""How the denoiser of each family is called: with what, in which shape and types, as its pipeline does.

Suffixes: K items, L positions of a condition, D its width, C channels of latents, T places in time.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from torch import Tensor
from torch.nn.functional import normalize

from model.decoders.conditions import Condition
from model.parts.family_table import Family


@dataclass(frozen=True, slots=True)
class Denoising:
    """A family's denoiser, its projection of conditions where it has one, and the sizes that it is told."""

    family: Family
    module: Any
    projection: Any
    sizes: Mapping[str, Any]


def call_denoiser(denoising: Denoising, noisy: Tensor, timesteps_K: Tensor, condition: Condition) -> Tensor:
    """What a denoiser predicts for K noisy latents, in their shape."""
    dtype = denoising.module.dtype
    sequence, mask, pooled = condition
    condition = Condition(sequence.to(dtype), mask, pooled)
    return _CALLS[denoising.family.pipeline](denoising, noisy, timesteps_K, condition)


def _attended(of: Denoising, noisy: Tensor, timesteps_K: Tensor, condition: Condition) -> Tensor:
    predicted: Tensor = of.module(noisy, timesteps_K, encoder_hidden_states=condition.sequence_NLD).sample
    return predicted


def _classed(of: Denoising, noisy: Tensor, timesteps_K: Tensor, condition: Condition) -> Tensor:
    # AudioLDM has only self-attention. A pooled condition is a unit vector, a projected one only approximately.
    vectors_KD = normalize(condition.pooled_NP.float(), dim=-1).to(of.module.dtype)
    predicted: Tensor = of.module(noisy, timesteps_K, encoder_hidden_states=None, class_labels=vectors_KD).sample
    return predicted


def _attended_with_sizes(of: Denoising, noisy: Tensor, timesteps_K: Tensor, condition: Condition) -> Tensor:
    size = (of.sizes["height"], of.sizes["width"])
    told_K6 = torch.tensor([[*size, 0, 0, *size]], dtype=of.module.dtype, device=noisy.device).expand(len(noisy), -1)
    predicted: Tensor = of.module(
        noisy,
        timesteps_K,
        encoder_hidden_states=condition.sequence_NLD,
        added_cond_kwargs={"text_embeds": condition.pooled_NP.to(of.module.dtype), "time_ids": told_K6},
    ).sample
    return predicted


def _joint(of: Denoising, noisy: Tensor, timesteps_K: Tensor, condition: Condition) -> Tensor:
    predicted: Tensor = of.module(
        noisy,
        timestep=timesteps_K,
        encoder_hidden_states=condition.sequence_NLD,
        pooled_projections=condition.pooled_NP.to(of.module.dtype),
    ).sample
    return predicted


def _masked(of: Denoising, noisy: Tensor, timesteps_K: Tensor, condition: Condition) -> Tensor:
    predicted: Tensor = of.module(
        noisy,
        timestep=timesteps_K * of.module.config.timestep_scale,
        encoder_hidden_states=condition.sequence_NLD,
        encoder_attention_mask=condition.mask_NL,
    ).sample
    return predicted[:, : noisy.shape[1]]  # what follows is a variance


def _packed_image(of: Denoising, noisy: Tensor, timesteps_K: Tensor, condition: Condition) -> Tensor:
    module, (count, _, height, width) = of.module, noisy.shape
    places = diffusers.FluxPipeline._prepare_latent_image_ids(
        count, height // 2, width // 2, noisy.device, module.dtype
    )
    guidance = of.sizes["guidance_scale"]
    predicted = module(
        pack(of.family, noisy, module.config),
        timestep=timesteps_K / 1000,
        guidance=torch.full_like(timesteps_K, guidance) if module.config.guidance_embeds else None,
        pooled_projections=condition.pooled_NP.to(module.dtype),
        encoder_hidden_states=condition.sequence_NLD,
        txt_ids=places.new_zeros(condition.sequence_NLD.shape[1], 3),
        img_ids=places,
    ).sample
    unpacked: Tensor = diffusers.FluxPipeline._unpack_latents(predicted, height, width, 1)
    return unpacked


def _film(of: Denoising, noisy: Tensor, timesteps_K: Tensor, condition: Condition) -> Tensor:
    if of.sizes.get("expand_timesteps"):  # Wan 2.2 5B has one a token
        tokens = noisy[0, 0, :, ::2, ::2].numel()
        timesteps_K = timesteps_K[:, None].expand(-1, tokens)
    predicted: Tensor = of.module(noisy, timestep=timesteps_K, encoder_hidden_states=condition.sequence_NLD).sample
    return predicted


def _packed_film(of: Denoising, noisy: Tensor, timesteps_K: Tensor, condition: Condition) -> Tensor:
    config, (frames, height, width) = of.module.config, noisy.shape[2:]
    side = of.sizes["scale"]
    predicted = of.module(
        pack(of.family, noisy, config),
        timestep=timesteps_K,
        encoder_hidden_states=condition.sequence_NLD,
        encoder_attention_mask=condition.mask_NL,
        num_frames=frames,
        height=height,
        width=width,
        rope_interpolation_scale=(of.sizes["frame_scale"] / of.family.fps, side, side),
    ).sample
    patches = config.patch_size, config.patch_size_t
    unpacked: Tensor = diffusers.LTXPipeline._unpack_latents(predicted, frames, height, width, *patches)
    return unpacked


def _sound(of: Denoising, noisy: Tensor, timesteps_K: Tensor, condition: Condition) -> Tensor:
    seconds_K = torch.full((len(noisy),), of.sizes["audio_length_in_s"], device=noisy.device)
    told = of.projection(start_seconds=torch.zeros_like(seconds_K), end_seconds=seconds_K)
    start_K1D, end_K1D = told.seconds_start_hidden_states, told.seconds_end_hidden_states
    # One place more than latents, for what stands before them.
    rotary = get_1d_rotary_pos_embed(
        of.module.config.attention_head_dim // 2, noisy.shape[2] + 1, use_real=True, repeat_interleave_real=False
    )
    predicted: Tensor = of.module(
        noisy,
        timesteps_K,
        encoder_hidden_states=torch.cat([condition.sequence_NLD, start_K1D, end_K1D], dim=1),
        global_hidden_states=torch.cat([start_K1D, end_K1D], dim=2),
        rotary_embedding=tuple(values.to(noisy.device) for values in rotary),
    ).sample
    return predicted


def pack(family: Family, latents: Tensor, config: Any) -> Tensor:
    """Latents as a family's denoiser, of this configuration, takes them: as they are, or patches in a row."""
    packed: Tensor = latents
    if family.pipeline == "FluxPipeline":
        packed = diffusers.FluxPipeline._pack_latents(latents, *latents.shape)
    elif family.pipeline == "LTXPipeline":
        packed = diffusers.LTXPipeline._pack_latents(latents, config.patch_size, config.patch_size_t)
    return packed


_Call = Callable[[Denoising, Tensor, Tensor, Condition], Tensor]
_CALLS: dict[str, _Call] = {
    "StableDiffusionPipeline": _attended,
    "StableDiffusionXLPipeline": _attended_with_sizes,
    "StableDiffusion3Pipeline": _joint,
    "SanaPipeline": _masked,
    "FluxPipeline": _packed_image,
    "TextToVideoSDPipeline": _attended,
    "WanPipeline": _film,
    "LTXPipeline": _packed_film,
    "AudioLDMPipeline": _classed,
    "StableAudioPipeline": _sound,
}
