"""The denoising loss: how well a decoder's frozen denoiser does, given a projected condition.

Suffixes: K items of a modality that have latents, L and D length and width of a condition.
"""

from math import prod
from typing import Any

import diffusers
import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from model.decoders.conditions import from_rows
from model.decoders.denoiser_calls import Denoising, call_denoiser
from model.decoders.noise import load_noise
from model.decoders.text_encoders import loading
from model.parts.families import components, condition_shape, denoising_sizes, family_of, latent_shape, locate
from pipelines.sample import Modality


class Denoiser:
    """A decoder's frozen UNet or transformer, `unet`, and its noise schedule; gradients flow to the conditions only.

    `condition_shape` (L, D) and `latent_shape` are of one item. `gradient_checkpointing` trades time for memory in
    denoisers that support it (diffusers' UNet3D does not). Raises FileNotFoundError and ValueError as `CaptionEncoder`
    does, and ValueError for a scheduler that no loss is known for.
    """

    def __init__(
        self,
        modality: Modality,
        name: str,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        gradient_checkpointing: bool = False,
    ) -> None:
        self.modality, self.name = modality, name
        self._family, self._shape = family_of(modality, name), condition_shape(modality, name)
        self.condition_shape, self.latent_shape = self._shape.rows, latent_shape(modality, name)
        path = locate(modality, name)
        parts = components(modality, name)
        with loading(path):
            unet = self._load_part(path, self._family.denoiser_part, self._family.denoiser, dtype)
            projection = None
            if "projection_model" in parts:
                projection = self._load_part(path, "projection_model", parts["projection_model"][1], dtype).to(device)
            num_tokens = prod(self.latent_shape[1:]) // self._family.packing**2
            self._noise = load_noise(modality, name, path, num_tokens)
        self.unet = unet.requires_grad_(False).eval().to(device)
        self._calling = Denoising(self._family, unet, projection, denoising_sizes(modality, name))
        if gradient_checkpointing and unet._supports_gradient_checkpointing:
            unet.enable_gradient_checkpointing()

    @property
    def scheduler(self) -> Any:
        """The scheduler whose noise it is trained with."""
        return self._noise.scheduler

    def _load_part(self, path: str, part: str, kind: str, dtype: torch.dtype) -> Any:
        return getattr(diffusers, kind).from_pretrained(path, subfolder=part, torch_dtype=dtype)

    def __call__(self, conditions_KLD: Tensor, latents: Tensor, generator: torch.Generator) -> Tensor:
        """The sum over K items of the mean squared error, in float32.

        `latents` (K, ...) are clean and scaled as the VAE's are. Timesteps and noise are drawn on the CPU from
        `generator`, so they do not depend on the device; the target is what the pipeline's scheduler takes the
        denoiser's output for, see `noise`. Raises ValueError if conditions or latents have the wrong shape.
        """
        self._check(conditions_KLD, latents)
        num_items, device = len(latents), latents.device
        steps_K = torch.randint(self._noise.num_steps, (num_items,), generator=generator).to(device)
        noise = torch.randn(latents.shape, generator=generator).to(device)
        noised = self._noise(latents, noise, steps_K)
        condition = from_rows(self._shape, conditions_KLD)
        predicted = call_denoiser(self._calling, noised.latents.to(self.unet.dtype), noised.timesteps_K, condition)
        errors = mse_loss(predicted.float(), noised.target, reduction="none")
        return errors.flatten(1).mean(1).sum()

    def _check(self, conditions_KLD: Tensor, latents: Tensor) -> None:
        for what, given, wanted in (
            ("conditions", conditions_KLD.shape[1:], self.condition_shape),
            ("latents", latents.shape[1:], self.latent_shape),
        ):
            if tuple(given) != wanted:
                raise ValueError(
                    f"{self.modality.value} {what} are {tuple(given)}, but {self.name} takes {wanted}; "
                    "embed with the decoder that the preset names"
                )
