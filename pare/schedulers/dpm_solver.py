"""What DPM-Solver++, UniPC and DEIS share: they solve in lambda_t, the half log SNR.

The levels of a run are whole timesteps, of which the cleanest is left out: from there DPM-Solver
goes on to the end.  Spread sigmas cover the whole range of the training, whatever the spacing.
"""

from __future__ import annotations

from dataclasses import dataclass

from pare.schedulers.hub_config import SpreadConfig
from pare.schedulers.schedule import CLEAN, NoiseLevel
from pare.schedulers.scheduler import Scheduler
from pare.schedulers.timesteps import Timesteps, spaced_timesteps, spread_sigmas


@dataclass(frozen=True, repr=False)
class DPMSolverScheduler(Scheduler):
    """Base of the solvers in lambda_t."""

    config: SpreadConfig

    def levels(self, steps: int) -> tuple[NoiseLevel, ...]:
        schedule = self.schedule
        ends_clean = getattr(self.config, "final_sigmas_type", "sigma_min") == "zero"
        end = CLEAN if ends_clean else schedule.level(0)
        if not self.config.spread:
            timesteps = spaced_timesteps(self.config, steps, whole=True, drop_cleanest=True)
            return *map(schedule.level, timesteps), end
        # The model is told the nearest whole timestep, so that with many steps the same t comes
        # back at another sigma.
        sigmas = spread_sigmas(
            self.config.spread, steps, schedule.largest_sigma, schedule.sigmas[0]
        )
        return *(NoiseLevel(float(round(schedule.timestep(s))), s) for s in sigmas), end


def few_steps(timesteps: Timesteps) -> bool:
    """Whether the whole run has fewer than 15 steps, so that it ends with lower orders."""
    return timesteps.first + len(timesteps) < 15
