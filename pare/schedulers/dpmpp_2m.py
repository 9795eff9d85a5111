"""DPM-Solver++(2M) (arXiv:2211.01095, algorithm 2): second order in lambda_t, the half log SNR.

With h = lambda_next - lambda_t the solution is exact in x_t, and the model's x0 is
extrapolated over the step from this one and the one before:

    x_next = (sigma_next / sigma_t) x_t - alpha_next (e^-h - 1) D

alpha and sigma are the paper's: here `signal_rate` and `noise_rate`.  Order 3 extrapolates from
two earlier x0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from pare.schedulers.dpm_solver import DPMSolverScheduler, few_steps
from pare.schedulers.hub_config import DPMPlusPlusConfig
from pare.schedulers.schedule import NoiseLevel, Prediction
from pare.schedulers.scheduler import History
from pare.schedulers.timesteps import Timesteps


@dataclass(frozen=True, repr=False)
class DPMPlusPlus2M(DPMSolverScheduler):
    """A multistep method: one model evaluation per step, good from 15 steps on."""

    name = "dpm++2m"
    config_type = DPMPlusPlusConfig

    config: DPMPlusPlusConfig

    @property
    def order(self) -> int:
        """The number of x0, this step's and earlier ones, that a step uses."""
        return self.config.solver_order

    @property
    def solver_type(self) -> str:
        """How order 2 uses its slope: 'midpoint', as the paper, or 'heun'."""
        return self.config.solver_type

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
        phi = math.expm1(-h)  # e^-h - 1
        # D = denoised: the first step of algorithm 2, which is DDIM
        x_next = (there.noise_rate / here.noise_rate) * x_t - there.signal_rate * phi * denoised[0]
        levels = [timesteps.levels[i + 1 - k] for k in range(len(denoised) + 1)]
        change = self.extrapolation(denoised, levels, h)
        if change is not None:
            x_next = x_next + there.signal_rate * change
        return x_next, (prediction.x0, *history)[: self.order - 1]

    def order_at(self, timesteps: Timesteps, i: int) -> int:
        """The highest order that step `i` may have: the last ones may not extrapolate far."""
        left = len(timesteps) - i
        few = self.config.lower_order_final and few_steps(timesteps)
        # At the clean level lambda is infinite: there is nothing to extrapolate to.
        if left == 1 and (few or self.config.euler_at_final or timesteps.levels[-1].sigma == 0):
            return 1
        return min(self.order, 2) if left == 2 and few else self.order

    def extrapolation(
        self, denoised: Sequence[Tensor], levels: Sequence[NoiseLevel], span: float
    ) -> Tensor | None:
        """What earlier x0 add to x_next / alpha_next, None without any or for a step of length 0.

        Args:
            denoised: this step's x0 and up to two earlier ones, newest first.
            levels: where the step ends, where it starts, and those of the earlier x0.
            span: h of the ODE, 2 h of the SDE.
        """
        if len(denoised) == 1 or span == 0:
            return None
        h, h_last = (a.lambda_t - b.lambda_t for a, b in zip(levels[:2], levels[1:3], strict=True))
        phi = math.expm1(-span)
        slope = (h / h_last) * (denoised[0] - denoised[1])
        if len(denoised) == 2:
            if self.solver_type == "midpoint":  # D of algorithm 2's other steps
                return -0.5 * phi * slope
            return (phi / span + 1) * slope  # 'heun': x0 linear in lambda, in proposition 4.1
        h_before = levels[2].lambda_t - levels[3].lambda_t
        turn = slope - (h / h_before) * (denoised[1] - denoised[2])
        slope = slope + h_last / (h_last + h_before) * turn
        curvature = h / (h_last + h_before) * turn
        # x0 quadratic in lambda, put into the integral of proposition 4.1
        return (phi / span + 1) * slope - ((phi + span) / span**2 - 0.5) * curvature
