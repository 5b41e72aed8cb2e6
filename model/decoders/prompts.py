"""Captions as a pipeline's own `encode_prompt` embeds them, with all of its text encoders and none of the rest.

Shape suffixes: N captions, L positions, D width, P width of a pooled vector.
"""

import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import diffusers
import numpy as np
import numpy.typing as npt
import torch
import transformers
from torch import Tensor

from model.decoders.conditions import Condition, to_rows
from model.parts.families import TEXTS, TOKENIZERS, components, condition_shape, locate, text_components
from model.parts.family_table import MASK, POOLED, SEQUENCE, Family, Prompts
from pipelines.sample import Modality

PIECE = 16  # captions that are embedded at once
_TOO_LONG = "sequence-length-is-longer-than-the-specified-maximum"  # a warning that transformers gives once
_INSTRUCTION = "complex_human_instruction"  # that Sana puts before a caption: a default of its call alone


class PromptTexts:
    """The float32 text encoders of a pipeline behind its `encode_prompt`.

    `models` are its modules with weights by name, `shape` that of a condition. Raises as `TextEncoder` does.
    """

    def __init__(self, modality: Modality, name: str, family: Family, prompts: Prompts, device: torch.device) -> None:
        self.shape, self._prompts, self._device = condition_shape(modality, name), prompts, device
        path, parts = locate(modality, name), components(modality, name)
        texts = {part: load_text_encoder(path, part, kind) for part, (_, kind) in parts.items() if part in TEXTS}
        pipeline = getattr(diffusers, family.pipeline)
        logging.getLogger(pipeline.__module__).setLevel(logging.ERROR)  # it reports each caption that it cuts
        given = {"vae": None, family.denoiser_part: _without_weights(path, family), **texts}
        left_out = [part for part in text_components(modality, name) if part not in parts]
        self._pipe = pipeline.from_pretrained(path, dtype=torch.float32, **given, **dict.fromkeys(left_out))
        self.models: dict[str, Any] = {
            part: getattr(self._pipe, part).to(device) for part in (*texts, *_projections(parts))
        }
        self.tokenizers: dict[str, Any] = {part: getattr(self._pipe, part) for part in TOKENIZERS if part in parts}
        for tokenizer in self.tokenizers.values():
            tokenizer.deprecation_warnings[_TOO_LONG] = True  # said already: captions are cut

    def prepare(self, captions: Sequence[str]) -> list[str]:
        """Captions as they are: the pipeline makes tokens of them."""
        return list(captions)

    def send(self, captions: Sequence[str]) -> list[str]:
        """Captions are on the device once they are tokens."""
        return list(captions)

    def embed(self, captions: Sequence[str]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
        """Conditions as one array each (N, R, D), and how many rows are each caption's own (N)."""
        rows_NRD = np.empty((len(captions), *self.shape.rows), np.float32)
        lengths_N = np.empty(len(captions), np.int32)
        for start in range(0, len(captions), PIECE):
            piece = list(captions[start : start + PIECE])
            condition = self._condition(self._encoded(piece))
            rows_NRD[start : start + PIECE] = to_rows(self.shape, condition).cpu().numpy()
            lengths_N[start : start + PIECE] = self._lengths(piece, condition)
        return rows_NRD, lengths_N

    def negative(self) -> npt.NDArray[np.float32]:
        """The condition of no caption (1, R, D), as the pipeline has it where none is given."""
        if self._prompts.zeros_if and getattr(self._pipe.config, self._prompts.zeros_if):
            return np.zeros((1, *self.shape.rows), np.float32)
        encoded = self._encoded([""], do_classifier_free_guidance=True)
        prefix = "negative_" if f"negative_{SEQUENCE}" in encoded else ""
        return to_rows(self.shape, self._condition(encoded, prefix)).cpu().numpy()

    def facts(self) -> list[Any]:
        """What the embeddings depend on beside the weights."""
        tokens = [_tokens(tokenizer) for tokenizer in self.tokenizers.values()]
        return [type(self._pipe).__name__, self.shape.rows, self.shape.length, self._extras(), tokens]

    @torch.inference_mode()
    def _encoded(self, captions: list[str], *, do_classifier_free_guidance: bool = False) -> Mapping[str, Tensor]:
        known = inspect.signature(self._pipe.encode_prompt).parameters
        given = {"do_classifier_free_guidance": do_classifier_free_guidance, "prompt_2": None, "prompt_3": None}
        arguments = {name: value for name, value in given.items() if name in known} | self._extras()
        encoded = self._pipe.encode_prompt(prompt=captions, device=self._device, **arguments)
        encoded = encoded if isinstance(encoded, tuple) else (encoded,)
        return dict(zip(self._prompts.returns, encoded, strict=True))

    def _extras(self) -> dict[str, Any]:
        extras: dict[str, Any] = {}
        if self._prompts.max_tokens:
            extras["max_sequence_length"] = self._prompts.max_tokens
        call = inspect.signature(type(self._pipe).__call__).parameters
        if _INSTRUCTION in call:
            extras[_INSTRUCTION] = call[_INSTRUCTION].default
        return extras

    def _condition(self, encoded: Mapping[str, Tensor], prefix: str = "") -> Condition:
        sequence_NLD = encoded[prefix + SEQUENCE].float()
        mask_NL, pooled_NP = encoded.get(prefix + MASK), encoded.get(prefix + POOLED)
        return Condition(
            sequence_NLD,
            None if mask_NL is None else mask_NL.bool(),
            sequence_NLD.new_zeros(len(sequence_NLD), 0) if pooled_NP is None else pooled_NP.float(),
        )

    def _lengths(self, captions: list[str], condition: Condition) -> npt.NDArray[np.int32]:
        if self._prompts.counted:
            tokenizer = self.tokenizers[self._prompts.counted]
            own = np.array([len(ids) for ids in tokenizer(captions).input_ids], np.int32)
        elif condition.mask_NL is not None:
            own = condition.mask_NL.sum(1).cpu().numpy().astype(np.int32)
        else:
            own = (condition.sequence_NLD != 0).any(-1).sum(1).cpu().numpy().astype(np.int32)
        return own.clip(max=self.shape.length) + np.int32(self.shape.pooled_rows)


def load_text_encoder(path: str, part: str, kind: str) -> Any:
    """Loads one text encoder of a pipeline in float32, frozen. Raises ValueError if weights are missing."""
    text_encoder, info = getattr(transformers, kind).from_pretrained(
        path, subfolder=part, dtype=torch.float32, output_loading_info=True
    )
    # transformers only warns, and continues with random values.
    if missing := sorted(info["missing_keys"] & dict(text_encoder.named_parameters()).keys()):
        raise ValueError(f"{path}/{part}: {len(missing)} weights are missing, first {missing[0]}; download again")
    return text_encoder.requires_grad_(False).eval()


def _projections(parts: Mapping[str, Any]) -> list[str]:
    return [part for part in ("projection_model",) if part in parts]


def _without_weights(path: str, family: Family) -> Any:
    """A pipeline's denoiser, of which some ask for the configuration when they are made."""
    kind = getattr(diffusers, family.denoiser)
    with torch.device("meta"):
        return kind.from_config(kind.load_config(path, subfolder=family.denoiser_part))


def _tokens(tokenizer: Any) -> list[Any]:
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    return [sorted(tokenizer.get_vocab().items()), special]
