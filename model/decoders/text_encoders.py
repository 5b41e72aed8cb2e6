"""The text encoders of the diffusion decoders, which produce the alignment targets.

Shape suffixes: N captions, L condition positions, D condition width.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import normalize

from model.parts.families import FAMILIES, Family, locate
from model.parts.library_logs import quiet_libraries
from model.parts.weights import weights_hash
from pipelines.sample import Modality

PIECE = 16  # batch size of a pooled encoder, with captions sorted by length; larger batches have more padding
Precision = Literal["float32", "bfloat16"]  # of matrix products; accumulations are in float32
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")


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
            self.tokenizer = getattr(transformers, self._family.tokenizer).from_pretrained(path, subfolder="tokenizer")
            self.text_encoder = _load_text_encoder(self._family, path).to(device)
        config = self.text_encoder.config
        self._max_length = _max_length(self.tokenizer, config, self._family)
        self._masked = getattr(config, "use_attention_mask", self._family.pooled)
        self.shape = (1, config.projection_dim) if self._family.pooled else (self._max_length, config.hidden_size)

    @torch.inference_mode()
    def __call__(self, captions: Sequence[str]) -> CaptionEmbeddings:
        """Embeds captions as the pipeline's own `encode_prompt` does; long ones are truncated to the maximum length."""
        if not captions:
            return CaptionEmbeddings(embeddings=np.zeros((0, *self.shape), np.float32), lengths=np.zeros(0, np.int32))
        pooled = self._family.pooled
        tokens = self.tokenizer(
            list(captions),
            # A pooled vector does not depend on padding, so padding to 512 positions would be wasted.
            padding="longest" if pooled else "max_length",
            max_length=self._max_length,
            truncation=True,
            return_tensors="pt",
        )
        lengths_N = tokens.attention_mask.sum(dim=1)
        embeddings_NLD = np.empty((len(captions), *self.shape), np.float32)
        for rows, width in _pieces(lengths_N) if pooled else [(slice(None), self._max_length)]:
            piece = self._embed(tokens.input_ids[rows, :width], tokens.attention_mask[rows, :width])
            embeddings_NLD[rows] = piece.cpu().numpy()
        lengths = np.ones(len(captions)) if pooled else lengths_N.numpy()
        return CaptionEmbeddings(embeddings=embeddings_NLD, lengths=lengths.astype(np.int32))

    def _embed(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        device = self.text_encoder.device
        output = self.text_encoder(
            input_ids.to(device), attention_mask=attention_mask.to(device) if self._masked else None
        )
        if self._family.pooled:
            return normalize(output.text_embeds.float(), dim=-1)[:, None]
        return output.last_hidden_state.float()


class CaptionEncoder(TextEncoder):
    """A text encoder with an `id`, derived from its weights, tokenizer, maximum length and precision.

    bfloat16 is several times as fast on devices that support it, at a cosine similarity to float32 of at least 0.9999
    per position. Pooled encoders always run in float32: captions are short, and the single vector would lose more.
    """

    def __init__(
        self, modality: Modality, name: str, device: str | torch.device = "cpu", precision: Precision = "float32"
    ) -> None:
        super().__init__(modality, name, device)
        self.id = f"{readable(name)}-{self._hash()}"
        if precision == "bfloat16" and not self._family.pooled:
            _use_bfloat16(self.text_encoder)
            self.id += "-bfloat16"

    def _hash(self) -> str:
        # Parameters only: a module's buffers differ between versions of transformers.
        weights = weights_hash(dict(self.text_encoder.named_parameters()))
        vocab = sorted(self.tokenizer.get_vocab().items())
        special = [self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.tokenizer.pad_token_id]
        facts = json.dumps([weights, vocab, special, self._max_length, self._family.text_encoder])
        return hashlib.sha256(facts.encode()).hexdigest()[:12]


def _load_text_encoder(family: Family, path: str) -> Any:
    text_encoder, info = getattr(transformers, family.text_encoder).from_pretrained(
        path, subfolder="text_encoder", dtype=torch.float32, output_loading_info=True
    )
    # transformers only warns, and continues with random values.
    if missing := sorted(info["missing_keys"] & dict(text_encoder.named_parameters()).keys()):
        raise ValueError(f"{path}/text_encoder: {len(missing)} weights are missing, first {missing[0]}; download again")
    return text_encoder.requires_grad_(False).eval()


def _pieces(lengths_N: Tensor) -> Iterator[tuple[Tensor, int]]:
    """Batches of row numbers, sorted by caption length, each with the length of its longest caption."""
    for rows in torch.split(lengths_N.argsort(stable=True), PIECE):
        yield rows, int(lengths_N[rows[-1]])


def _max_length(tokenizer: Any, config: Any, family: Family) -> int:
    # RoBERTa numbers positions from the padding id onwards, so CLAP's 514 rows serve 512 tokens.
    unused = config.pad_token_id + 1 if family.pooled else 0
    return min(tokenizer.model_max_length, config.max_position_embeddings - unused)


def loading(path: str) -> Any:
    """A context for loading a part without noise in the log; downloads keep their progress bars."""
    return quiet_libraries(keep_bars=not Path(path).is_dir())


def readable(name: str) -> str:
    """Turns a name into a valid directory name: the last folder of a path, or the whole hub id."""
    short = Path(name).resolve().name if Path(name).is_dir() else name.removeprefix("builtin:")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", short).strip("-.")


def _use_bfloat16(model: nn.Module) -> None:
    """Casts the linear layers of a frozen float32 model to bfloat16, in place.

    Embeddings, layer norms and the residual stream stay in float32: in bfloat16 the rounding errors of the residual
    stream would accumulate over layers, for no gain in speed. Autocast would recast the weights on every call.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.to(torch.bfloat16)
            module.register_forward_pre_hook(_halve)


def _halve(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (inputs[0].to(torch.bfloat16), *inputs[1:])
