"""Euler ancestral, as in k-diffusion: step too far down in sigma, come up with fresh noise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pare.schedulers.hub_config import SOLVER_KEYS, SchedulerConfig
from pare.schedulers.k_diffusion import KDiffusionScheduler, sigma_levels
from pare.schedulers.schedule import CLEAN, NoiseLevel, Prediction
from pare.schedulers.scheduler import History
from pare.schedulers.timesteps import Timesteps


@dataclass(frozen=True)
class EulerAncestralConfig(SchedulerConfig):
    """No keys of its own: its sigmas are those of its timesteps."""

    HUB_DEFAULTS: ClassVar[Mapping[str, object]] = {
        **SchedulerConfig.HUB_DEFAULTS,
        "timestep_spacing": "linspace",
    }
    UNUSED: ClassVar[frozenset[str]] = SOLVER_KEYS


@dataclass(frozen=True, repr=False)
class EulerAncestral(KDiffusionScheduler):
    """Fresh noise in every step.  Between the same levels it is DDIM with eta 1, or DDPM."""

    name: ClassVar[str] = "euler-ancestral"
    hub_class: ClassVar[str] = "EulerAncestralDiscreteScheduler"
    config_type: ClassVar[type[SchedulerConfig]] = EulerAncestralConfig

    config: EulerAncestralConfig

    @property
    def stochastic(self) -> bool:
        return True

    def levels(self, steps: int) -> tuple[NoiseLevel, ...]:
        return *sigma_levels(self.config, self.schedule, steps, karras=False), CLEAN

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
        # The noise of the two parts adds up to there's: down^2 + up^2 = sigma^2.
        ratio = there.sigma / here.sigma
        down = there.sigma * ratio
        up = there.sigma * math.sqrt(1 - ratio**2)
        x_hat = prediction.x0 + down * prediction.eps + up * self.need_noise(noise)
        return there.signal_rate * x_hat, ()
