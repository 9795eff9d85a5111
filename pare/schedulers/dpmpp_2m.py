"""DPM-Solver++(2M) (arXiv:2211.01095, algorithm 2): second order in lambda_t, the half log SNR.

With h = lambda_next - lambda_t the solution is exact in x_t, and the model's x0 is
extrapolated over the step from this one and the one before:

    x_next = (sigma_next / sigma_t) x_t - alpha_next (e^-h - 1) D

alpha and sigma are the paper's: here `signal_rate` and `noise_rate`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from pare.schedulers.hub_config import DPMPlusPlusConfig
from pare.schedulers.schedule import CLEAN, NoiseLevel, Prediction
from pare.schedulers.scheduler import History, Scheduler
from pare.schedulers.timesteps import Timesteps, karras_sigmas, spaced_timesteps


@dataclass(frozen=True, repr=False)
class DPMPlusPlus2M(Scheduler):
    """A two-step method: one model evaluation per step, good from 15 steps on."""

    name = "dpm++2m"
    config_type = DPMPlusPlusConfig

    config: DPMPlusPlusConfig

    def levels(self, steps: int) -> tuple[NoiseLevel, ...]:
        schedule = self.schedule
        end = CLEAN if self.config.final_sigmas_type == "zero" else schedule.level(0)
        if not self.config.use_karras_sigmas:
            timesteps = spaced_timesteps(self.config, steps, whole=True, drop_cleanest=True)
            return *map(schedule.level, timesteps), end
        # The whole range of the training, whatever the spacing; the model is told the nearest
        # whole timestep, so that with many steps the same t comes back at another sigma.
        sigmas = karras_sigmas(steps, schedule.largest_sigma, schedule.sigmas[0])
        return *(NoiseLevel(float(round(schedule.timestep(s))), s) for s in sigmas), end

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
        denoised = prediction.x0
        h = there.lambda_t - here.lambda_t
        phi = math.expm1(-h)  # e^-h - 1
        # D = denoised: the first step of algorithm 2, which is DDIM
        x_next = (there.noise_rate / here.noise_rate) * x_t - there.signal_rate * phi * denoised

        if history and not self.ends_with_order_1(timesteps, i):
            # D = denoised + (h / 2 h_last) (denoised - denoised_last): algorithm 2's others
            (denoised_last,) = history
            h_last = here.lambda_t - timesteps.levels[i - 1].lambda_t
            change = (h / h_last) * (denoised - denoised_last)
            if self.config.solver_type == "midpoint":
                x_next = x_next - 0.5 * there.signal_rate * phi * change
            elif h > 0:  # 'heun': x0 linear in lambda, put into the integral of proposition 4.1
                x_next = x_next + there.signal_rate * (phi / h + 1) * change
        return x_next, (denoised,) if self.config.solver_order == 2 else ()

    def ends_with_order_1(self, timesteps: Timesteps, i: int) -> bool:
        """Whether step `i` is a last one that must not extrapolate."""
        if i + 1 < len(timesteps):
            return False
        steps = timesteps.first + len(timesteps)
        few = self.config.lower_order_final and steps < 15
        # At the clean level lambda is infinite: there is nothing to extrapolate to.
        return few or self.config.euler_at_final or timesteps.levels[-1].sigma == 0
