"""Folders of tiny encoders with random weights, written by transformers' own classes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoTokenizer,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2ImageProcessorPil,
    Siglip2Model,
    Siglip2Tokenizer,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
)

from model.parts.library_logs import quiet_libraries

TEXT = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
SEEN = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}
HEARD = {"patch_embeds_hidden_size": 8, "hidden_size": 64, "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 2]}


def write_siglip(folder: Path, seed: int = 0) -> Any:
    """A SigLIP of 48 x 48 pixels and 6 x 6 patches, 32 wide, with the processor of a published SigLIP2; its model."""
    config = SiglipConfig(text_config=TEXT, vision_config=SEEN | {"image_size": 48})
    half = [0.5] * 3
    processor = SiglipImageProcessorPil(size={"height": 48, "width": 48}, resample=2, image_mean=half, image_std=half)
    return _write(folder, SiglipModel, config, processor, seed)


def write_siglip2(folder: Path, seed: int = 0) -> Any:
    """A SigLIP2 of at most 36 patches, whose pictures keep their proportions; its model."""
    config = Siglip2Config(text_config=TEXT, vision_config=SEEN | {"num_patches": 36})
    return _write(folder, Siglip2Model, config, Siglip2ImageProcessorPil(patch_size=8, max_num_patches=36), seed)


def write_clap(folder: Path, seed: int = 0, *, fused: bool = False) -> Any:
    """A CLAP of 24 numbers pooled and 2 x 32 patches of 64; its model."""
    audio = HEARD | {"enable_fusion": fused, "projection_dim": 24}
    config = ClapConfig(text_config=TEXT, audio_config=audio, projection_dim=24)
    extractor = ClapFeatureExtractor(truncation="fusion" if fused else "rand_trunc", padding="repeatpad")
    return _write(folder, ClapModel, config, extractor, seed)


def write_tokenizer(folder: Path) -> Any:
    """A tokenizer of words beside an encoder, or of letters beside a SigLIP2, as transformers reads it there."""
    if json.loads((folder / "config.json").read_text())["model_type"] == "siglip2":
        known = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "\u2581", *"abcdefghijklmnopqrstuvwxyz"]
        Siglip2Tokenizer(vocab=_numbered(known), merges=[]).save_pretrained(folder)
        return AutoTokenizer.from_pretrained(folder)
    words = ["a", "red", "blue", "circle", "square", "low", "high", "do", "mi", "at", "the", "top", "of"]
    alone = Tokenizer(models.WordLevel(_numbered(["<pad>", "<unk>", "<s>", "</s>", *words]), unk_token="<unk>"))
    alone.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [("<s>", 2), ("</s>", 3)]
    alone.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=alone, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def _numbered(words: Sequence[str]) -> dict[str, int]:
    return {word: number for number, word in enumerate(words)}


def _write(folder: Path, kind: Any, config: Any, processor: Any, seed: int) -> Any:
    with quiet_libraries(), torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind(config).eval()
        model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model
