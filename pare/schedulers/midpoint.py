"""What DPM2, DPM++ 2S and DPM++ SDE share: a step evaluates the model at an intermediate point.

    t0, middle, t1, middle, t2, ..., end

The point lies in the middle in log sigma.  The second half of a step starts from where the first
half started, which the history keeps.  Where the step ends clean, or starts without signal, log
sigma has no middle: one half is the whole step.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, NamedTuple

from torch import Tensor

from pare.schedulers.hub_config import HeunConfig
from pare.schedulers.k_diffusion import KDiffusionScheduler, ancestral_step, sigma_levels
from pare.schedulers.schedule import CLEAN, NoiseLevel, Prediction
from pare.schedulers.scheduler import History
from pare.schedulers.timesteps import Timesteps


class MidpointHistory(NamedTuple):
    x_hat: Tensor
    """Where the step began: x_t / sqrt(alpha_bar)."""
    noise: Tensor | None
    """Of the step's first half, where that had some."""


@dataclass(frozen=True, repr=False)
class MidpointScheduler(KDiffusionScheduler):
    """Base of the solvers in sigma that evaluate the model between two levels."""

    needs_history = True
    ancestral: ClassVar[bool] = False
    """Solve to sigma_down, and add noise up to the next level."""

    config: HeunConfig

    @property
    def stochastic(self) -> bool:
        return self.ancestral

    def levels(self, steps: int) -> tuple[NoiseLevel, ...]:
        return *sigma_levels(self.config, self.schedule, steps), CLEAN

    def timesteps(self, steps: int, start: int = 0) -> Timesteps:
        """One entry for each evaluation."""
        plain = super().timesteps(steps, start)
        levels = [plain.levels[0]]
        for here, there in pairwise(plain.levels):
            middle = self.middle(here.sigma, there.sigma)
            if 0 < middle < math.inf:
                levels.append(NoiseLevel(self.schedule.timestep(middle), middle))
            levels.append(there)
        return Timesteps(tuple(levels), plain.initial_scale, first=start)

    def middle(self, sigma: float, sigma_next: float) -> float:
        """The sigma in the middle of a step, 0 or infinite where there is none."""
        return math.sqrt(sigma) * math.sqrt(self.target(sigma, sigma_next)[0])

    def target(self, sigma: float, sigma_next: float) -> tuple[float, float]:
        """To which sigma the ODE is solved, and how much fresh noise follows."""
        return ancestral_step(sigma, sigma_next) if self.ancestral else (sigma_next, 0.0)

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
            kept = MidpointHistory(*history)
            sigmas = timesteps.levels[i - 1].sigma, here.sigma, there.sigma
            x_hat = self.second_half(sigmas, kept, prediction, noise)
            return there.signal_rate * x_hat, ()
        denoised, d = prediction.x0, prediction.eps
        if there.sigma == 0 or math.isinf(here.sigma):
            x_hat = self.with_noise(denoised, d, *self.target(here.sigma, there.sigma), noise)
            return there.signal_rate * x_hat, ()
        x_next = there.signal_rate * self.first_half(here.sigma, there.sigma, prediction, noise)
        return x_next, MidpointHistory(denoised + here.sigma * d, self.kept_noise(noise))

    def first_half(
        self, sigma: float, middle: float, prediction: Prediction, noise: Tensor | None
    ) -> Tensor:
        """x_hat in the middle: Euler's step."""
        return prediction.x0 + middle * prediction.eps

    @abstractmethod
    def second_half(
        self,
        sigmas: tuple[float, float, float],
        start: MidpointHistory,
        prediction: Prediction,
        noise: Tensor | None,
    ) -> Tensor:
        """x_hat at the end of a step, given the prediction in its middle.

        Args:
            sigmas: of its start, its middle and its end.
        """

    def kept_noise(self, noise: Tensor | None) -> Tensor | None:
        return None

    def with_noise(
        self, denoised: Tensor, d: Tensor, sigma_down: float, sigma_up: float,
        noise: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """x_hat = denoised + sigma_down * d, and fresh noise."""
        x_hat = denoised + sigma_down * d
        return x_hat + sigma_up * self.need_noise(noise) if self.stochastic else x_hat
