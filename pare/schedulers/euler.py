"""Euler's method in sigma: arXiv:2206.00364, algorithm 1 without its second-order correction.

d = (x_hat - denoised) / sigma                  k-diffusion's `to_d`; it is the model's eps
x_hat_next = x_hat + (sigma_next - sigma) * d
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pare.schedulers.hub_config import EulerConfig
from pare.schedulers.k_diffusion import KDiffusionScheduler, sigma_levels
from pare.schedulers.schedule import CLEAN, NoiseLevel, Prediction
from pare.schedulers.scheduler import History
from pare.schedulers.timesteps import Timesteps


@dataclass(frozen=True, repr=False)
class Euler(KDiffusionScheduler):
    """First order, one evaluation per step.  Between the same levels it is DDIM with eta 0."""

    name = "euler"
    config_type = EulerConfig

    config: EulerConfig

    def levels(self, steps: int) -> tuple[NoiseLevel, ...]:
        end = CLEAN if self.config.final_sigmas_type == "zero" else self.schedule.level(0)
        return *sigma_levels(self.config, self.schedule, steps), end

    def step(
        self,
        timesteps: Timesteps,
        i: int,
        x_t: Tensor,
        prediction: Prediction,
        history: History,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, History]:
        there = timesteps.levels[i + 1]
        denoised, d = prediction.x0, prediction.eps
        # x_hat is denoised + sigma * d, so sigma cancels: it may be infinite.
        x_hat = denoised + there.sigma * d
        return there.signal_rate * x_hat, ()
