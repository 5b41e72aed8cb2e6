"""The denoising loss: how well a decoder's frozen UNet denoises latents given a projected condition.

Suffixes: K items of a modality that have latents, L and D length and width of a condition.
"""

from typing import Any

import diffusers
import torch
from torch import Tensor
from torch.nn.functional import mse_loss, normalize

from model.decoders.text_encoders import loading
from model.parts.families import FAMILIES, caption_shape, latent_shape, locate
from pipelines.sample import Modality


class Denoiser:
    """A decoder's frozen UNet and noise schedule; gradients flow to the conditions only.

    `condition_shape` (L, D) and `latent_shape` are of one item. `gradient_checkpointing` trades time for memory in
    UNets that support it (diffusers' UNet3D does not). Raises FileNotFoundError and ValueError as `CaptionEncoder`
    does.
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
        self._family = FAMILIES[modality]
        self.condition_shape, self.latent_shape = caption_shape(modality, name), latent_shape(modality, name)
        path = locate(modality, name)
        with loading(path):
            unet = self._load_unet(path, dtype)
            # Whatever the sampler for rendering, its configuration describes the training schedule.
            self.scheduler = diffusers.DDPMScheduler.from_pretrained(path, subfolder="scheduler")
        self.unet = unet.requires_grad_(False).eval().to(device)
        if gradient_checkpointing and unet._supports_gradient_checkpointing:
            unet.enable_gradient_checkpointing()

    def _load_unet(self, path: str, dtype: torch.dtype) -> Any:
        return getattr(diffusers, self._family.unet).from_pretrained(path, subfolder="unet", torch_dtype=dtype)

    def __call__(self, conditions_KLD: Tensor, latents: Tensor, generator: torch.Generator) -> Tensor:
        """The sum over K items of the mean squared error, in float32.

        `latents` (K, ...) are clean and scaled by the VAE's factor. Timesteps and noise are drawn on the CPU from
        `generator`, so they do not depend on the device. The target is the scheduler's `prediction_type`: the noise,
        the velocity (Salimans & Ho 2022, arXiv:2202.00512) or the latents themselves. Raises ValueError if conditions
        or latents have the wrong shape.
        """
        self._check(conditions_KLD, latents)
        num_items, device = len(latents), latents.device
        steps_K = torch.randint(self.scheduler.config.num_train_timesteps, (num_items,), generator=generator).to(device)
        noise = torch.randn(latents.shape, generator=generator).to(device)
        noisy = self.scheduler.add_noise(latents, noise, steps_K)
        predicted = self.unet(noisy.to(self.unet.dtype), steps_K, **self._condition(conditions_KLD)).sample
        errors = mse_loss(predicted.float(), self._target(latents, noise, steps_K), reduction="none")
        return errors.flatten(1).mean(1).sum()

    def _target(self, latents: Tensor, noise: Tensor, steps_K: Tensor) -> Tensor:
        match self.scheduler.config.prediction_type:
            case "epsilon":
                return noise
            case "v_prediction":
                velocity: Tensor = self.scheduler.get_velocity(latents, noise, steps_K)
                return velocity
            case "sample":
                return latents
        kind = self.scheduler.config.prediction_type
        raise ValueError(f"{self.name}: scheduler/scheduler_config.json has unknown prediction_type {kind}")

    def _condition(self, conditions_KLD: Tensor) -> dict[str, Tensor | None]:
        if self._family.pooled:
            # AudioLDM has only self-attention. A pooled condition is a unit vector, a projected one only approximately.
            vectors_KD = normalize(conditions_KLD[:, 0].float(), dim=-1)
            return {"encoder_hidden_states": None, "class_labels": vectors_KD.to(self.unet.dtype)}
        return {"encoder_hidden_states": conditions_KLD.to(self.unet.dtype)}

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
