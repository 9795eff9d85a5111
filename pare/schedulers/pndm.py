"""PNDM (arXiv:2202.09778): textbook multistep weights for eps, inside DDIM's transfer.

The first steps lack the earlier eps that four-step Adams-Bashforth needs.  The paper takes
three steps of the Runge-Kutta kind, with four evaluations each; Stable Diffusion's files
say `skip_prk_steps`, and take one step of Heun's kind with two evaluations instead, then
as many earlier eps as there are.  In both, a step is evaluated several times from one
x_t, which the history keeps, and the trajectory has one entry for each evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

from torch import Tensor

from pare.config import boolean
from pare.errors import SchedulerError
from pare.schedulers.config import SOLVER_KEYS, SchedulerConfig
from pare.schedulers.ddim import whole_levels
from pare.schedulers.schedule import Level, Prediction
from pare.schedulers.scheduler import History, Scheduler
from pare.schedulers.trajectory import Trajectory

# Adams-Bashforth by order, newest first: arXiv:2202.09778, eq. 12 is the last.
MULTISTEP_WEIGHTS = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}
RUNGE_KUTTA_WEIGHTS = (1 / 6, 2 / 6, 2 / 6, 1 / 6)  # arXiv:2202.09778, eq. 13


@dataclass(frozen=True)
class PNDMConfig(SchedulerConfig):
    """The keys of PNDM."""

    set_alpha_to_one: bool  # end clean; if false, at the level of timestep 0
    skip_prk_steps: bool

    HUB_DEFAULTS: ClassVar[Mapping[str, object]] = {
        **SchedulerConfig.HUB_DEFAULTS,
        "timestep_spacing": "leading",
        "set_alpha_to_one": False,
        "skip_prk_steps": False,
    }
    UNUSED: ClassVar[frozenset[str]] = SOLVER_KEYS - {"set_alpha_to_one", "skip_prk_steps"}

    @classmethod
    def normalise(cls, values: dict[str, Any], where: str) -> dict[str, Any]:
        return super().normalise(values, where) | {
            "set_alpha_to_one": boolean(values, "set_alpha_to_one", where),
            "skip_prk_steps": boolean(values, "skip_prk_steps", where),
        }


@dataclass(frozen=True)
class PNDM(Scheduler):
    """The solver that Stable Diffusion 1's own files name."""

    name: ClassVar[str] = "pndm"
    hub_class: ClassVar[str] = "PNDMScheduler"
    config_type: ClassVar[type[SchedulerConfig]] = PNDMConfig

    config: PNDMConfig

    def levels(self, steps: int) -> tuple[Level, ...]:
        return whole_levels(self.config, self.schedule, self.config.set_alpha_to_one, steps)

    def trajectory(self, steps: int, start: int = 0) -> Trajectory:
        """One entry for each evaluation: t0, t1, t1, t2, t3, ... with `skip_prk_steps`.

        A run that starts midway warms up where it starts.  Raises as every trajectory does,
        and a SchedulerError for a start at a level without signal.
        """
        plain = super().trajectory(steps, start)
        first, *rest = plain.levels
        if first.alpha_bar == 0:
            raise SchedulerError(
                "pndm cannot start at a level without signal (rescale_betas_zero_snr)",
                fix="use the leading spacing or the scheduler ddim",
            )
        if not self.config.skip_prk_steps:
            levels = self.with_runge_kutta(plain.levels)
        elif len(plain) > 1:
            levels = (first, rest[0], *rest)
        else:
            levels = plain.levels
        return Trajectory(levels, plain.initial_scale, first=start)

    def with_runge_kutta(self, levels: tuple[Level, ...]) -> tuple[Level, ...]:
        """t0, mid, mid, t1 | t1, mid, mid, t2 | t2, mid, mid, t3 | t3, t4, ..."""
        steps = runge_kutta_steps(len(levels) - 1)
        doubled: list[Level] = []
        for here, there in pairwise(levels[: steps + 1]):
            middle = self.schedule.level((here.t + there.t) / 2)
            doubled += [here, middle, middle, there]
        return *doubled, *levels[steps:]

    def step(
        self,
        trajectory: Trajectory,
        i: int,
        x_t: Tensor,
        prediction: Prediction,
        history: History,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, History]:
        if self.config.skip_prk_steps:
            if i < 2 < len(trajectory):
                return heun_step(trajectory, i, x_t, prediction.eps, history)
        elif i < 4 * runge_kutta_steps(trajectory):
            return runge_kutta_step(trajectory, i, x_t, prediction.eps, history)
        return multistep(trajectory, i, x_t, prediction.eps, history)


def transfer(x_t: Tensor, eps: Tensor, here: Level, there: Level) -> Tensor:
    """DDIM's step along any eps: arXiv:2202.09778, eq. 11."""
    onward = there.noise_rate - there.signal_rate * here.sigma
    return (there.signal_rate / here.signal_rate) * x_t + onward * eps
