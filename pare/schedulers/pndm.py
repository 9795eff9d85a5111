"""PNDM (arXiv:2202.09778): textbook multistep weights for eps, inside DDIM's transfer.

The first steps lack the earlier eps that four-step Adams-Bashforth needs.  The paper takes
three steps of the Runge-Kutta kind, with four evaluations each; Stable Diffusion's files
say `skip_prk_steps`, and take one step of Heun's kind with two evaluations instead, then
as many earlier eps as there are.  In both, a step is evaluated several times from one
x_t, which the history keeps, and the timestep schedule has one entry for each evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

from torch import Tensor

from pare.config import boolean
from pare.errors import SchedulerError
from pare.schedulers.ddim import whole_levels
from pare.schedulers.hub_config import SOLVER_KEYS, SchedulerConfig
from pare.schedulers.schedule import NoiseLevel, Prediction
from pare.schedulers.scheduler import History, Scheduler
from pare.schedulers.timesteps import Timesteps

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


@dataclass(frozen=True, repr=False)
class PNDM(Scheduler):
    """The solver that Stable Diffusion 1's own files name."""

    name: ClassVar[str] = "pndm"
    hub_class: ClassVar[str] = "PNDMScheduler"
    config_type: ClassVar[type[SchedulerConfig]] = PNDMConfig

    config: PNDMConfig

    def levels(self, steps: int) -> tuple[NoiseLevel, ...]:
        return whole_levels(self.config, self.schedule, self.config.set_alpha_to_one, steps)

    def timesteps(self, steps: int, start: int = 0) -> Timesteps:
        """One entry for each evaluation: t0, t1, t1, t2, t3, ... with `skip_prk_steps`.

        A run that starts midway warms up where it starts.  Raises as every timestep schedule does,
        and a SchedulerError for a start at a level without signal.
        """
        plain = super().timesteps(steps, start)
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
        return Timesteps(levels, plain.initial_scale, first=start)

    def with_runge_kutta(self, levels: tuple[NoiseLevel, ...]) -> tuple[NoiseLevel, ...]:
        """t0, mid, mid, t1 | t1, mid, mid, t2 | t2, mid, mid, t3 | t3, t4, ..."""
        # Three steps, each of which ends where the model can be asked: fewer in a short run.
        steps = min(3, len(levels) - 2)
        evaluated: list[NoiseLevel] = []
        for here, there in pairwise(levels[: steps + 1]):
            middle = self.schedule.level((here.t + there.t) / 2)
            evaluated += [here, middle, middle, there]
        return *evaluated, *levels[steps:]

    def step(
        self,
        timesteps: Timesteps,
        i: int,
        x_t: Tensor,
        prediction: Prediction,
        history: History,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, History]:
        if self.config.skip_prk_steps:
            warming_up = i < min(2, len(timesteps) - 1)
            take = heun_step if warming_up else multistep
        else:
            # One, two or three Runge-Kutta steps make 5, 9 or at least 13 evaluations.
            warming_up = i < 4 * min(3, len(timesteps) // 4)
            take = runge_kutta_step if warming_up else multistep
        return take(timesteps.levels, i, x_t, prediction.eps, history)


def transfer(x_t: Tensor, eps: Tensor, here: NoiseLevel, there: NoiseLevel) -> Tensor:
    """From `here` to `there` along any eps, as DDIM does: arXiv:2202.09778, eq. 11."""
    onward = there.noise_rate - there.signal_rate * here.sigma
    return (there.signal_rate / here.signal_rate) * x_t + onward * eps


def multistep(
    levels: tuple[NoiseLevel, ...], i: int, x_t: Tensor, eps: Tensor, history: History
) -> tuple[Tensor, History]:
    """A step along a weighted sum of eps and up to three earlier ones (newest first)."""
    slopes = (eps, *history)
    weights = MULTISTEP_WEIGHTS[len(slopes)]  # eq. 12
    combined = sum_of(weights, slopes)
    return transfer(x_t, combined, levels[i], levels[i + 1]), slopes[:3]


def heun_step(
    levels: tuple[NoiseLevel, ...], i: int, x_t: Tensor, eps: Tensor, history: History
) -> tuple[Tensor, History]:
    """The first step, tried with the eps of its start and taken with the mean of both ends'."""
    if i == 0:
        return transfer(x_t, eps, levels[0], levels[1]), (x_t, eps)
    x_start, eps_start = history
    mean = (eps_start + eps) / 2
    return transfer(x_start, mean, levels[0], levels[2]), (eps_start,)


def runge_kutta_step(
    levels: tuple[NoiseLevel, ...], i: int, x_t: Tensor, eps: Tensor, history: History
) -> tuple[Tensor, History]:
    """One of a step's four evaluations: arXiv:2202.09778, eq. 13.

    The history holds the earlier steps' first eps, newest first, then what this step
    started from and its own eps so far.
    """
    step, evaluation = divmod(i, 4)
    earlier, current = history[:step], history[step:]
    x_start, *slopes = (*current, eps) if current else (x_t, eps)
    here, there = levels[4 * step], levels[i + 1]
    if evaluation < 3:  # to the middle, to the middle again, to the end: each with the last eps
        return transfer(x_start, eps, here, there), (*earlier, x_start, *slopes)
    combined = sum_of(RUNGE_KUTTA_WEIGHTS, slopes)
    return transfer(x_start, combined, here, there), (slopes[0], *earlier)


def sum_of(weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    total = weights[0] * slopes[0]
    for weight, slope in zip(weights[1:], slopes[1:], strict=True):
        total = total + weight * slope
    return total
