"""The timestep schedule that LMS, Euler and Euler ancestral share (arXiv:2206.00364, section 3).

In sigma, the noise per unit of signal, the image's way from noise is the plain equation

    d x_hat / d sigma = eps,        x_hat = x_t / sqrt(alpha_bar) = x0 + sigma * eps

which is eq. 3 there with the model's eps put in: any textbook method solves it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pare.config import Pin, boolean
from pare.schedulers.hub_config import KARRAS_OR_PLAIN, SOLVER_KEYS, SchedulerConfig
from pare.schedulers.schedule import NoiseLevel, NoiseSchedule
from pare.schedulers.scheduler import Scheduler
from pare.schedulers.timesteps import karras_sigmas, spaced_timesteps


@dataclass(frozen=True)
class KDiffusionConfig(SchedulerConfig):
    """The keys of LMS; Euler adds one."""

    use_karras_sigmas: bool

    HUB_DEFAULTS: ClassVar[Mapping[str, object]] = {
        **SchedulerConfig.HUB_DEFAULTS,
        "timestep_spacing": "linspace",
        "use_karras_sigmas": False,
    }
    PINNED: ClassVar[Mapping[str, Pin]] = {
        "use_exponential_sigmas": KARRAS_OR_PLAIN,
        "use_beta_sigmas": KARRAS_OR_PLAIN,
    }
    UNUSED: ClassVar[frozenset[str]] = SOLVER_KEYS - {"use_karras_sigmas", *PINNED}

    @classmethod
    def normalise(cls, values: dict[str, Any], where: str) -> dict[str, Any]:
        return super().normalise(values, where) | {
            "use_karras_sigmas": boolean(values, "use_karras_sigmas", where)
        }


@dataclass(frozen=True, repr=False)
class KDiffusionScheduler(Scheduler):
    """Base of the solvers in sigma."""

    def initial_scale(self, level: NoiseLevel) -> float:
        # The leading spacing starts below the noisiest level and yet takes noise of full
        # strength; the others start with as much noise as their first level has.
        return 1.0 if self.config.timestep_spacing == "leading" else level.noise_rate


def sigma_levels(
    config: SchedulerConfig, schedule: NoiseSchedule, steps: int, *, karras: bool
) -> tuple[NoiseLevel, ...]:
    """Levels at timesteps that may be fractional, without the one where the run ends.

    `karras` spreads sigma anew over the same range; t follows from it.
    """
    timesteps = spaced_timesteps(config, steps, whole=False)
    levels = tuple(map(schedule.level, timesteps))
    if not karras:
        return levels
    largest = min(levels[0].sigma, schedule.largest_sigma)
    sigmas = karras_sigmas(steps, largest, levels[-1].sigma)
    return tuple(NoiseLevel(schedule.timestep(sigma), sigma) for sigma in sigmas)
