"""Latent consistency models (arXiv:2310.04378): x0 in one evaluation, then noise and x0 again.

The model was distilled on a run of `original_inference_steps` steps; a run of a few steps takes
some of those timesteps.  Each x0 is made noisy again up to the next level (algorithm 3).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pare.errors import SettingError
from pare.schedulers.ddim import clipped
from pare.schedulers.hub_config import LCMConfig
from pare.schedulers.schedule import CLEAN, NoiseLevel, NoiseSchedule, Prediction
from pare.schedulers.scheduler import History, Scheduler
from pare.schedulers.timesteps import Timesteps

SIGMA_DATA = 0.5


@dataclass(frozen=True, repr=False)
class LCM(Scheduler):
    """One to eight steps, for models that were distilled for it."""

    name = "lcm"
    config_type = LCMConfig

    config: LCMConfig

    @property
    def stochastic(self) -> bool:
        return True

    def levels(self, steps: int) -> tuple[NoiseLevel, ...]:
        return *distilled_levels(self.config, self.schedule, steps), CLEAN

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
        # The consistency function is x_t itself at t = 0: c_skip and c_out, section 4.1.
        scaled = here.t * self.config.timestep_scaling
        c_skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
        c_out = scaled / (scaled**2 + SIGMA_DATA**2) ** 0.5
        denoised = c_out * clipped(prediction.x0, self.config) + c_skip * x_t
        if there.sigma == 0:
            return denoised, ()
        x_next = there.signal_rate * denoised + there.noise_rate * self.need_noise(noise)
        return x_next, ()


def distilled_levels(
    config: LCMConfig, schedule: NoiseSchedule, steps: int
) -> tuple[NoiseLevel, ...]:
    """`steps` of the levels that the model was distilled at, without the one where a run ends.

    Raises:
        SettingError: more steps than there are such levels.
    """
    most = config.original_inference_steps
    if steps > most:
        raise SettingError(
            f"`steps` is {steps}", expected=f"at most {most}, as the model was distilled with"
        )
    stride = config.num_train_timesteps // most
    taken = (most - k * most // steps for k in range(steps))
    return tuple(schedule.level(number * stride - 1) for number in taken)
