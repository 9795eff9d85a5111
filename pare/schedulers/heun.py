"""Heun's method in sigma: arXiv:2206.00364, algorithm 1 without its fresh noise.

A step is tried with Euler's method, and taken again with the mean of the slopes at both of its
ends.  The model is evaluated twice at every level but the first: for the second slope of one
step, and for the first of the next.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from pare.schedulers.hub_config import HeunConfig
from pare.schedulers.k_diffusion import KDiffusionScheduler, sigma_levels
from pare.schedulers.schedule import CLEAN, NoiseLevel, Prediction
from pare.schedulers.scheduler import History
from pare.schedulers.timesteps import Timesteps


class HeunHistory(NamedTuple):
    x_hat: Tensor
    """Where a step began that is still to be corrected."""
    d: Tensor
    """The slope there."""


@dataclass(frozen=True, repr=False)
class Heun(KDiffusionScheduler):
    """Second order, two evaluations a step; the last step is Euler's."""

    name = "heun"
    config_type = HeunConfig
    needs_history = True

    config: HeunConfig

    def levels(self, steps: int) -> tuple[NoiseLevel, ...]:
        return *sigma_levels(self.config, self.schedule, steps), CLEAN

    def timesteps(self, steps: int, start: int = 0) -> Timesteps:
        """One entry for each evaluation: t0, t1, t1, t2, t2, ..., end."""
        plain = super().timesteps(steps, start)
        first, *between = plain.levels[:-1]
        levels = [first]
        for k, level in enumerate(between):
            # From a level without signal there is no slope to take a mean with.
            levels += [level] if k == 0 and math.isinf(first.sigma) else [level, level]
        return Timesteps((*levels, plain.levels[-1]), plain.initial_scale, first=start)

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
        if history:
            x_hat, d = HeunHistory(*history)
            start = timesteps.levels[i - 1]
            mean = (d + prediction.eps) / 2
            return there.signal_rate * (x_hat + (there.sigma - start.sigma) * mean), ()
        denoised, d = prediction.x0, prediction.eps
        x_next = there.signal_rate * (denoised + there.sigma * d)  # Euler's step
        corrected = timesteps.levels[i + 2 : i + 3] == (there,)
        return x_next, HeunHistory(denoised + here.sigma * d, d) if corrected else ()
