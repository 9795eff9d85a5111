"""Euler ancestral, as k-diffusion's `sample_euler_ancestral`: Euler to sigma_down, then noise.

sigma_down^2 + sigma_up^2 = sigma_next^2        k-diffusion's `get_ancestral_step`
x_hat_next = x_hat + (sigma_down - sigma) * d + sigma_up * z
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pare.schedulers.hub_config import EulerAncestralConfig
from pare.schedulers.k_diffusion import KDiffusionScheduler, ancestral_step, sigma_levels
from pare.schedulers.schedule import CLEAN, NoiseLevel, Prediction
from pare.schedulers.scheduler import History
from pare.schedulers.timesteps import Timesteps


@dataclass(frozen=True, repr=False)
class EulerAncestral(KDiffusionScheduler):
    """Fresh noise in every step.  Between the same levels it is DDIM with eta 1, or DDPM."""

    name = "euler-ancestral"
    config_type = EulerAncestralConfig

    config: EulerAncestralConfig

    @property
    def stochastic(self) -> bool:
        return True

    def levels(self, steps: int) -> tuple[NoiseLevel, ...]:
        return *sigma_levels(self.config, self.schedule, steps), CLEAN

    def step(
        self,
        timesteps: Timesteps,
        i: int,
        x_t: Tensor,
        prediction: Prediction,
        history: History,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, History]:
        here, there = timesteps.levels[i], timesteps.levels[i + 1]
        sigma_down, sigma_up = ancestral_step(here.sigma, there.sigma)
        denoised, d, z = prediction.x0, prediction.eps, self.need_noise(noise)
        x_hat = denoised + sigma_down * d + sigma_up * z
        return there.signal_rate * x_hat, ()
