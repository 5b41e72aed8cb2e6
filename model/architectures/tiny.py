"""Builds the tiny parts: the real architectures at toy size, with seeded random weights and small tokenizers."""

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from model.architectures import fresh
from model.architectures.marker import mark_untrained

CORPUS = Path(__file__).parents[1] / "presets" / "tiny_corpus.txt"
LLM_VOCAB_SIZE = 512
NUM_MERGES = 256
UNET_CHANNELS = (16, 32)
VAE_WIDTHS = (8, 16, 16)


def build(part: str, directory: Path) -> None:
    """Writes one tiny part into a new directory; the caller's random state is preserved."""
    directory.mkdir()
    with _seeded(part):
        _BUILDERS[part](directory)
    mark_untrained(directory)


@contextmanager
def _seeded(part: str) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also reset the GPUs' generators, which fork_rng does not restore here.
        torch.default_generator.manual_seed(zlib.crc32(part.encode()))
        yield


def _corpus() -> list[str]:
    return CORPUS.read_text(encoding="utf-8").splitlines()


def _build_llm(directory: Path) -> None:
    tokenizer = fresh.llm_tokenizer(_corpus(), LLM_VOCAB_SIZE)
    fresh.llama(tokenizer, width=64, feed_forward=176, layers=3).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _build_imagebind(directory: Path) -> None:
    from model.architectures.imagebind import ImageBind, ImageBindConfig

    config = ImageBindConfig(
        vision_width=64,
        vision_layers=2,
        vision_heads=4,
        audio_width=48,
        audio_layers=2,
        audio_heads=4,
        embed_dim=32,
    )
    model = ImageBind(config)
    with torch.no_grad():
        for parameter in model.parameters():
            # At the usual 0.02, an untrained encoder maps all images to nearly the same vector.
            if parameter.dim() > 1:
                parameter.normal_(std=0.2)
    model.save_pretrained(directory)


def _clip_tokenizer() -> Any:
    return fresh.clip_tokenizer(_corpus(), 77, NUM_MERGES)


def _build_image_decoder(directory: Path) -> None:
    fresh.image_pipeline(
        _clip_tokenizer(),
        channels=UNET_CHANNELS,
        attends=(True, False),
        vae_widths=VAE_WIDTHS,
    ).save_pretrained(directory)


def _build_video_decoder(directory: Path) -> None:
    fresh.video_pipeline(
        _clip_tokenizer(),
        channels=UNET_CHANNELS,
        attends=(True, False),
        head_width=4,
        vae_widths=VAE_WIDTHS,
    ).save_pretrained(directory)


def _build_audio_decoder(directory: Path) -> None:
    """Latents of 32 x 16 make 128 mel frames of 64 bands, 160 samples each: 1.28 s at 16 kHz."""
    fresh.audio_pipeline(
        fresh.roberta_tokenizer(_corpus(), 512, NUM_MERGES),
        channels=UNET_CHANNELS,
        frames=128,
        initializer_factor=10.0,
        vae_widths=VAE_WIDTHS,
        vocoder={
            "upsample_initial_channel": 64,
            "upsample_rates": [5, 4, 2, 2, 2],
            # (kernel - rate) must be even, or each layer is off by one sample.
            "upsample_kernel_sizes": [15, 8, 4, 4, 4],
            "resblock_kernel_sizes": [3],
            "resblock_dilation_sizes": [[1, 3]],
            "initializer_range": 0.1,  # the default of 0.01 leaves an untrained vocoder silent
        },
    ).save_pretrained(directory)


_BUILDERS: dict[str, Callable[[Path], None]] = {
    "llm": _build_llm,
    "imagebind": _build_imagebind,
    "image_decoder": _build_image_decoder,
    "video_decoder": _build_video_decoder,
    "audio_decoder": _build_audio_decoder,
}
