"""DDIM (arXiv:2010.02502): predict x0, then add noise to it again, up to the next level.

    x_{t-1} = sqrt(alpha_bar_{t-1}) x0 + sqrt(1 - alpha_bar_{t-1} - sigma_t^2) eps + sigma_t z

This is the paper's eq. 12; its alpha is alpha_bar here, and z is unit noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pare.schedulers.hub_config import (
    DDIMConfig,
    DDPMConfig,
    LCMConfig,
    Option,
    PNDMConfig,
    fraction,
)
from pare.schedulers.schedule import CLEAN, NoiseLevel, NoiseSchedule, Prediction
from pare.schedulers.scheduler import History, Scheduler
from pare.schedulers.timesteps import Timesteps, spaced_timesteps


@dataclass(frozen=True, repr=False)
class DDIM(Scheduler):
    """`eta` 0 is deterministic; 1 adds as much fresh noise in each step as DDPM does."""

    name = "ddim"
    config_type = DDIMConfig
    field_options: ClassVar[Mapping[str, Option]] = {"eta": fraction()}

    config: DDIMConfig
    eta: float = 0.0

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def levels(self, steps: int) -> tuple[NoiseLevel, ...]:
        return whole_levels(self.config, self.schedule, steps)

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
        sigma_t = self.eta * math.sqrt(  # eq. 16: the standard deviation of the fresh noise
            (there.noise_rate / here.noise_rate) ** 2 * (1 - here.alpha_bar / there.alpha_bar)
        )
        direction = math.sqrt(max(there.noise_rate**2 - sigma_t**2, 0.0))
        x_next = there.signal_rate * clipped(prediction.x0, self.config)  # eq. 12
        x_next = x_next + direction * prediction.eps
        if self.stochastic:
            x_next = x_next + sigma_t * self.need_noise(noise)
        return x_next, ()


def whole_levels(
    config: DDIMConfig | PNDMConfig, schedule: NoiseSchedule, steps: int
) -> tuple[NoiseLevel, ...]:
    """Levels at whole timesteps, ending clean or at the level of timestep 0."""
    timesteps = spaced_timesteps(config, steps, whole=True)
    return *map(schedule.level, timesteps), CLEAN if config.set_alpha_to_one else schedule.level(0)


def clipped(x0: Tensor, config: DDIMConfig | DDPMConfig | LCMConfig) -> Tensor:
    if not config.clip_sample:
        return x0
    return x0.clamp(-config.clip_sample_range, config.clip_sample_range)
