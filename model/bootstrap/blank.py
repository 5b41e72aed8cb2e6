"""The world's foundations before they are trained: the architectures of the real ones with a few million weights."""

from collections.abc import Iterable
from typing import Any

import diffusers
import transformers

from model.imagebind import ImageBind, ImageBindConfig
from model.imagebind_text import TextTower
from model.tiny import (
    clap_text_encoder,
    clip_text_encoder,
    clip_tokenizer,
    llm_tokenizer,
    roberta_tokenizer,
    scheduler,
    vae,
)

MAX_LENGTH = 32  # tokens of a caption
TEXT_WIDTH = {"image": 64, "video": 48, "audio": 32}  # three widths, as 768, 1024 and 512 in the real system
_MERGES = 400
_VAE_WIDTHS = (16, 32, 32)
_AUDIO_CHANNELS = (32, 64)
_EMBED_DIM = 64


def image_pipeline(corpus: Iterable[str]) -> Any:
    """Stable Diffusion: 32 x 32 pixels, latents of 4 x 8 x 8."""
    tokenizer = clip_tokenizer(corpus, MAX_LENGTH, _MERGES)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(48, 96),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH["image"],
        attention_head_dim=4,
        norm_num_groups=8,
    )
    return diffusers.StableDiffusionPipeline(
        vae=vae(channels=3, latent_channels=4, widths=_VAE_WIDTHS),
        text_encoder=clip_text_encoder(tokenizer, TEXT_WIDTH["image"]),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def video_pipeline(corpus: Iterable[str]) -> Any:
    """Text to video: 8 frames of 32 x 32 pixels, latents of 4 x 8 x 8 x 8."""
    tokenizer = clip_tokenizer(corpus, MAX_LENGTH, _MERGES)
    unet = diffusers.UNet3DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH["video"],
        attention_head_dim=4,
        norm_num_groups=8,
    )
    return diffusers.TextToVideoSDPipeline(
        vae=vae(channels=3, latent_channels=4, widths=_VAE_WIDTHS),
        text_encoder=clip_text_encoder(tokenizer, TEXT_WIDTH["video"]),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler(),
    )


def audio_pipeline(corpus: Iterable[str]) -> Any:
    """AudioLDM: 32 frames of 64 bands, 1.28 s at 16 kHz; latents of 8 x 8 x 16."""
    tokenizer = roberta_tokenizer(corpus, MAX_LENGTH, _MERGES)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=8,
        out_channels=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=_AUDIO_CHANNELS,
        layers_per_block=1,
        # AudioLDM attends to nothing but itself; the caption comes in as a class embedding.
        cross_attention_dim=_AUDIO_CHANNELS,
        attention_head_dim=4,
        norm_num_groups=8,
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=TEXT_WIDTH["audio"],
        class_embeddings_concat=True,
    )
    # A unit vector's numbers are small beside those that tell the noise level.
    unet.class_embedding.weight.data *= 6
    return diffusers.AudioLDMPipeline(
        vae=vae(channels=1, latent_channels=8, widths=_VAE_WIDTHS),
        text_encoder=clap_text_encoder(tokenizer, TEXT_WIDTH["audio"], initializer_factor=1.0),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler(),
        vocoder=transformers.SpeechT5HifiGan(
            transformers.SpeechT5HifiGanConfig(
                model_in_dim=64,
                sampling_rate=16_000,
                upsample_initial_channel=64,
                # One step from frames to samples: its kernels are a dictionary of waves, which is quick to learn.
                upsample_rates=[640],
                upsample_kernel_sizes=[640],
                resblock_kernel_sizes=[1],
                resblock_dilation_sizes=[[1]],
                normalize_before=False,
            )
        ),
    )


def llama(corpus: Iterable[str]) -> tuple[Any, Any]:
    """A Llama of a million weights, and its tokenizer."""
    tokenizer = llm_tokenizer(corpus, 768)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=1024,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return transformers.LlamaForCausalLM(config), tokenizer


def imagebind(corpus: Iterable[str]) -> tuple[ImageBind, TextTower, Any]:
    """An ImageBind of 32 x 32 pixels, its text tower and that one's tokenizer."""
    config = ImageBindConfig(
        vision_width=96,
        vision_layers=3,
        vision_heads=4,
        audio_width=64,
        audio_layers=3,
        audio_heads=4,
        embed_dim=_EMBED_DIM,
        image_size=32,
        patch_size=4,
        audio_patch_size=16,
        audio_stride=16,
    )
    tokenizer = clip_tokenizer(corpus, MAX_LENGTH, _MERGES)
    text = TextTower(
        vocab_size=len(tokenizer), length=MAX_LENGTH, width=64, layers=2, num_heads=4, embed_dim=_EMBED_DIM
    )
    model = ImageBind(config)
    for name, parameter in model.named_parameters():
        if name.endswith("pos_embed"):
            # In a short training, where a patch lies would else be found out too late, or never.
            parameter.data *= 15
    return model, text, tokenizer
