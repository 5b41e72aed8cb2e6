"""Shapes of released decoders, from configuration files like theirs; denoisers as wide as theirs, without weights.

The numbers are those that the projects publish; of a transformer, one block stands for all.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import pytest
import torch

from model.decoders.denoising import Denoiser
from model.parts.families import caption_shape, condition_shape, default_settings, latent_grid, latent_shape
from pipelines.sample import Modality

FOUR_LEVELS = {"block_out_channels": [128, 256, 512, 512], "latent_channels": 16}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
CLIP = {"max_position_embeddings": 77}


class Published(NamedTuple):
    kind: str
    modality: Modality
    files: dict[str, dict[str, Any]]
    condition: tuple[int, int, int, bool]
    rows: tuple[int, int]
    latents: tuple[int, ...]


PUBLISHED = [
    Published(
        "StableDiffusionXLPipeline",
        Modality.IMAGE,
        {
            "text_encoder": {**CLIP, "hidden_size": 768},
            "text_encoder_2": {**CLIP, "hidden_size": 1280, "projection_dim": 1280},
            "tokenizer": {"model_max_length": 77},
            "unet": {
                "sample_size": 128,
                "block_out_channels": [320, 640, 1280],
                "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
                "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
                "transformer_layers_per_block": [1, 1, 1],
                "attention_head_dim": [5, 10, 20],
                "cross_attention_dim": 2048,
                "use_linear_projection": True,
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 256,
                "projection_class_embeddings_input_dim": 2816,
                "in_channels": 4,
            },
            "vae": {**FOUR_LEVELS, "latent_channels": 4},
            "scheduler": {"_class_name": "EulerDiscreteScheduler", "beta_schedule": "scaled_linear"},
        },
        (77, 2048, 1280, False),
        (78, 2048),
        (4, 128, 128),
    ),
    Published(
        "StableDiffusion3Pipeline",  # 3.5 medium
        Modality.IMAGE,
        {
            "text_encoder": {**CLIP, "projection_dim": 768},
            "text_encoder_2": {**CLIP, "projection_dim": 1280},
            "text_encoder_3": {"d_model": 4096},
            "tokenizer": {"model_max_length": 77},
            "transformer": {
                "sample_size": 128,
                "in_channels": 16,
                "num_layers": 1,
                "attention_head_dim": 64,
                "num_attention_heads": 24,
                "joint_attention_dim": 4096,
                "caption_projection_dim": 1536,
                "pooled_projection_dim": 2048,
                "pos_embed_max_size": 384,
            },
            "vae": FOUR_LEVELS,
            "scheduler": FLOW,
        },
        (333, 4096, 2048, False),
        (334, 4096),
        (16, 128, 128),
    ),
    Published(
        "SanaPipeline",  # 1.6B at 1024 pixels
        Modality.IMAGE,
        {
            "text_encoder": {"hidden_size": 2304},
            "transformer": {
                "sample_size": 32,
                "in_channels": 32,
                "num_layers": 1,
                "num_attention_heads": 70,
                "attention_head_dim": 32,
                "caption_channels": 2304,
            },
            "vae": {"encoder_block_out_channels": [128, 256, 512, 512, 1024, 1024]},
            "scheduler": {"_class_name": "DPMSolverMultistepScheduler", "prediction_type": "flow_prediction"},
        },
        (300, 2304, 0, True),
        (300, 2304),
        (32, 32, 32),
    ),
    Published(
        "FluxPipeline",
        Modality.IMAGE,
        {
            "text_encoder": {**CLIP, "hidden_size": 768},
            "text_encoder_2": {"d_model": 4096},
            "transformer": {
                "in_channels": 64,
                "num_layers": 1,
                "num_single_layers": 1,
                "attention_head_dim": 128,
                "num_attention_heads": 24,
                "joint_attention_dim": 4096,
                "pooled_projection_dim": 768,
                "guidance_embeds": True,
            },
            "vae": FOUR_LEVELS,
            "scheduler": {**FLOW, "use_dynamic_shifting": True},
        },
        (512, 4096, 768, False),
        (513, 4096),
        (16, 128, 128),
    ),
    Published(
        "WanPipeline",  # 2.1, 1.3B
        Modality.VIDEO,
        {
            "text_encoder": {"d_model": 4096},
            "transformer": {
                "in_channels": 16,
                "num_layers": 1,
                "attention_head_dim": 128,
                "num_attention_heads": 12,
                "text_dim": 4096,
                "ffn_dim": 8960,
            },
            "vae": {"z_dim": 16, "temperal_downsample": [False, True, True]},
            "scheduler": {"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction"},
        },
        (512, 4096, 0, False),
        (512, 4096),
        (16, 21, 60, 104),
    ),
    Published(
        "LTXPipeline",
        Modality.VIDEO,
        {
            "text_encoder": {"d_model": 4096},
            "transformer": {
                "in_channels": 128,
                "num_layers": 1,
                "attention_head_dim": 64,
                "num_attention_heads": 32,
                "caption_channels": 4096,
                "cross_attention_dim": 2048,
            },
            "vae": {"patch_size": 4, "patch_size_t": 1, "spatio_temporal_scaling": [True, True, True, False]},
            "scheduler": {**FLOW, "use_dynamic_shifting": True},
        },
        (128, 4096, 0, True),
        (128, 4096),
        (128, 21, 16, 22),
    ),
    Published(
        "StableAudioPipeline",
        Modality.AUDIO,
        {
            "text_encoder": {"d_model": 768},
            "tokenizer": {"model_max_length": 128},
            "projection_model": {
                "text_encoder_dim": 768,
                "conditioning_dim": 768,
                "min_value": 0,
                "max_value": 512,
            },
            "transformer": {
                "sample_size": 1024,
                "in_channels": 64,
                "num_layers": 1,
                "attention_head_dim": 64,
                "num_attention_heads": 24,
                "cross_attention_input_dim": 768,
                "global_states_input_dim": 1536,
            },
            "vae": {"downsampling_ratios": [2, 4, 4, 8, 8], "sampling_rate": 44_100, "audio_channels": 2},
            "scheduler": {"_class_name": "EDMDPMSolverMultistepScheduler", "sigma_data": 1.0},
        },
        (128, 768, 0, False),
        (128, 768),
        (64, 1024),
    ),
]
each_published = pytest.mark.parametrize("published", PUBLISHED, ids=[one.kind for one in PUBLISHED])


class WithoutWeights(Denoiser):
    def _load_part(self, path: str, part: str, kind: str, dtype: torch.dtype) -> Any:
        made = getattr(diffusers, kind)
        with torch.device("meta"):
            return made.from_config(made.load_config(path, subfolder=part)).to(dtype)


def written(published: Published, folder: Path) -> str:
    names = {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}
    index: dict[str, Any] = {"_class_name": published.kind}
    for part, values in published.files.items():
        (folder / part).mkdir()
        (folder / part / names.get(part, "config.json")).write_text(json.dumps(values))
        index[part] = ["diffusers", "StableAudioProjectionModel" if part == "projection_model" else "Any"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return str(folder)


@each_published
def test_a_presets_shapes_come_from_the_pipelines_files(published: Published, tmp_path: Path) -> None:
    name, modality = written(published, tmp_path), published.modality
    shape = condition_shape(modality, name)
    assert (shape.length, shape.dim, shape.pooled, shape.masked) == published.condition
    assert caption_shape(modality, name) == published.rows
    assert latent_shape(modality, name) == published.latents
    assert default_settings(modality, name)["num_inference_steps"] >= 20


def test_a_sound_of_stable_audio_takes_47_seconds(tmp_path: Path) -> None:
    name = written(PUBLISHED[-1], tmp_path)
    assert latent_grid(Modality.AUDIO, name) == (1, 1, 2_097_152)
    assert default_settings(Modality.AUDIO, name)["audio_length_in_s"] == pytest.approx(47.55, abs=0.01)


def test_a_film_of_wan_takes_81_frames(tmp_path: Path) -> None:
    name = written(next(one for one in PUBLISHED if one.kind == "WanPipeline"), tmp_path)
    assert latent_grid(Modality.VIDEO, name) == (81, 480, 832)


@each_published
def test_a_denoiser_of_published_width_takes_such_conditions(published: Published, tmp_path: Path) -> None:
    denoiser = WithoutWeights(published.modality, written(published, tmp_path), "meta")
    conditions = torch.empty(2, *published.rows, device="meta", requires_grad=True)
    latents = torch.empty(2, *published.latents, device="meta")
    loss = denoiser(conditions, latents, torch.Generator().manual_seed(0))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.shape == ()
    assert conditions.grad is not None
