"""DDPM (arXiv:2006.11239): the posterior of x_{t-1} given x_t and the predicted x0.

    mean = (sqrt(ab') beta / (1 - ab)) x0 + (sqrt(alpha) (1 - ab') / (1 - ab)) x_t      eq. 7

ab and ab' are alpha_bar here and at the next level, alpha = ab / ab', beta = 1 - alpha.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from pare.schedulers.ddim import clipped
from pare.schedulers.hub_config import DDPMConfig
from pare.schedulers.schedule import CLEAN, NoiseLevel, Prediction
from pare.schedulers.scheduler import History, Scheduler
from pare.schedulers.timesteps import Timesteps, spaced_timesteps


@dataclass(frozen=True, repr=False)
class DDPM(Scheduler):
    """Ancestral sampling; with fewer steps than in training it is DDIM with eta 1."""

    name = "ddpm"
    config_type = DDPMConfig

    config: DDPMConfig

    @property
    def stochastic(self) -> bool:
        return True

    def levels(self, steps: int) -> tuple[NoiseLevel, ...]:
        timesteps = spaced_timesteps(self.config, steps, whole=True)
        return *map(self.schedule.level, timesteps), CLEAN

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
        alpha = here.alpha_bar / there.alpha_bar
        beta, spread = 1 - alpha, here.noise_rate**2
        x_next = (there.signal_rate * beta / spread) * clipped(prediction.x0, self.config)
        x_next = x_next + (math.sqrt(alpha) * there.noise_rate**2 / spread) * x_t
        if here.t > 0:
            large = self.config.variance_type.startswith("fixed_large")
            variance = beta if large else there.noise_rate**2 / spread * beta  # section 3.2
            x_next = x_next + math.sqrt(variance) * self.need_noise(noise)
        return x_next, ()
