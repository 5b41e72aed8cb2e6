"""The text encoders of the diffusion decoders, which produce the alignment targets.

Shape suffixes: N captions, L condition positions, D condition width.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import normalize

from model.decoders.prompts import PIECE, PromptTexts, load_text_encoder
from model.decoders.tokens import CaptionTokens
from model.parts.builtin import cache_root
from model.parts.devices import Sender, Sent, give_back_memory
from model.parts.families import caption_shape, condition_shape, family_of, locate, text_files
from model.parts.family_table import ConditionShape, Family
from model.parts.library_logs import quiet_libraries
from model.parts.mixed_precision import Precision, use_bfloat16
from model.parts.weights import weights_hash
from pipelines.sample import Modality
from pipelines.storage.files import atomic_path, stamp

Rows = npt.NDArray[np.intp]
_NEGATIVE = 1  # raised when what is kept of a decoder's negative condition changes


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionEmbeddings:
    """N captions, embedded by the decoder's text encoder.

    `embeddings` is float32 (N, L, D). `lengths` is int32 (N,): the number of positions of the caption, begin and end
    token included; the rest is padding, to which most decoders attend as well.
    """

    embeddings: npt.NDArray[np.float32]
    lengths: npt.NDArray[np.int32]


class Texts(Protocol):
    """The text encoders of a pipeline, by name, with their tokenizers; see `TextEncoder` for what they do."""

    shape: ConditionShape
    models: dict[str, Any]
    tokenizers: dict[str, Any]

    def prepare(self, captions: Sequence[str], /) -> Sequence[Any]: ...  # noqa: D102  as said there
    def send(self, inputs: Sequence[Any], /) -> Any: ...  # noqa: D102
    def embed(self, sent: Any, /) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]: ...  # noqa: D102
    def negative(self) -> npt.NDArray[np.float32]: ...  # noqa: D102
    def facts(self) -> list[Any]: ...  # noqa: D102


class TokenTexts:
    """The one text encoder of a pipeline, which takes ids: those of `CaptionTokens`, made on any CPU.

    In pieces of like length where the condition is a pooled vector, which does not depend on padding.
    """

    def __init__(self, modality: Modality, name: str, family: Family, device: torch.device) -> None:
        self._tokens = CaptionTokens(modality, name)
        text_encoder = load_text_encoder(locate(modality, name), "text_encoder", family.text_encoder)
        self._text_encoder, self._family = text_encoder.to(device), family
        self.models: dict[str, Any] = {"text_encoder": self._text_encoder}
        self.tokenizers: dict[str, Any] = {"tokenizer": self._tokens.tokenizer}
        self.shape = condition_shape(modality, name)
        self._masked = getattr(text_encoder.config, "use_attention_mask", family.pooled)
        self._sender = Sender(device)

    def prepare(self, captions: Sequence[str]) -> list[npt.NDArray[Any]]:
        """The ids of each caption."""
        return self._tokens(captions)

    def send(self, inputs: Sequence[npt.NDArray[Any]]) -> tuple[npt.NDArray[np.int32], list[Rows], Sent]:
        """Begins to move the ids of captions to the device, padded; with their lengths, and which go together."""
        lengths = np.array([len(ids) for ids in inputs], np.int32)
        # Padding a pooled encoder's captions to 512 positions would be wasted.
        rows = _pieces(lengths) if self._family.pooled else [np.arange(len(inputs))] if len(inputs) else []
        return lengths, rows, self._sender.send([self._padded([inputs[row] for row in piece]) for piece in rows])

    def embed(
        self, sent: tuple[npt.NDArray[np.int32], list[Rows], Sent]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
        """Conditions as one array each (N, L, D), in order, and how many positions are each caption's own (N)."""
        lengths, rows, ids = sent
        embeddings_NLD = np.empty((len(lengths), *self.shape.rows), np.float32)
        for piece, input_ids in zip(rows, ids.take(), strict=True):
            embeddings_NLD[piece] = self._embed(input_ids, lengths[piece]).cpu().numpy()
        return embeddings_NLD, np.ones_like(lengths) if self._family.pooled else lengths

    def negative(self) -> npt.NDArray[np.float32]:
        """The condition of no caption (1, L, D)."""
        return self.embed(self.send(self.prepare([""])))[0]

    def facts(self) -> list[Any]:
        """What the embeddings depend on beside the weights."""
        tokenizer = self._tokens.tokenizer
        special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
        return [sorted(tokenizer.get_vocab().items()), special, self._tokens.max_length, self._family.text_encoder]

    def _padded(self, inputs: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.int64]:
        width = max(map(len, inputs)) if self._family.pooled else self._tokens.max_length
        ids_NL = np.full((len(inputs), width), self._tokens.tokenizer.pad_token_id, np.int64)
        for row, ids in zip(ids_NL, inputs, strict=True):
            row[: len(ids)] = ids
        return ids_NL

    @torch.inference_mode()
    def _embed(self, input_ids: Tensor, lengths: npt.NDArray[np.int32]) -> Tensor:
        mask_NL = None
        if self._masked:
            places_L = torch.arange(input_ids.shape[1], device=input_ids.device)
            mask_NL = (places_L < torch.from_numpy(lengths).to(input_ids.device)[:, None]).long()
        output = self._text_encoder(input_ids, attention_mask=mask_NL)
        if self._family.pooled:
            return normalize(output.text_embeds.float(), dim=-1)[:, None]
        return output.last_hidden_state.float()


class TextEncoder:
    """The float32 text encoders of a diffusion decoder, loaded without its denoiser and VAE.

    `shape` is (L, D): (77, 768) for Stable Diffusion v1-5, (77, 1024) for ZeroScope, (1, 512) for AudioLDM. Raises
    FileNotFoundError if `name` (built-in part, directory or hub id) is no diffusers pipeline, ValueError if it belongs
    to another modality or lacks weights.
    """

    def __init__(self, modality: Modality, name: str, device: str | torch.device = "cpu") -> None:
        self.modality = modality
        with loading(locate(modality, name)):
            self._texts = _load(modality, name, torch.device(device))
        self.shape = self._texts.shape.rows
        self.prepare, self.send = self._texts.prepare, self._texts.send

    @property
    def tokenizer(self) -> Any:
        """The decoder's own tokenizer, the first where it has several."""
        return next(iter(self._texts.tokenizers.values()))

    @property
    def text_encoder(self) -> Any:
        """The decoder's own text encoder, the first where it has several."""
        return next(iter(self._texts.models.values()))

    def __call__(self, captions: Sequence[str]) -> CaptionEmbeddings:
        """Embeds captions as the pipeline's own `encode_prompt` does; long ones are truncated to the maximum length."""
        return self.embed(self.send(self.prepare(captions)))

    def embed(self, sent: Any) -> CaptionEmbeddings:
        """Embeds what was sent, in order."""
        embeddings, lengths = self._texts.embed(sent)
        return CaptionEmbeddings(embeddings=embeddings, lengths=lengths)

    def negative(self) -> npt.NDArray[np.float32]:
        """The condition of no caption (1, L, D), from which guidance leads away."""
        return self._texts.negative()

    def to_dtype(self, dtype: torch.dtype) -> None:
        """Rounds the weights."""
        for model in self._texts.models.values():
            model.to(dtype)


def _load(modality: Modality, name: str, device: torch.device) -> Texts:
    family = family_of(modality, name)
    if family.prompts:
        return PromptTexts(modality, name, family, family.prompts, device)
    return TokenTexts(modality, name, family, device)


def negative_condition(modality: Modality, name: str, device: str | torch.device = "cpu") -> npt.NDArray[np.float32]:
    """The condition of no caption (1, L, D), kept in the user's cache: only where it is not is a text encoder loaded.

    It is freed again. Raises as `TextEncoder` does.
    """
    kept = _kept_negative(modality, name, torch.device(device))
    with suppress(OSError, ValueError, EOFError):
        found = np.load(kept, allow_pickle=False) if kept else None
        if found is not None and found.shape == (1, *caption_shape(modality, name)):
            return np.asarray(found, np.float32)
    negative = TextEncoder(modality, name, device).negative()
    give_back_memory()
    kept = _kept_negative(modality, name, torch.device(device))  # a repository's files may have come only now
    if kept:
        with suppress(OSError), atomic_path(kept) as temporary, temporary.open("wb") as file:
            np.save(file, negative, allow_pickle=False)
    return negative


def _kept_negative(modality: Modality, name: str, device: torch.device) -> Path | None:
    """The file of a decoder's condition of no caption, another one whenever that may be another; no file is opened."""
    files = text_files(modality, name)
    if not files:
        return None
    versions = [version(library) for library in ("torch", "transformers", "diffusers", "tokenizers")]
    facts = [_NEGATIVE, device.type, versions, {str(path): stamp(path) for path in files}]
    return cache_root() / "negatives" / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]}.npy"


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
            for model in self._texts.models.values():
                use_bfloat16(model)
            self.id += "-bfloat16"

    def _hash(self) -> str:
        # Parameters only: a module's buffers differ between versions of transformers.
        weights = [weights_hash(dict(model.named_parameters())) for model in self._texts.models.values()]
        facts = json.dumps([*weights, *self._texts.facts()])
        return hashlib.sha256(facts.encode()).hexdigest()[:12]


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
