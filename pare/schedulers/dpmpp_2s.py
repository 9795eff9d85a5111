"""DPM-Solver++, singlestep (arXiv:2211.01095, algorithm 1): steps of order 1, 2 and 3 in turn.

A step of order 2 starts where the step of order 1 before it started, and takes that one's end
as its intermediate point; one of order 3 has two.  So all levels of a run are evaluated once,
and it needs no more evaluations than a multistep run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from pare.schedulers.dpm_solver import DPMSolverScheduler
from pare.schedulers.hub_config import DPMSinglestepConfig
from pare.schedulers.schedule import Prediction
from pare.schedulers.scheduler import History
from pare.schedulers.timesteps import Timesteps


@dataclass(frozen=True, repr=False)
class DPMPlusPlus2S(DPMSolverScheduler):
    """The history is x_t where the current group of steps began, and the group's x0."""

    name = "dpm++2s"
    config_type = DPMSinglestepConfig
    needs_history = True

    config: DPMSinglestepConfig

    def step(
        self,
        timesteps: Timesteps,
        i: int,
        x_t: Tensor,
        prediction: Prediction,
        history: History,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, History]:
        steps = timesteps.first + len(timesteps)
        planned = self.orders(steps)[timesteps.first + i]
        x_start, *earlier = history or (x_t,)
        if planned == 1:
            x_start, earlier = x_t, []
        # The x0 of the group, oldest first: a run from midway may begin inside of one.
        group = [*earlier, prediction.x0]
        start, there = timesteps.levels[i + 1 - len(group)], timesteps.levels[i + 1]
        h = there.lambda_t - start.lambda_t
        phi = math.expm1(-h)
        x_next = (there.noise_rate / start.noise_rate) * x_start
        x_next = x_next - there.signal_rate * phi * group[0]
        if len(group) > 1 and 0 < h < math.inf:
            ends = [timesteps.levels[i + k - len(group)].lambda_t for k in range(2, len(group) + 1)]
            slopes = [
                (h / (end - start.lambda_t)) * (x0 - group[0])
                for end, x0 in zip(ends, group[1:], strict=True)
            ]
            if self.config.solver_type == "midpoint":
                weight = -0.5 * phi if len(group) == 2 else phi / h + 1
                change = weight * slopes[-1]
            elif len(group) == 2:
                change = (phi / h + 1) * slopes[0]
            else:  # x0 quadratic in lambda through all three points
                r1, r0 = ((end - start.lambda_t) / h for end in ends)
                slope = (r0 * slopes[0] - r1 * slopes[1]) / (r0 - r1)
                curvature = 2.0 * (slopes[1] - slopes[0]) / (r0 - r1)
                change = (phi / h + 1) * slope - ((phi + h) / h**2 - 0.5) * curvature
            x_next = x_next + there.signal_rate * change
        return x_next, (x_start, *group)

    def orders(self, steps: int) -> list[int]:
        """The order of every step of a whole run: the paper's groups, and what is left over."""
        order = self.config.solver_order
        ends_clean = self.config.final_sigmas_type == "zero"
        groups = list(range(1, order + 1)) * (steps // order + 1)
        orders = groups[:steps]
        if self.config.lower_order_final or ends_clean or steps % order:
            if order == 3 and steps % 3 == 0:
                orders[-3:] = [1, 2, 1]
            elif order == 2 and steps % 2 == 0:
                orders[-1] = 1
        if ends_clean:
            orders[-1] = 1
        return orders
