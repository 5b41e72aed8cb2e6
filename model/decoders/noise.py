"""How much noise a denoiser is trained at, and what it is to predict: by the scheduler that its pipeline comes with.

Shape suffixes: K items.
"""

from math import exp
from typing import Any, NamedTuple

import diffusers
import torch
from torch import Tensor

from model.parts.families import noise_kind
from pipelines.sample import Modality


class Noised(NamedTuple):
    """What a denoiser takes of K noisy latents and their timesteps, and what it is to predict."""

    latents: Tensor
    timesteps_K: Tensor
    target: Tensor


class DiffusionNoise:
    """A diffusion's schedule: the target is noise, velocity (Salimans & Ho 2022, arXiv:2202.00512) or the latents."""

    def __init__(self, path: str) -> None:
        # Whatever the sampler for rendering, its configuration describes the training schedule.
        self.scheduler = diffusers.DDPMScheduler.from_pretrained(path, subfolder="scheduler")
        self.num_steps = self.scheduler.config.num_train_timesteps

    def __call__(self, latents: Tensor, noise: Tensor, steps_K: Tensor) -> Noised:
        """Adds the noise of each item's step."""
        return Noised(self.scheduler.add_noise(latents, noise, steps_K), steps_K, self._target(latents, noise, steps_K))

    def _target(self, latents: Tensor, noise: Tensor, steps_K: Tensor) -> Tensor:
        match self.scheduler.config.prediction_type:
            case "epsilon":
                return noise
            case "v_prediction":
                velocity: Tensor = self.scheduler.get_velocity(latents, noise, steps_K)
                return velocity
            case _:  # "sample", as `noise_kind` knows no other
                return latents


class FlowNoise:
    """Flow matching (Lipman et al. 2022, arXiv:2210.02747): a straight line from latents to noise, and its slope.

    Levels are evenly spaced, then shifted as the scheduler shifts them for latents of `num_tokens`.
    """

    def __init__(self, path: str, num_tokens: int) -> None:
        config = diffusers.FlowMatchEulerDiscreteScheduler.load_config(path, subfolder="scheduler")
        self.num_steps = config.get("num_train_timesteps", 1000)
        self._shift = float(config.get("shift") or config.get("flow_shift") or 1.0)
        if config.get("use_dynamic_shifting"):
            self._shift = _dynamic_shift(config, num_tokens)

    def __call__(self, latents: Tensor, noise: Tensor, steps_K: Tensor) -> Noised:
        """Goes along the line up to each item's step."""
        even_K = (steps_K + 1) / self.num_steps
        levels_K = self._shift * even_K / (1 + (self._shift - 1) * even_K)
        level = _like(levels_K, latents)
        return Noised((1 - level) * latents + level * noise, levels_K * self.num_steps, noise - latents)


class SigmaNoise:
    """Noise of a standard deviation, and a preconditioned denoiser (Karras et al. 2022, arXiv:2206.00364)."""

    def __init__(self, path: str) -> None:
        config = diffusers.EDMDPMSolverMultistepScheduler.load_config(path, subfolder="scheduler")
        self.scheduler = getattr(diffusers, config["_class_name"]).from_config(config)
        self.num_steps = self.scheduler.config.num_train_timesteps

    def __call__(self, latents: Tensor, noise: Tensor, steps_K: Tensor) -> Noised:
        """Adds noise of each item's level."""
        sigmas_K = self.scheduler.sigmas.to(latents.device)[steps_K].to(latents.dtype)
        sigma = _like(sigmas_K, latents)
        noisy = latents + sigma * noise
        # What a denoiser predicts is scaled and added to a share of what it is given.
        share = self.scheduler.precondition_outputs(noisy, torch.zeros_like(noisy), sigma)
        slope = self.scheduler.precondition_outputs(torch.zeros_like(noisy), torch.ones_like(noisy), sigma)
        return Noised(
            self.scheduler.precondition_inputs(noisy, sigma),
            self.scheduler.precondition_noise(sigmas_K),
            (latents - share) / slope,
        )


def _like(values_K: Tensor, latents: Tensor) -> Tensor:
    return values_K.to(latents.dtype).view(-1, *[1] * (latents.ndim - 1))


def _dynamic_shift(config: Any, num_tokens: int) -> float:
    """The shift that pipelines choose by the number of tokens, a line between those of two sizes."""
    few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    least, most = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    return exp(least + (most - least) * (num_tokens - few) / (many - few))


def load_noise(modality: Modality, name: str, path: str, num_tokens: int) -> Any:
    """The noise of a decoder's scheduler. Raises ValueError if there is no loss for it."""
    match noise_kind(modality, name):
        case "flow":
            return FlowNoise(path, num_tokens)
        case "sigma":
            return SigmaNoise(path)
        case _:
            return DiffusionNoise(path)
