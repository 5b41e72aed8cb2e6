"""The diffusion decoders of the three modalities, and their own text encoders, behind one interface.

Shape suffixes: N captions, L condition positions, D condition width.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import diffusers
import numpy as np
import numpy.typing as npt
import torch
import transformers
from torch import Tensor
from torch.nn.functional import normalize

from model.config import DecoderSettings
from model.families import (
    FAMILIES,
    Family,
    default_settings,
    has_safety_checker,
    is_full_size,
    latent_shape,
    locate,
)
from model.library_logs import quiet_libraries
from model.precision import Precision, use_bfloat16
from model.weights import weights_hash
from pipelines.sample import Audio, Decoded, Image, Modality, Video

VIDEO_FPS = 8.0  # what ZeroScope was trained on
WITHHELD = "withheld by the safety checker"
PIECE = 16  # captions of like length that a pooled encoder takes at once; more hold more padding


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionEmbeddings:
    """What the decoder's text encoder makes of N captions.

    `embeddings` is float32 (N, L, D). `lengths` is int32 (N,): how many of the L positions are the caption's own, begin
    and end token included; what follows is padding, which the decoder attends to all the same.
    """

    embeddings: npt.NDArray[np.float32]
    lengths: npt.NDArray[np.int32]


class NotFinite(ArithmeticError):
    """A medium came out as NaN or infinity."""


def _pixels(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    return (_finite(values).clip(0, 1) * 255).round().astype(np.uint8)


def _finite(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    # Clipped, NaN would be black or silence, and nobody would know.
    if not np.isfinite(values).all():
        raise NotFinite
    return values


def _images(pipe: Any, output: Any) -> list[Decoded]:
    withheld = output.nsfw_content_detected or [False] * len(output.images)  # None without a classifier
    return [
        Image(pixels=_pixels(pixels), note=WITHHELD if is_withheld else "")
        for pixels, is_withheld in zip(output.images, withheld, strict=True)
    ]


def _videos(pipe: Any, output: Any) -> list[Decoded]:
    return [Video(frames=_pixels(frames), fps=VIDEO_FPS) for frames in output.frames]


def _sounds(pipe: Any, output: Any) -> list[Decoded]:
    waveforms_NT = _finite(output.audios).clip(-1, 1).astype(np.float32)
    rate = int(pipe.vocoder.config.sampling_rate)
    return [Audio(waveform=waveform_T[None], sample_rate=rate) for waveform_T in waveforms_NT]


_DECODED: dict[Modality, Callable[[Any, Any], list[Decoded]]] = {
    Modality.IMAGE: _images,
    Modality.VIDEO: _videos,
    Modality.AUDIO: _sounds,
}


class _Steps:
    """What a pipeline takes for its progress bar."""

    def __init__(self, on_step: Callable[[int, int], None], total: int) -> None:
        self._on_step, self._total, self._done = on_step, total, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def update(self) -> None:
        self._done += 1
        self._on_step(self._done, self._total)


class TextEncoder:
    """The text encoder of a diffusion decoder, in float32, loaded without its UNet and VAE.

    `shape` is (L, D): (77, 768) for Stable Diffusion v1-5, (77, 1024) for ZeroScope, (1, 512) for AudioLDM. Raises
    FileNotFoundError where `name` (built-in part, directory or hub id) holds no diffusers pipeline, ValueError where
    it is another modality's or lacks weights.
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
        """Embeds captions as the pipeline's own `encode_prompt` does; longer ones are cut at the maximum length."""
        if not captions:
            return CaptionEmbeddings(embeddings=np.zeros((0, *self.shape), np.float32), lengths=np.zeros(0, np.int32))
        pooled = self._family.pooled
        tokens = self.tokenizer(
            list(captions),
            # A pooled vector does not depend on padding, so 512 positions of it would be wasted work.
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
    """A text encoder with an identity; `id` names it by its weights, tokenizer, maximum length and precision.

    bfloat16 is several times as fast where the device computes with it, and changes the numbers a little: cosine 0.9999
    or better with float32 a position. A pooled encoder stays in float32 all the same: its captions are short, and its
    one vector would lose more.
    """

    def __init__(
        self, modality: Modality, name: str, device: str | torch.device = "cpu", precision: Precision = "float32"
    ) -> None:
        super().__init__(modality, name, device)
        self.id = f"{readable(name)}-{self._hash()}"
        if precision == "bfloat16" and not self._family.pooled:
            use_bfloat16(self.text_encoder)
            self.id += "-bfloat16"

    def _hash(self) -> str:
        # Parameters only: which buffers a module keeps changes between versions of transformers.
        weights = weights_hash(dict(self.text_encoder.named_parameters()))
        vocab = sorted(self.tokenizer.get_vocab().items())
        special = [self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.tokenizer.pad_token_id]
        facts = json.dumps([weights, vocab, special, self._max_length, self._family.text_encoder])
        return hashlib.sha256(facts.encode()).hexdigest()[:12]


class Decoder:
    """A diffusion pipeline that renders conditions; it serves one thread at a time.

    `condition_shape` is (L, D). `settings` say its precision and whether a classifier watches it; a picture that this
    withholds is black, and its note says so. Raises
    FileNotFoundError and ValueError as `TextEncoder` does, and ValueError where it lacks the classifier.
    """

    def __init__(
        self,
        modality: Modality,
        name: str,
        device: str | torch.device = "cpu",
        settings: DecoderSettings = DecoderSettings(),  # noqa: B008  frozen
    ) -> None:
        self.modality, self.name = modality, name
        self._family = FAMILIES[modality]
        self._encoder = encoder = TextEncoder(modality, name, device)
        self.condition_shape = encoder.shape
        self._negative_NLD = encoder([""]).embeddings  # before the encoder loses digits
        dtype = _dtype(modality, name, torch.device(device), settings)
        path = locate(modality, name)
        with loading(path):
            self.pipe = getattr(diffusers, self._family.pipeline).from_pretrained(
                path,
                tokenizer=encoder.tokenizer,
                text_encoder=encoder.text_encoder.to(dtype),
                dtype=dtype,
                **_safety(modality, name, settings),
            )
        self.to(device)
        self.defaults = default_settings(modality, name)

    def to(self, device: str | torch.device) -> None:
        """Moves the weights; a GPU that they leave has their memory back."""
        is_leaving = self.pipe.device.type == "cuda" and torch.device(device).type != "cuda"
        # Not the pipeline's own: it would warn of half precision on the host, where nothing is rendered.
        for part in self.pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.to(device)
        if is_leaving:
            torch.cuda.empty_cache()  # a larger decoder does not fit into the pieces that a smaller one leaves

    @cached_property
    def id(self) -> str:
        """That of the `CaptionEncoder` of float32, which is loaded anew: only now, as rendering does not need it."""
        return CaptionEncoder(self.modality, self.name).id

    def for_another_thread(self) -> Self:
        """A decoder with the same weights that renders beside this one."""
        twin = copy(self)
        twin.pipe = copy(self.pipe)
        twin.pipe.scheduler = deepcopy(self.pipe.scheduler)  # it counts the steps
        return twin

    def embed(self, captions: Sequence[str]) -> npt.NDArray[np.float32]:
        """The conditions (N, L, D) that captions give by the decoder's own text encoder."""
        return self._encoder(captions).embeddings

    def generate(
        self,
        condition_LD: npt.NDArray[Any] | Tensor,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        **sizes: Any,
    ) -> Decoded:
        """Renders one condition: `generate_batch` of it alone."""
        [decoded] = self.generate_batch(torch.as_tensor(condition_LD)[None], [seed], steps, guidance, **sizes)
        return decoded

    def generate_batch(
        self,
        conditions_NLD: npt.NDArray[Any] | Tensor,
        seeds: Sequence[int],
        steps: int | None = None,
        guidance: float | None = None,
        on_step: Callable[[int, int], None] | None = None,
        **sizes: Any,
    ) -> list[Decoded]:
        """Renders conditions in one go, each from a seed of its own; on one machine equal calls give equal bytes.

        A medium does not depend on the others but in how sums are rounded. `sizes` overrides `defaults`: `height` and
        `width` in pixels, `num_frames`, or `audio_length_in_s` in seconds. `on_step` is told how many denoising steps
        are done, and of how many. Raises ValueError for a condition of another shape or a size this modality does not
        have.
        """
        settings = {**self.defaults, **sizes}
        if unknown := settings.keys() - self.defaults.keys():
            known = ", ".join(sorted(self.defaults))
            raise ValueError(f"{self.modality} has no setting {', '.join(sorted(unknown))}; it has {known}")
        if steps is not None:
            settings["num_inference_steps"] = steps
        if guidance is not None:
            settings["guidance_scale"] = guidance
        conditions_NLD = torch.as_tensor(conditions_NLD)
        if tuple(conditions_NLD.shape[1:]) != self.condition_shape:
            raise ValueError(
                f"{self.name}: the {self.modality} condition has shape {tuple(conditions_NLD.shape[1:])}, this decoder "
                f"takes {self.condition_shape}; use the output projection trained for it"
            )
        if not len(conditions_NLD):
            return []
        if not conditions_NLD.isfinite().all():
            raise ValueError(f"{self.name}: the {self.modality} condition holds NaN or infinity; check the checkpoint")
        negative_NLD = torch.from_numpy(self._negative_NLD).expand(len(conditions_NLD), -1, -1)
        self.pipe.progress_bar = partial(_Steps, on_step or (lambda done, total: None))
        # On the CPU, so that the noise does not depend on the device.
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        output = self.pipe(
            prompt_embeds=self._prompt_embeds(conditions_NLD),
            negative_prompt_embeds=self._prompt_embeds(negative_NLD),
            latents=self._noise(generators, settings),
            generator=generators,
            output_type="np",
            **settings,
        )
        try:
            return _DECODED[self.modality](self.pipe, output)
        except NotFinite:
            dtype = str(self.pipe.dtype).removeprefix("torch.")
            advice = "its weights are damaged" if dtype == "float32" else "set decoders.precision=float32"
            raise NotFinite(f"{self.name}: made NaN or infinity, no {self.modality}, in {dtype}; {advice}") from None

    def _noise(self, generators: Sequence[torch.Generator], settings: Mapping[str, Any]) -> Tensor:
        """The noise that each medium is made from, drawn in float32: the same in every precision."""
        sizes = {name: value for name, value in settings.items() if name in self.defaults}
        shape = latent_shape(self.modality, self.name, sizes)
        noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
        return noise.to(self.pipe.device, self.pipe.dtype)

    def _prompt_embeds(self, conditions_NLD: Tensor) -> Tensor:
        if self._family.pooled:
            # A pooled condition is a unit vector by nature; a projected one is so only nearly.
            conditions_NLD = normalize(conditions_NLD[:, 0].float(), dim=-1)
        return conditions_NLD.detach().to(self.pipe.device, self.pipe.dtype)


def _dtype(modality: Modality, name: str, device: torch.device, settings: DecoderSettings) -> torch.dtype:
    if settings.precision != "auto":
        return getattr(torch, settings.precision)
    # Our own small decoders gain nothing from it, and what they score was measured in float32.
    is_halved = device.type == "cuda" and is_full_size(modality, name)
    return torch.float16 if is_halved else torch.float32


def _safety(modality: Modality, name: str, settings: DecoderSettings) -> dict[str, Any]:
    """What tells a pipeline not to load the classifier of its pictures; nothing where it is wanted, or has none."""
    if not FAMILIES[modality].safety_checker:
        return {}
    if settings.safety_checker:
        if not has_safety_checker(modality, name):
            raise ValueError(
                f"{name}: has no safety checker; set decoders.safety_checker=false, or use another decoder"
            )
        return {}
    return {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def _load_text_encoder(family: Family, path: str) -> Any:
    text_encoder, info = getattr(transformers, family.text_encoder).from_pretrained(
        path, subfolder="text_encoder", dtype=torch.float32, output_loading_info=True
    )
    # transformers only warns, and goes on with random values.
    if missing := sorted(info["missing_keys"] & dict(text_encoder.named_parameters()).keys()):
        raise ValueError(f"{path}/text_encoder: {len(missing)} weights are missing, {missing[0]} first; fetch it anew")
    return text_encoder.requires_grad_(False).eval()


def _pieces(lengths_N: Tensor) -> Iterator[tuple[Tensor, int]]:
    """Row numbers of captions of like length, and the length of the longest of them; each row once."""
    for rows in torch.split(lengths_N.argsort(stable=True), PIECE):
        yield rows, int(lengths_N[rows[-1]])


def _max_length(tokenizer: Any, config: Any, family: Family) -> int:
    # RoBERTa numbers positions from the padding id on, so CLAP's 514 rows serve 512 tokens.
    unused = config.pad_token_id + 1 if family.pooled else 0
    return min(tokenizer.model_max_length, config.max_position_embeddings - unused)


def loading(path: str) -> Any:
    """Loads a part without idle lines; a download keeps its progress bar."""
    return quiet_libraries(keep_bars=not Path(path).is_dir())


def readable(name: str) -> str:
    """Makes a name fit for a directory: the last folder of a path, all of a hub id."""
    short = Path(name).resolve().name if Path(name).is_dir() else name.removeprefix("builtin:")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", short).strip("-.")
