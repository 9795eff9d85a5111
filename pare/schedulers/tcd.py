"""Trajectory consistency distillation (arXiv:2402.19159): to any cleaner level, then noise.

The model's x0 and eps take x_t to timestep s = (1 - eta) t_next in one step; fresh noise takes it
up to t_next (algorithm 4, strategic stochastic sampling; eta is the paper's gamma).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pare.schedulers.hub_config import Option, TCDConfig, fraction
from pare.schedulers.lcm import distilled_levels
from pare.schedulers.schedule import NoiseLevel, Prediction
from pare.schedulers.scheduler import History, Scheduler
from pare.schedulers.timesteps import Timesteps


@dataclass(frozen=True, repr=False)
class TCD(Scheduler):
    """A few steps, for models that were distilled for it; `eta` 0 is deterministic."""

    name = "tcd"
    config_type = TCDConfig
    field_options: ClassVar[Mapping[str, Option]] = {"eta": fraction()}

    config: TCDConfig
    eta: float = 0.3

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def levels(self, steps: int) -> tuple[NoiseLevel, ...]:
        return *distilled_levels(self.config, self.schedule, steps), self.schedule.level(0)

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
        between = self.schedule.level(math.floor((1 - self.eta) * there.t))
        x_s = between.signal_rate * prediction.x0 + between.noise_rate * prediction.eps
        if not self.stochastic or i + 1 == len(timesteps):
            return x_s, ()
        kept = there.alpha_bar / between.alpha_bar
        return math.sqrt(kept) * x_s + math.sqrt(1 - kept) * self.need_noise(noise), ()
