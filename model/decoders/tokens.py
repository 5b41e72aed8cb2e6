"""Captions as the text encoders of the diffusion decoders take them: token ids, made on any CPU without the encoder."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import transformers

from model.parts.families import family_of, locate
from model.parts.family_table import Family
from pipelines.sample import Modality


class CaptionTokens:
    """A decoder's own tokenizer. `max_length` is in tokens; longer captions are truncated to it.

    Raises FileNotFoundError if `name` (built-in part, directory or hub id) is no diffusers pipeline, ValueError if it
    belongs to another modality.
    """

    def __init__(self, modality: Modality, name: str) -> None:
        family, path = family_of(modality, name), locate(modality, name)
        self.tokenizer = getattr(transformers, family.tokenizer).from_pretrained(path, subfolder="tokenizer")
        config = transformers.AutoConfig.from_pretrained(path, subfolder="text_encoder")
        self.max_length = _max_length(self.tokenizer, config, family)

    def __call__(self, captions: Sequence[str]) -> list[npt.NDArray[Any]]:
        """The ids of each caption, begin and end token included, without padding: int32 (num_tokens,)."""
        if not captions:
            return []
        found = self.tokenizer(list(captions), max_length=self.max_length, truncation=True)
        return [np.array(ids, np.int32) for ids in found.input_ids]


def caption_inputs(modality: Modality, name: str) -> Callable[[Sequence[str]], Sequence[Any]]:
    """What makes of captions what a decoder's text encoder takes: ids, or for several encoders the captions.

    Raises as `CaptionTokens` does.
    """
    return list if family_of(modality, name).prompts else CaptionTokens(modality, name)


def _max_length(tokenizer: Any, config: Any, family: Family) -> int:
    # RoBERTa numbers positions from the padding id onwards, so CLAP's 514 rows serve 512 tokens.
    unused = config.pad_token_id + 1 if family.pooled else 0
    return int(min(tokenizer.model_max_length, config.max_position_embeddings - unused))
