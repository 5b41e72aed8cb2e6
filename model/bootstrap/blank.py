"""The untrained foundations of preset `world`: the real architectures with a few million weights."""

from collections.abc import Iterable
from typing import Any

from model.architectures import fresh
from model.architectures.imagebind import ImageBind, ImageBindConfig
from model.architectures.imagebind_text import TextTower

MAX_LENGTH = 32  # tokens of a caption
_MERGES = 400
_VAE_WIDTHS = (16, 32, 32)
_EMBED_DIM = 64


def image_pipeline(corpus: Iterable[str]) -> Any:
    """Stable Diffusion: 32 x 32 pixels."""
    return fresh.image_pipeline(
        fresh.clip_tokenizer(corpus, MAX_LENGTH, _MERGES),
        channels=(48, 96),
        attends=(True, True),
        vae_widths=_VAE_WIDTHS,
    )


def video_pipeline(corpus: Iterable[str]) -> Any:
    """Text to video: 8 frames of 32 x 32 pixels."""
    return fresh.video_pipeline(
        fresh.clip_tokenizer(corpus, MAX_LENGTH, _MERGES),
        channels=(32, 56),
        attends=(False, True),  # where there are fewest positions: attention dominates the cost of a step
        head_width=8,
        vae_widths=_VAE_WIDTHS,
    )


def audio_pipeline(corpus: Iterable[str]) -> Any:
    """AudioLDM: 32 frames of 64 bands, 1.28 s at 16 kHz."""
    pipe = fresh.audio_pipeline(
        fresh.roberta_tokenizer(corpus, MAX_LENGTH, _MERGES),
        channels=(32, 64),
        frames=32,
        initializer_factor=1.0,
        vae_widths=_VAE_WIDTHS,
        vocoder={
            "upsample_initial_channel": 32,
            # One upsampling step from frames to samples: its kernels are a dictionary of waves, which is learned
            # quickly.
            "upsample_rates": [640],
            "upsample_kernel_sizes": [640],
            "resblock_kernel_sizes": [1],
            "resblock_dilation_sizes": [[1]],
        },
    )
    # The values of a unit vector are small compared with the noise level embedding.
    pipe.unet.class_embedding.weight.data *= 6
    return pipe


def llama(corpus: Iterable[str]) -> tuple[Any, Any]:
    """A Llama with a million weights, and its tokenizer."""
    tokenizer = fresh.llm_tokenizer(corpus, 1152)
    return fresh.llama(tokenizer, width=128, feed_forward=352, layers=4), tokenizer


def imagebind(corpus: Iterable[str]) -> tuple[ImageBind, TextTower, Any]:
    """An ImageBind for 32 x 32 pixels, its text tower, and the tower's tokenizer."""
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
    tokenizer = fresh.clip_tokenizer(corpus, MAX_LENGTH, _MERGES)
    text = TextTower(
        vocab_size=len(tokenizer), length=MAX_LENGTH, width=64, layers=2, num_heads=4, embed_dim=_EMBED_DIM
    )
    model = ImageBind(config)
    for name, parameter in model.named_parameters():
        if name.endswith("pos_embed"):
            # Otherwise a short training learns positions too late, or never.
            parameter.data *= 15
    return model, text, tokenizer
