"""The timesteps of a run: the noise levels that sampling visits, and how they are spaced."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pare.errors import SettingError
from pare.runtime.validation import check_strength
from pare.schedulers.hub_config import SchedulerConfig
from pare.schedulers.schedule import NoiseLevel


@dataclass(frozen=True, repr=False)
class Timesteps:
    """The noise levels of a run: the UNet is evaluated at all but the last, where it ends.

    Step `i` takes x_t at `levels[i]` to `levels[i + 1]`.  `len(timesteps)` is the number
    of model evaluations.  Index by `i`, never by t: timesteps may repeat.
    """

    levels: tuple[NoiseLevel, ...]
    initial_scale: float  # x_T is unit noise times this
    first: int = 0  # the step index that levels[0] stands at; above 0 when started midway

    def __len__(self) -> int:
        return len(self.levels) - 1

    def __repr__(self) -> str:
        start, end = self.levels[0], self.levels[-1]
        return (
            f"Timesteps({len(self)} evaluations, t {start.t:g} to {end.t:g}, "
            f"sigma {start.sigma:.4g} to {end.sigma:.4g})"
        )


def spaced_timesteps(
    config: SchedulerConfig, steps: int, *, whole: bool, drop_cleanest: bool = False
) -> list[float]:
    """`steps` training timesteps, falling, spread as in arXiv:2305.08891, table 2.

    `whole` rounds them to whole numbers.  `drop_cleanest` spreads one timestep more and
    leaves the last one out, as DPM-Solver's code does.
    """
    count = config.num_train_timesteps
    points = steps + drop_cleanest
    rising: NDArray[np.float64]
    if steps == count:
        rising = np.arange(0.0, count)  # there is only one choice
    elif config.timestep_spacing == "trailing":
        # Rounding can make arange one timestep too long, hence the cut.
        rising = np.arange(count, 0, -count / steps)[:steps].round()[::-1] - 1
    elif config.timestep_spacing == "leading":
        stride = count // points
        # With many steps there is less room than steps_offset asks for: stay in the table.
        offset = min(config.steps_offset, count - 1 - (points - 1) * stride)
        rising = np.arange(0.0, points) * stride + offset
    elif points == 1:
        rising = np.array([count - 1.0])  # a single step can only start where the noise is
    else:
        rising = np.linspace(0, count - 1, points)
    falling = (rising.round() if whole else rising)[::-1]
    timesteps: list[float] = falling[:steps].tolist()
    return timesteps


def karras_sigmas(steps: int, largest: float, smallest: float) -> list[float]:
    """`steps` sigmas from `largest` down to `smallest`, closer together as they fall."""
    rho = 7.0
    if steps == 1:
        return [largest]
    high, low = largest ** (1 / rho), smallest ** (1 / rho)
    between = [(high + k / (steps - 1) * (low - high)) ** rho for k in range(1, steps - 1)]
    return [largest, *between, smallest]  # arXiv:2206.00364, eq. 5


def spread_sigmas(spread: str, steps: int, largest: float, smallest: float) -> list[float]:
    """`steps` sigmas from `largest` down to `smallest`, as one of `hub_config.SPREADS` says."""
    if spread == "karras":
        return karras_sigmas(steps, largest, smallest)
    falling = np.linspace(1, 0, steps)
    if spread == "exponential":
        sigmas = np.exp(math.log(smallest) + falling * math.log(largest / smallest))
    else:  # many steps at both ends: quantiles of Beta(0.6, 0.6), arXiv:2407.12173
        from scipy.special import betaincinv

        sigmas = smallest + betaincinv(0.6, 0.6, falling) * (largest - smallest)
    spread_out: list[float] = sigmas.tolist()
    return spread_out


def start_index(steps: int, strength: float) -> int:
    """The step index at which a run of `steps` starts to change an image by `strength`.

    Strength 1 starts at index 0, with the most noise; at least one step is always left.

    Raises:
        SettingError: `strength` is not in (0, 1].
    """
    return steps - max(1, round(steps * check_strength(strength)))


def check_start(start: int, steps: int) -> None:
    """Raise a SettingError unless 0 <= `start` < `steps`."""
    if isinstance(start, bool) or not isinstance(start, int) or not 0 <= start < steps:
        raise SettingError(
            f"the run starts at step {start!r}", expected=f"a whole number from 0 to {steps - 1}"
        )
