"""What LMS, Euler, Heun and DPM2 share: they solve the probability flow ODE in sigma.

    d x_hat / d sigma = (x_hat - denoised) / sigma = eps          arXiv:2206.00364, eq. 1 and 3
    x_hat = x_t / sqrt(alpha_bar) = x0 + sigma * eps

`x_hat` is the variance-exploding form of the latents, k-diffusion's `x`; sigma is the noise
per unit of signal.  pare keeps latents variance-preserving, so each step ends with a
multiplication by sqrt(alpha_bar).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pare.schedulers.hub_config import SchedulerConfig
from pare.schedulers.schedule import NoiseLevel, NoiseSchedule
from pare.schedulers.scheduler import Scheduler
from pare.schedulers.timesteps import spaced_timesteps, spread_sigmas


@dataclass(frozen=True, repr=False)
class KDiffusionScheduler(Scheduler):
    """Base of the solvers in sigma."""

    def initial_scale(self, level: NoiseLevel) -> float:
        # The leading spacing starts below the noisiest level and yet takes noise of full
        # strength; the others start with as much noise as their first level has.
        return 1.0 if self.config.timestep_spacing == "leading" else level.noise_rate


def ancestral_step(sigma: float, sigma_next: float) -> tuple[float, float]:
    """sigma_down, to which the ODE is solved, and sigma_up of the fresh noise after it.

    sigma_down^2 + sigma_up^2 = sigma_next^2: k-diffusion's `get_ancestral_step`.
    """
    ratio = sigma_next / sigma
    return sigma_next * ratio, sigma_next * math.sqrt(1 - ratio**2)


def sigma_levels(
    config: SchedulerConfig, schedule: NoiseSchedule, steps: int
) -> tuple[NoiseLevel, ...]:
    """Levels at timesteps that may be fractional, without the one where the run ends.

    `config.spread` spreads sigma anew over the same range; t follows from it.
    """
    timesteps = spaced_timesteps(config, steps, whole=False)
    levels = tuple(map(schedule.level, timesteps))
    if not config.spread:
        return levels
    largest = min(levels[0].sigma, schedule.largest_sigma)
    sigmas = spread_sigmas(config.spread, steps, largest, levels[-1].sigma)
    return tuple(NoiseLevel(schedule.timestep(sigma), sigma) for sigma in sigmas)
