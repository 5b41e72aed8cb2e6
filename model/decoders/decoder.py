"""The diffusion decoders of all modalities behind one interface.

Shape suffixes: N captions, L condition positions, D condition width.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import copy, deepcopy
from functools import cached_property, partial
from threading import Lock
from types import SimpleNamespace
from typing import Any, Self

import diffusers
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import normalize

from model.decoders.conditions import from_rows
from model.decoders.denoiser_calls import pack
from model.decoders.text_encoders import CaptionEncoder, TextEncoder, loading, negative_condition
from model.parts.config import DecoderSettings
from model.parts.families import (
    condition_shape,
    default_settings,
    family_of,
    has_safety_checker,
    is_full_size,
    latent_shape,
    locate,
    text_components,
)
from model.parts.family_table import FAMILIES, MASK, POOLED, SEQUENCE
from pipelines.sample import Audio, Decoded, Image, Modality, Video

WITHHELD = "withheld by the safety checker"


class NotFinite(ArithmeticError):
    """A medium came out as NaN or infinity."""


def _pixels(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    return (_finite(values).clip(0, 1) * 255).round().astype(np.uint8)


def _finite(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    # Clipped, NaN would pass unnoticed as black or silence.
    if not np.isfinite(values).all():
        raise NotFinite
    return values


def _images(pipe: Any, output: Any) -> list[Decoded]:
    # None without a classifier, and most pipelines can have none.
    withheld = getattr(output, "nsfw_content_detected", None) or [False] * len(output.images)
    return [
        Image(pixels=_pixels(pixels), note=WITHHELD if is_withheld else "")
        for pixels, is_withheld in zip(output.images, withheld, strict=True)
    ]


def _videos(pipe: Any, output: Any) -> list[Decoded]:
    return [Video(frames=_pixels(frames), fps=FAMILIES[type(pipe).__name__].fps) for frames in output.frames]


def _sounds(pipe: Any, output: Any) -> list[Decoded]:
    waveforms_NCT = _finite(output.audios).clip(-1, 1).astype(np.float32)
    if waveforms_NCT.ndim == 2:  # a vocoder's, of one channel
        waveforms_NCT = waveforms_NCT[:, None]
    rate = int((pipe.vocoder if hasattr(pipe, "vocoder") else pipe.vae).config.sampling_rate)
    return [Audio(waveform=waveform_CT, sample_rate=rate) for waveform_CT in waveforms_NCT]


_DECODED: dict[Modality, Callable[[Any, Any], list[Decoded]]] = {
    Modality.IMAGE: _images,
    Modality.VIDEO: _videos,
    Modality.AUDIO: _sounds,
}


class _Steps:
    """Stands in for a pipeline's progress bar, and reports steps."""

    def __init__(self, on_step: Callable[[int, int], None], total: int) -> None:
        self._on_step, self._total, self._done = on_step, total, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def update(self) -> None:
        self._done += 1
        self._on_step(self._done, self._total)


class _Texts:
    """A decoder's text encoders, loaded on first use and then kept; all threads share them."""

    def __init__(self, modality: Modality, name: str) -> None:
        self._modality, self._name = modality, name
        self._encoder: TextEncoder | None = None
        self._device, self._lock = torch.device("cpu"), Lock()

    def embed(self, captions: Sequence[str], device: torch.device, dtype: torch.dtype) -> npt.NDArray[np.float32]:
        with self._lock:
            if self._encoder is None:
                self._encoder, self._device = TextEncoder(self._modality, self._name, device), device
                self._encoder.to_dtype(dtype)
            return self._encoder(captions).embeddings

    def leave(self, device: torch.device | str) -> None:
        """Gives up what is on another device than the decoder will be."""
        if self._device.type != torch.device(device).type:
            self._encoder, self._device = None, torch.device(device)


class Decoder:
    """A diffusion pipeline that renders conditions; not thread-safe.

    `condition_shape` is (L, D). Text encoders are loaded by the first call of `embed`, and, for the condition of no
    caption, by the first decoder of a machine, see `negative_condition`. `settings` give the precision and whether the
    safety checker runs; an image that it withholds is black and has a note. Raises FileNotFoundError and ValueError as
    `TextEncoder` does, and ValueError if a requested safety checker is missing.
    """

    def __init__(
        self,
        modality: Modality,
        name: str,
        device: str | torch.device = "cpu",
        settings: DecoderSettings = DecoderSettings(),  # noqa: B008  frozen
    ) -> None:
        self.modality, self.name = modality, name
        self._family = family_of(modality, name)
        self._shape = condition_shape(modality, name)
        self.condition_shape = self._shape.rows
        dtype = _dtype(modality, name, torch.device(device), settings)
        unwanted = _safety(modality, name, settings)
        self._negative_NLD = self._negative(device)
        path = locate(modality, name)
        with loading(path):
            self.pipe = getattr(diffusers, self._family.pipeline).from_pretrained(
                path, dtype=dtype, **dict.fromkeys(text_components(modality, name)), **unwanted
            )
        if "projection_model" in self.pipe.components:
            self.pipe.projection_model.text_projection = torch.nn.Identity()  # conditions are what it gives
        self._texts = _Texts(modality, name)
        if self._family.pooled:
            self.pipe.text_encoder = SimpleNamespace(dtype=dtype)  # AudioLDM's is asked for its type
        self.to(device)
        self.defaults = default_settings(modality, name)

    def to(self, device: str | torch.device) -> None:
        """Moves the weights; a GPU that they leave gets its memory back."""
        self._texts.leave(device)
        is_leaving = self.pipe.device.type == "cuda" and torch.device(device).type != "cuda"
        # Not the pipeline's own `to`, which warns about half precision on the CPU, where nothing is rendered.
        for part in self.pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.to(device)
        if is_leaving:
            torch.cuda.empty_cache()  # fragments left by a smaller decoder are of no use to a larger one

    @cached_property
    def id(self) -> str:
        """The id of the float32 `CaptionEncoder`, which is loaded on first use, since rendering does not need it."""
        return CaptionEncoder(self.modality, self.name).id

    def for_another_thread(self) -> Self:
        """A decoder that shares the weights, for use in another thread."""
        twin = copy(self)
        twin.pipe = copy(self.pipe)
        twin.pipe.scheduler = deepcopy(self.pipe.scheduler)  # it keeps the step count
        return twin

    def embed(self, captions: Sequence[str]) -> npt.NDArray[np.float32]:
        """Embeds captions with the decoder's own text encoders, loaded on first use: (N, L, D)."""
        return self._texts.embed(captions, self.pipe.device, self.pipe.dtype)

    def generate(
        self,
        condition_LD: npt.NDArray[Any] | Tensor,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        **sizes: Any,
    ) -> Decoded:
        """Renders one condition: `generate_batch` with a batch of one."""
        [decoded] = self.generate_batch(torch.as_tensor(condition_LD)[None], [seed], steps, guidance, **sizes)
        return decoded

    def generate_batch(
        self,
        conditions_NLD: npt.NDArray[Any] | Tensor,
        seeds: Sequence[int],
        steps: int | None = None,
        guidance: float | None = None,
        on_step: Callable[[int, int], None] | None = None,
        negative: npt.NDArray[Any] | Tensor | None = None,
        **sizes: Any,
    ) -> list[Decoded]:
        """Renders conditions as one batch, each from its own seed; on one machine equal calls give equal bytes.

        An item depends on the rest of the batch only by rounding. `sizes` overrides `defaults`: `height` and `width` in
        pixels, `num_frames`, or `audio_length_in_s` in seconds. `on_step` receives the number of finished denoising
        steps and their total. `negative` (L, D) takes the place of the embedding of an empty text in classifier-free
        guidance. Raises ValueError for a condition of the wrong shape or a size this modality lacks.
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
                f"{self.name}: the {self.modality} condition has shape {tuple(conditions_NLD.shape[1:])}, but the "
                f"decoder takes {self.condition_shape}; use the output projection trained for it"
            )
        if not len(conditions_NLD):
            return []
        if not conditions_NLD.isfinite().all():
            raise ValueError(f"{self.name}: the {self.modality} condition contains NaN or inf; check the checkpoint")
        self.pipe.progress_bar = partial(_Steps, on_step or (lambda done, total: None))
        # On the CPU, so that the noise does not depend on the device.
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        output = self.pipe(
            **self._told(conditions_NLD, negative),
            latents=self._noise(generators, settings),
            generator=generators,
            output_type="np",
            **{self._family.names.get(name, name): value for name, value in settings.items()},
            **self._family.fixed,
        )
        try:
            return _DECODED[self.modality](self.pipe, output)
        except NotFinite:
            dtype = str(self.pipe.dtype).removeprefix("torch.")
            advice = "its weights are damaged" if dtype == "float32" else "set decoders.precision=float32"
            raise NotFinite(f"{self.name}: {self.modality} came out as NaN or infinity in {dtype}; {advice}") from None

    def _noise(self, generators: Sequence[torch.Generator], settings: Mapping[str, Any]) -> Tensor:
        """The initial noise of each item, drawn in float32: the same in every precision."""
        sizes = {name: value for name, value in settings.items() if name in self.defaults}
        shape = latent_shape(self.modality, self.name, sizes)
        noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
        noise = pack(self._family, noise, getattr(self.pipe, self._family.denoiser_part).config)
        return noise.to(self.pipe.device, self.pipe.dtype)

    def _negative(self, device: str | torch.device) -> npt.NDArray[np.float32]:
        """The condition of no caption (1, L, D)."""
        if not self._family.has_negative:
            return np.zeros((1, *self.condition_shape), np.float32)
        return negative_condition(self.modality, self.name, device)

    def _told(self, conditions_NLD: Tensor, negative: npt.NDArray[Any] | Tensor | None) -> dict[str, Tensor]:
        """A batch of conditions, and that of no caption or the one given, as the pipeline takes them."""
        told = self._arguments(conditions_NLD)
        if self._family.has_negative:
            negative_1LD = self._negative_NLD if negative is None else negative[None]
            negative_NLD = torch.as_tensor(negative_1LD).expand(len(conditions_NLD), -1, -1)
            told |= {f"negative_{name}": value for name, value in self._arguments(negative_NLD).items()}
        return told

    def _arguments(self, conditions_NLD: Tensor) -> dict[str, Tensor]:
        condition = from_rows(self._shape, conditions_NLD.detach().float())
        if self._family.pooled:
            # A pooled condition is a unit vector; a projected one only approximately.
            return {SEQUENCE: self._placed(normalize(condition.pooled_NP, dim=-1))}
        arguments = {SEQUENCE: self._placed(condition.sequence_NLD)}
        if self._shape.pooled:
            arguments[POOLED] = self._placed(condition.pooled_NP)
        if condition.mask_NL is not None:
            arguments[MASK] = condition.mask_NL.to(self.pipe.device)
        return arguments

    def _placed(self, values: Tensor) -> Tensor:
        return values.to(self.pipe.device, self.pipe.dtype)


def _dtype(modality: Modality, name: str, device: torch.device, settings: DecoderSettings) -> torch.dtype:
    if settings.precision != "auto":
        return getattr(torch, settings.precision)
    # Our own small decoders gain nothing from float16, and their scores were measured in float32.
    if device.type != "cuda" or not is_full_size(modality, name):
        return torch.float32
    # Transformers are published in bfloat16; some leave float16's range.
    return torch.float16 if family_of(modality, name).denoiser_part == "unet" else torch.bfloat16


def _safety(modality: Modality, name: str, settings: DecoderSettings) -> dict[str, Any]:
    """Arguments that keep a pipeline from loading its safety checker; empty if it is wanted, or there is none."""
    if not family_of(modality, name).safety_checker:
        return {}
    if settings.safety_checker:
        if not has_safety_checker(modality, name):
            raise ValueError(
                f"{name}: has no safety checker; set decoders.safety_checker=false, or use another decoder"
            )
        return {}
    return {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
