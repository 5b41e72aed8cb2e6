"""Text encoders of the released decoders' shapes, with random weights, on captions of the small world."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from model.parts.builtin import resolve
from model.parts.devices import best_device
from model.parts.library_logs import quiet_libraries
from model.parts.mixed_precision import Precision
from pipelines.sample import Modality
from pipelines.world.captions import caption
from pipelines.world.scenes import draw

if TYPE_CHECKING:
    from model.decoders.text_encoders import CaptionEncoder

# At this size the captions' words are one or two tokens, as with the released encoders' vocabularies.
VOCABULARY = 1000
_BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
# CLIP-L of Stable Diffusion v1-5, OpenCLIP ViT-H of ZeroScope, CLAP's RoBERTa of AudioLDM.
SHAPES: Mapping[Modality, Mapping[str, int]] = {
    Modality.IMAGE: {**_BASE, "projection_dim": 768},
    Modality.VIDEO: {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 23,
        "num_attention_heads": 16,
        "projection_dim": 512,
    },
    Modality.AUDIO: {**_BASE, "projection_dim": 512},
}


def draw_captions(modality: Modality, count: int) -> list[str]:
    """The first captions of the small world."""
    return [caption(draw(0, index)[modality], index) for index in range(count)]


def load_encoders(
    modality: Modality,
    folder: Path,
    captions: Sequence[str],
    precisions: Sequence[Precision],
    shape: Mapping[str, int] | None = None,
    device: str = "cpu",
) -> list["CaptionEncoder"]:
    """Writes a decoder with a text encoder of the given shape to a new folder, and loads it in each precision.

    The tokenizer is trained on the captions.
    """
    best_device()  # before diffusers is imported, which otherwise searches for an accelerator
    from model.decoders.text_encoders import CaptionEncoder

    shutil.copytree(resolve(f"builtin:tiny/{modality}_decoder"), folder)
    kind = transformers.RobertaTokenizer if modality is Modality.AUDIO else transformers.CLIPTokenizer
    tokenizer = kind.from_pretrained(folder, subfolder="tokenizer").train_new_from_iterator(
        [captions], VOCABULARY, show_progress=False
    )
    with quiet_libraries(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        draw_text_encoder(modality, tokenizer, shape or SHAPES[modality]).save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")
    return [CaptionEncoder(modality, str(folder), device, precision) for precision in precisions]


def draw_text_encoder(modality: Modality, tokenizer: Any, shape: Mapping[str, int]) -> Any:
    """A text encoder with random weights; unless its shape says otherwise, one embedding row per token."""
    shape = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, **shape}
    if modality is Modality.AUDIO:
        # RoBERTa numbers positions from the padding id onwards.
        positions = 512 + tokenizer.pad_token_id + 1
        config = transformers.ClapTextConfig(**shape, max_position_embeddings=positions)
        return transformers.ClapTextModelWithProjection(config)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = transformers.CLIPTextConfig(**shape, **ends, max_position_embeddings=77)
    return transformers.CLIPTextModel(config)
