"""Decoders of the released shapes with random weights, written as diffusers folders; nothing is downloaded.

The configurations are those of the published repositories, where they differ from diffusers' defaults. Tokenizers are
those of the tiny decoders, whose ids are within the published vocabularies.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model.parts.builtin import resolve
from model.parts.devices import best_device
from model.parts.library_logs import quiet_libraries
from pipelines.sample import Modality
from tests.benchmarks.text_encoders import SHAPES, draw_text_encoder


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderShape:
    """The configurations of a decoder's parts, and the precision of its published weights."""

    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text_encoder: Mapping[str, int]
    scheduler: tuple[str, Mapping[str, Any]]
    vocoder: Mapping[str, Any] | None = None
    dtype: torch.dtype = torch.float32


def _blocks(kind: str, attends: tuple[bool, ...]) -> dict[str, tuple[str, ...]]:
    down = tuple(f"CrossAttnDownBlock{kind}" if attend else f"DownBlock{kind}" for attend in attends)
    up = tuple(f"CrossAttnUpBlock{kind}" if attend else f"UpBlock{kind}" for attend in reversed(attends))
    return {"down_block_types": down, "up_block_types": up}


def _vae(channels: int, latents: int, widths: tuple[int, ...], scaling: float) -> dict[str, Any]:
    return {
        "in_channels": channels,
        "out_channels": channels,
        "latent_channels": latents,
        "block_out_channels": widths,
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
        "layers_per_block": 2,
        "scaling_factor": scaling,
    }


_STABLE_DIFFUSION_VAE = _vae(3, 4, (128, 256, 512, 512), 0.18215)
_STEPS = {"beta_schedule": "scaled_linear", "set_alpha_to_one": False, "steps_offset": 1}
# Stable Diffusion v1-5, ZeroScope v2 576w, AudioLDM-l-full.
PUBLISHED: Mapping[Modality, DecoderShape] = {
    Modality.IMAGE: DecoderShape(
        unet={
            "sample_size": 64,
            "block_out_channels": (320, 640, 1280, 1280),
            "cross_attention_dim": 768,
            "attention_head_dim": 8,
            **_blocks("2D", (True, True, True, False)),
        },
        vae=_STABLE_DIFFUSION_VAE,
        text_encoder={**SHAPES[Modality.IMAGE], "vocab_size": 49_408},
        scheduler=(
            "PNDMScheduler",
            {**_STEPS, "beta_start": 0.00085, "beta_end": 0.012, "skip_prk_steps": True},
        ),
    ),
    Modality.VIDEO: DecoderShape(
        unet={
            "sample_size": 32,
            "block_out_channels": (320, 640, 1280, 1280),
            "cross_attention_dim": 1024,
            "attention_head_dim": 64,
            **_blocks("3D", (True, True, True, False)),
        },
        vae=_STABLE_DIFFUSION_VAE,
        text_encoder={**SHAPES[Modality.VIDEO], "vocab_size": 49_408},
        scheduler=("DDIMScheduler", {**_STEPS, "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}),
        dtype=torch.float16,
    ),
    Modality.AUDIO: DecoderShape(
        unet={
            "sample_size": 128,
            "in_channels": 8,
            "out_channels": 8,
            "block_out_channels": (256, 512, 768, 1280),
            "cross_attention_dim": (256, 512, 768, 1280),
            "attention_head_dim": 8,
            "class_embed_type": "simple_projection",
            "class_embeddings_concat": True,
            "projection_class_embeddings_input_dim": 512,
            **_blocks("2D", (False, True, True, True)),
        },
        vae=_vae(1, 8, (128, 256, 512), 0.9227914214134216),
        text_encoder={**SHAPES[Modality.AUDIO], "vocab_size": 50_265},
        scheduler=("DDIMScheduler", {**_STEPS, "beta_start": 0.0015, "beta_end": 0.0195, "clip_sample": False}),
        vocoder={
            "model_in_dim": 64,
            "sampling_rate": 16_000,
            "normalize_before": False,
            "upsample_initial_channel": 1024,
            "upsample_rates": [5, 4, 2, 2, 2],
            "upsample_kernel_sizes": [16, 16, 8, 4, 4],
        },
    ),
}


def write_decoder(modality: Modality, shape: DecoderShape, folder: Path, device: str = "cpu") -> None:
    """Writes a decoder's folder with random weights, drawn on a device."""
    best_device()  # before diffusers is imported, which otherwise searches for an accelerator
    import diffusers
    import transformers

    from model.parts.families import family_of

    family = family_of(modality, f"builtin:tiny/{modality}_decoder")
    with quiet_libraries():
        tokenizer = getattr(transformers, family.tokenizer).from_pretrained(
            resolve(f"builtin:tiny/{modality}_decoder"), subfolder="tokenizer"
        )
        with torch.random.fork_rng(), torch.device(device):
            torch.manual_seed(0)
            parts = {
                "unet": getattr(diffusers, family.denoiser)(**shape.unet),
                "vae": diffusers.AutoencoderKL(**shape.vae),
                "text_encoder": draw_text_encoder(modality, tokenizer, shape.text_encoder),
            }
            if shape.vocoder is not None:
                config = transformers.SpeechT5HifiGanConfig(**shape.vocoder)
                parts["vocoder"] = transformers.SpeechT5HifiGan(config)
        name, settings = shape.scheduler
        no_checker = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipe = getattr(diffusers, family.pipeline)(
            **{part: module.to(shape.dtype) for part, module in parts.items()},
            tokenizer=tokenizer,
            scheduler=getattr(diffusers, name)(**settings),
            **(no_checker if family.safety_checker else {}),
        )
        pipe.save_pretrained(folder)
