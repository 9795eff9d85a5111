"""PNDM (arXiv:2202.09778): linear multistep and Runge-Kutta weights for eps, DDIM's transfer.

Four-step Adams-Bashforth needs three earlier eps.  The paper gets them by three steps of the
Runge-Kutta kind, with four evaluations each.  Stable Diffusion's files set `skip_prk_steps`:
one step of Heun's kind with two evaluations, then multistep steps of rising order.  In
both, a step is evaluated several times from one x_t, so that the timesteps have one entry
for each evaluation and the history keeps where the step began.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor

from pare.errors import SchedulerError
from pare.schedulers.ddim import whole_levels
from pare.schedulers.hub_config import PNDMConfig
from pare.schedulers.schedule import NoiseLevel, Prediction
from pare.schedulers.scheduler import History, Scheduler
from pare.schedulers.timesteps import Timesteps

# Adams-Bashforth by order, newest first: arXiv:2202.09778, eq. 23 (order 2) and 12 (order 4).
MULTISTEP_WEIGHTS = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}
RUNGE_KUTTA_WEIGHTS = (1 / 6, 2 / 6, 2 / 6, 1 / 6)  # arXiv:2202.09778, eq. 13


class PNDMHistory(NamedTuple):
    earlier: tuple[Tensor, ...] = ()
    """The first eps of up to three steps that are complete, newest first."""
    x_start: Tensor | None = None
    """Where a step began that is still being evaluated."""
    stages: tuple[Tensor, ...] = ()
    """The eps of its evaluations so far."""


@dataclass(frozen=True, repr=False)
class PNDM(Scheduler):
    """The solver that Stable Diffusion 1's own files name."""

    name = "pndm"
    config_type = PNDMConfig
    needs_history = True

    config: PNDMConfig

    def levels(self, steps: int) -> tuple[NoiseLevel, ...]:
        return whole_levels(self.config, self.schedule, steps)

    def timesteps(self, steps: int, start: int = 0) -> Timesteps:
        """One entry for each evaluation: t0, t1, t1, t2, t3, ... with `skip_prk_steps`.

        A run that starts midway warms up where it starts.

        Raises:
            SettingError: as for every solver.
            SchedulerError: the first level has no signal.
        """
        plain = super().timesteps(steps, start)
        first, *rest = plain.levels
        if first.alpha_bar == 0:
            raise SchedulerError(
                "pndm cannot start at a level without signal (rescale_betas_zero_snr)",
                fix="use the leading spacing or the scheduler ddim",
            )
        levels = plain.levels
        if not self.config.skip_prk_steps:
            levels = self.with_runge_kutta(levels)
        elif len(plain) > 1:
            levels = (first, rest[0], *rest)
        return Timesteps(levels, plain.initial_scale, first=start)

    def with_runge_kutta(self, levels: tuple[NoiseLevel, ...]) -> tuple[NoiseLevel, ...]:
        """t0, mid, mid, t1 | t1, mid, mid, t2 | t2, mid, mid, t3 | t3, t4, ..."""
        # Three steps, each of which ends where the model can be evaluated: fewer in a short run.
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
        return take(timesteps.levels, i, x_t, prediction.eps, PNDMHistory(*history))


def transfer(x_t: Tensor, eps: Tensor, here: NoiseLevel, there: NoiseLevel) -> Tensor:
    """From `here` to `there` along any eps, as DDIM does: arXiv:2202.09778, eq. 11."""
    onward = there.noise_rate - there.signal_rate * here.sigma
    return (there.signal_rate / here.signal_rate) * x_t + onward * eps


def multistep(
    levels: tuple[NoiseLevel, ...], i: int, x_t: Tensor, eps: Tensor, history: PNDMHistory
) -> tuple[Tensor, PNDMHistory]:
    """A step along a weighted sum of eps and up to three earlier ones: eq. 12, at first 23."""
    slopes = (eps, *history.earlier)
    combined = weighted_sum(MULTISTEP_WEIGHTS[len(slopes)], slopes)
    return transfer(x_t, combined, levels[i], levels[i + 1]), PNDMHistory(slopes[:3])


def heun_step(
    levels: tuple[NoiseLevel, ...], i: int, x_t: Tensor, eps: Tensor, history: PNDMHistory
) -> tuple[Tensor, PNDMHistory]:
    """The first step, improved Euler: tried with the eps of its start, then taken with the mean
    of both ends' eps (arXiv:2202.09778, eq. 22)."""
    if i == 0:
        return transfer(x_t, eps, levels[0], levels[1]), PNDMHistory((), x_t, (eps,))
    assert history.x_start is not None
    (eps_start,) = history.stages
    mean = (eps_start + eps) / 2
    return transfer(history.x_start, mean, levels[0], levels[2]), PNDMHistory((eps_start,))


def runge_kutta_step(
    levels: tuple[NoiseLevel, ...], i: int, x_t: Tensor, eps: Tensor, history: PNDMHistory
) -> tuple[Tensor, PNDMHistory]:
    """One of a step's four evaluations: arXiv:2202.09778, eq. 13."""
    step, evaluation = divmod(i, 4)
    x_start = x_t if history.x_start is None else history.x_start
    stages = (*history.stages, eps)
    here, there = levels[4 * step], levels[i + 1]
    if evaluation < 3:  # to the middle, to the middle again, to the end: each with the last eps
        x_next = transfer(x_start, eps, here, there)
        return x_next, PNDMHistory(history.earlier, x_start, stages)
    combined = weighted_sum(RUNGE_KUTTA_WEIGHTS, stages)
    return transfer(x_start, combined, here, there), PNDMHistory((stages[0], *history.earlier))


def weighted_sum(weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    total = weights[0] * slopes[0]
    for weight, slope in zip(weights[1:], slopes[1:], strict=True):
        total = total + weight * slope
    return total
