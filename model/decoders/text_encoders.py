"""The text encoders of the diffusion decoders, which produce the alignment targets.

Shape suffixes: N captions, L condition positions, D condition width.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from torch import Tensor
from torch.nn.functional import normalize

from model.decoders.tokens import CaptionTokens
from model.parts.devices import Sender, Sent
from model.parts.families import FAMILIES, Family, locate
from model.parts.library_logs import quiet_libraries
from model.parts.mixed_precision import Precision, use_bfloat16
from model.parts.weights import weights_hash
from pipelines.sample import Modality

PIECE = 16  # batch size of a pooled encoder, with captions sorted by length; larger batches have more padding
Rows = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionEmbeddings:
    """N captions, embedded by the decoder's text encoder.

    `embeddings` is float32 (N, L, D). `lengths` is int32 (N,): the number of positions of the caption, begin and end
    token included; the rest is padding, which the decoder attends to as well.
    """

    embeddings: npt.NDArray[np.float32]
    lengths: npt.NDArray[np.int32]


class TextEncoder:
    """The float32 text encoder of a diffusion decoder, loaded without its UNet and VAE.

    `shape` is (L, D): (77, 768) for Stable Diffusion v1-5, (77, 1024) for ZeroScope, (1, 512) for AudioLDM. Raises
    FileNotFoundError if `name` (built-in part, directory or hub id) is no diffusers pipeline, ValueError if it belongs
    to another modality or lacks weights.
    """

    def __init__(self, modality: Modality, name: str, device: str | torch.device = "cpu") -> None:
        self.modality = modality
        self._family = FAMILIES[modality]
        path = locate(modality, name)
        with loading(path):
            self.prepare = CaptionTokens(modality, name)
            self.text_encoder = _load_text_encoder(self._family, path).to(device)
        config = self.text_encoder.config
        self._masked = getattr(config, "use_attention_mask", self._family.pooled)
        self._sender = Sender(torch.device(device))
        pooled = self._family.pooled
        self.shape = (1, config.projection_dim) if pooled else (self.prepare.max_length, config.hidden_size)

    @property
    def tokenizer(self) -> Any:
        """The decoder's own tokenizer."""
        return self.prepare.tokenizer

    def __call__(self, captions: Sequence[str]) -> CaptionEmbeddings:
        """Embeds captions as the pipeline's own `encode_prompt` does; long ones are truncated to the maximum length."""
        return self.embed(self.send(self.prepare(captions)))

    def send(self, inputs: Sequence[npt.NDArray[Any]]) -> tuple[npt.NDArray[np.int32], list[Rows], Sent]:
        """Begins to move the ids of captions to the device, padded; with their lengths, and which go together."""
        lengths = np.array([len(ids) for ids in inputs], np.int32)
        # A pooled vector does not depend on padding, so padding to 512 positions would be wasted.
        rows = _pieces(lengths) if self._family.pooled else [np.arange(len(inputs))] if len(inputs) else []
        return lengths, rows, self._sender.send([self._padded([inputs[row] for row in piece]) for piece in rows])

    @torch.inference_mode()
    def embed(self, sent: tuple[npt.NDArray[np.int32], list[Rows], Sent]) -> CaptionEmbeddings:
        """Embeds what was sent, in order."""
        lengths, rows, ids = sent
        embeddings_NLD = np.empty((len(lengths), *self.shape), np.float32)
        for piece, input_ids in zip(rows, ids.take(), strict=True):
            embeddings_NLD[piece] = self._embed(input_ids, lengths[piece]).cpu().numpy()
        return CaptionEmbeddings(
            embeddings=embeddings_NLD, lengths=np.ones_like(lengths) if self._family.pooled else lengths
        )

    def _padded(self, inputs: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.int64]:
        width = max(map(len, inputs)) if self._family.pooled else self.prepare.max_length
        ids_NL = np.full((len(inputs), width), self.tokenizer.pad_token_id, np.int64)
        for row, ids in zip(ids_NL, inputs, strict=True):
            row[: len(ids)] = ids
        return ids_NL

    def _embed(self, input_ids: Tensor, lengths: npt.NDArray[np.int32]) -> Tensor:
        mask_NL = None
        if self._masked:
            places_L = torch.arange(input_ids.shape[1], device=input_ids.device)
            mask_NL = (places_L < torch.from_numpy(lengths).to(input_ids.device)[:, None]).long()
        output = self.text_encoder(input_ids, attention_mask=mask_NL)
        if self._family.pooled:
            return normalize(output.text_embeds.float(), dim=-1)[:, None]
        return output.last_hidden_state.float()


class CaptionEncoder(TextEncoder):
    """A text encoder with an `id`, derived from its weights, tokenizer, maximum length and precision.

    bfloat16 is several times as fast on devices that support it, at a cosine similarity to float32 of at least 0.9999
    per position.
    """

    def __init__(
        self, modality: Modality, name: str, device: str | torch.device = "cpu", precision: Precision = "float32"
    ) -> None:
        super().__init__(modality, name, device)
        self.id = f"{readable(name)}-{self._hash()}"
        if precision == "bfloat16":
            use_bfloat16(self.text_encoder)
            self.id += "-bfloat16"

    def _hash(self) -> str:
        # Parameters only: a module's buffers differ between versions of transformers.
        weights = weights_hash(dict(self.text_encoder.named_parameters()))
        vocab = sorted(self.tokenizer.get_vocab().items())
        special = [self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.tokenizer.pad_token_id]
        facts = json.dumps([weights, vocab, special, self.prepare.max_length, self._family.text_encoder])
        return hashlib.sha256(facts.encode()).hexdigest()[:12]


def _load_text_encoder(family: Family, path: str) -> Any:
    text_encoder, info = getattr(transformers, family.text_encoder).from_pretrained(
        path, subfolder="text_encoder", dtype=torch.float32, output_loading_info=True
    )
    # transformers only warns, and continues with random values.
    if missing := sorted(info["missing_keys"] & dict(text_encoder.named_parameters()).keys()):
        raise ValueError(f"{path}/text_encoder: {len(missing)} weights are missing, first {missing[0]}; download again")
    return text_encoder.requires_grad_(False).eval()


def _pieces(lengths: npt.NDArray[np.int32]) -> list[Rows]:
    """Batches of row numbers, sorted by caption length."""
    ordered = np.argsort(lengths, kind="stable")
    return [ordered[start : start + PIECE] for start in range(0, len(ordered), PIECE)]


def loading(path: str) -> Any:
    """A context for loading a part without noise in the log; downloads keep their progress bars."""
    return quiet_libraries(keep_bars=not Path(path).is_dir())


def readable(name: str) -> str:
    """Turns a name into a valid directory name: the last folder of a path, or the whole hub id."""
    short = Path(name).resolve().name if Path(name).is_dir() else name.removeprefix("builtin:")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", short).strip("-.")
