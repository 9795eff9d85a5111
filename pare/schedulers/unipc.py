"""UniPC (arXiv:2302.04867): a multistep predictor, whose result the next evaluation corrects.

The predictor is DPM-Solver++ in the form of the paper's eq. 8: x0's changes since the last
steps, each weighted so that the step is exact for polynomials in lambda.  Before the next step
the corrector (eq. 3) takes the same step again with the x0 that the model has given meanwhile, at
no further evaluation: UniP's x_t becomes UniC's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor

from pare.schedulers.dpm_solver import DPMSolverScheduler
from pare.schedulers.hub_config import UniPCConfig
from pare.schedulers.schedule import Prediction
from pare.schedulers.scheduler import History
from pare.schedulers.timesteps import Timesteps


class UniPCHistory(NamedTuple):
    x_last: Tensor
    """x_t where the last step began, corrected."""
    denoised: tuple[Tensor, ...]
    """The x0 of that step and of earlier ones, newest first."""


@dataclass(frozen=True, repr=False)
class UniPC(DPMSolverScheduler):
    """One model evaluation per step; good with few steps."""

    name = "unipc"
    config_type = UniPCConfig

    config: UniPCConfig

    def step(
        self,
        timesteps: Timesteps,
        i: int,
        x_t: Tensor,
        prediction: Prediction,
        history: History,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, History]:
        kept: tuple[Tensor, ...] = ()
        if history:
            x_last, kept = UniPCHistory(*history)
            if timesteps.first + i - 1 not in self.config.disable_corrector:
                order = self.order_at(timesteps, i - 1, len(kept))
                x_t = self.move(timesteps, i - 1, x_last, kept[:order], prediction.x0)
        denoised = (prediction.x0, *kept)[: self.config.solver_order]
        order = self.order_at(timesteps, i, len(denoised))
        x_next = self.move(timesteps, i, x_t, denoised[:order])
        return x_next, UniPCHistory(x_t, denoised)

    def order_at(self, timesteps: Timesteps, i: int, known: int) -> int:
        """The order of step `i` when `known` x0 are known."""
        ends_clean = timesteps.levels[-1].sigma == 0 and i + 1 == len(timesteps)
        lower = self.config.lower_order_final
        left = 1 if ends_clean else len(timesteps) - i if lower else known
        return min(self.config.solver_order, known, left)

    def move(
        self,
        timesteps: Timesteps,
        i: int,
        x_t: Tensor,
        denoised: Sequence[Tensor],
        denoised_next: Tensor | None = None,
    ) -> Tensor:
        """Step `i` from x_t with x0 from here back, newest first; UniC has the next one too."""
        levels = timesteps.levels
        here, there = levels[i], levels[i + 1]
        h = there.lambda_t - here.lambda_t
        phi = math.expm1(-h)
        x_next = (there.noise_rate / here.noise_rate) * x_t
        x_next = x_next - there.signal_rate * phi * denoised[0]
        if h == 0 or math.isinf(h):
            return x_next
        # r of the paper: where the earlier levels are in units of the step, negative.
        earlier = [(levels[i - k].lambda_t - here.lambda_t) / h for k in range(1, len(denoised))]
        places = [r for r in earlier if math.isfinite(r)]  # one without signal tells nothing
        changes = [(x0 - denoised[0]) / r for r, x0 in zip(places, denoised[1:], strict=False)]
        if denoised_next is not None:  # UniC's
            places.append(1.0)
            changes.append(denoised_next - denoised[0])
        if not places:
            return x_next
        scale = -h if self.config.solver_type == "bh1" else phi
        for weight, change in zip(self.weights(places, h, scale), changes, strict=True):
            x_next = x_next - there.signal_rate * scale * weight * change
        return x_next

    @staticmethod
    def weights(places: Sequence[float], h: float, scale: float) -> list[float]:
        """The weights of x0's changes to `places`: theorem 3.1, sum_m w_m r_m^(n-1) = b_n."""
        if len(places) == 1:  # for one point the paper takes its limit as h -> 0
            return [0.5]
        phi, factorial = math.expm1(-h) / -h - 1, 1
        wanted = []
        for n in range(1, len(places) + 1):
            wanted.append(phi * factorial / scale)
            factorial *= n + 1
            phi = phi / -h - 1 / factorial
        powers = np.array([[r ** (n - 1) for r in places] for n in range(1, len(places) + 1)])
        solved: list[float] = np.linalg.solve(powers, np.array(wanted)).tolist()
        return solved
