"""DPM-Solver++ for the SDE (arXiv:2211.01095, appendix): multistep, fresh noise in every step.

    x_next = (sigma_next / sigma_t) e^-h x_t + alpha_next (1 - e^-2h) D
             + sigma_next sqrt(1 - e^-2h) z

h is that of `dpmpp_2m`, and D extrapolates x0 in the same ways, with 2h in the place of h.
k-diffusion has these solvers as `sample_dpmpp_2m_sde` and `sample_dpmpp_3m_sde`, with eta 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from pare.schedulers.dpmpp_2m import DPMPlusPlus2M
from pare.schedulers.schedule import Prediction
from pare.schedulers.scheduler import History
from pare.schedulers.timesteps import Timesteps


@dataclass(frozen=True, repr=False)
class DPMPlusPlus2MSDE(DPMPlusPlus2M):
    """As `dpm++2m`, of the reverse SDE."""

    name = "dpm++2m-sde"

    @property
    def stochastic(self) -> bool:
        return True

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
        denoised = (prediction.x0, *history)[: self.order_at(timesteps, i)]  # newest first
        h = there.lambda_t - here.lambda_t
        decay, added = math.exp(-h), math.sqrt(-math.expm1(-2 * h))
        x_next = (there.noise_rate / here.noise_rate * decay) * x_t
        x_next = x_next - there.signal_rate * math.expm1(-2 * h) * denoised[0]
        levels = [timesteps.levels[i + 1 - k] for k in range(len(denoised) + 1)]
        change = self.extrapolation(denoised, levels, 2 * h)
        if change is not None:
            x_next = x_next + there.signal_rate * change
        x_next = x_next + there.noise_rate * added * self.need_noise(noise)
        return x_next, (prediction.x0, *history)[: self.order - 1]


@dataclass(frozen=True, repr=False)
class DPMPlusPlus3MSDE(DPMPlusPlus2MSDE):
    """Order 3, as `sample_dpmpp_3m_sde`, whatever the file says."""

    name = "dpm++3m-sde"

    @property
    def order(self) -> int:
        return 3

    @property
    def solver_type(self) -> str:
        return "heun"

    def order_at(self, timesteps: Timesteps, i: int) -> int:
        ends = i + 1 == len(timesteps) and timesteps.levels[-1].sigma == 0
        return 1 if ends else self.order
