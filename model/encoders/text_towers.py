"""The text towers of media encoders, which embed captions beside the media that they were trained with.

Suffixes: N texts, L tokens, E width of an embedding.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoTokenizer, CLIPTokenizer

from model.architectures.imagebind_text import ImageBindTextEncoder
from model.encoders.frozen import load_frozen
from model.parts.builtin import resolve
from model.parts.encoder_kinds import CLAP, IMAGEBIND, SIGLIP, read_encoder

_AT_ONCE = 256
_SIGLIP_TOKENS = 64


class CaptionTower:
    """A frozen text tower and its tokenizer; `encode` makes token ids of texts, `run` embeddings (N, E) of these."""

    def __init__(
        self,
        tower: Any,
        tokenizer: Any,
        encode: Callable[[list[str]], Any],
        run: Callable[[Any], Tensor],
        device: torch.device | str,
    ) -> None:
        self.tower, self.tokenizer = tower.to(torch.device(device)), tokenizer
        self._encode, self._run, self._device = encode, run, torch.device(device)

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Embeds texts; returns float32 (N, E) of norm 1 on the CPU."""
        pieces = [list(texts[start : start + _AT_ONCE]) for start in range(0, len(texts), _AT_ONCE)]
        made = [self._run(self._encode(piece).to(self._device)).float() for piece in pieces]
        return F.normalize(torch.cat(made), dim=-1).cpu()


TextEncoder = CaptionTower | ImageBindTextEncoder


def load_text_tower(name: str, *, tokenizer: str | None = None, device: torch.device | str = "cpu") -> TextEncoder:
    """Loads the text tower of a named encoder: of an ImageBind with the CLIP tokenizer in a folder, else with its own.

    Raises:
        ValueError: the encoder has no text tower, or is of no known kind.
    """
    kind, config = read_encoder(name)
    if kind is IMAGEBIND:
        return ImageBindTextEncoder(
            resolve(name), CLIPTokenizer.from_pretrained(tokenizer, subfolder="tokenizer"), device=device
        )
    if "text_config" not in config:
        raise ValueError(f"{name}: no text tower, which text-media similarities need; name the whole {kind.name}")
    return (_clap if kind is CLAP else partial(_siglip, is_first=kind is SIGLIP))(name, device)


def _siglip(name: str, device: torch.device | str, is_first: bool) -> CaptionTower:
    """Reads texts as it was trained: in lower case, padded to its length, and looking at the padding."""
    from transformers import Siglip2TextModel, SiglipTextModel

    tower, tokens = load_frozen(SiglipTextModel if is_first else Siglip2TextModel, name), _tokenizer(name)
    length = min(_SIGLIP_TOKENS, tower.config.max_position_embeddings)

    def encode(texts: list[str]) -> Any:
        lower = [text.lower() for text in texts]
        kept = {"padding": "max_length", "padding_side": "right", "truncation": True, "max_length": length}
        return tokens(lower, **kept, return_tensors="pt")

    return CaptionTower(tower, tokens, encode, lambda ids: tower(input_ids=ids["input_ids"]).pooler_output, device)


def _clap(name: str, device: torch.device | str) -> CaptionTower:
    from transformers import ClapTextModelWithProjection

    tower, tokens = load_frozen(ClapTextModelWithProjection, name), _tokenizer(name)
    # The first of RoBERTa's positions stand for padding.
    length = tower.config.max_position_embeddings - tower.config.pad_token_id - 1

    def run(ids: Any) -> Tensor:
        found: Tensor = tower(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"]).text_embeds
        return found

    return CaptionTower(
        tower,
        tokens,
        partial(tokens, padding=True, truncation=True, max_length=length, return_tensors="pt"),
        run,
        device,
    )


def _tokenizer(name: str) -> Any:
    try:
        return AutoTokenizer.from_pretrained(resolve(name))
    except (OSError, ValueError) as error:
        raise ValueError(f"{name}: no tokenizer for the encoder's text tower") from error
