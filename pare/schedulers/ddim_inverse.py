"""DDIM run backwards (arXiv:2010.02502, section 4.3): from an image to its noise."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from torch import Tensor

from pare.schedulers.ddim import DDIMConfig, clipped, whole_levels
from pare.schedulers.hub_config import SchedulerConfig
from pare.schedulers.schedule import NoiseLevel, Prediction
from pare.schedulers.scheduler import History, Scheduler
from pare.schedulers.timesteps import Timesteps


@dataclass(frozen=True, repr=False)
class DDIMInverse(Scheduler):
    """DDIM's own levels in reverse; the deterministic steps of `ddim` undo them, nearly.

    DDIM went from x_t at a noisier level to x_next at a cleaner one with eps(x_t, t).  On
    the way back x_t is what we look for, so eps(x_next, t) stands in for it: a level here
    has the sigma that the latents have and the t that they go to.
    """

    name: ClassVar[str] = "ddim-inverse"
    hub_class: ClassVar[str] = "DDIMInverseScheduler"
    config_type: ClassVar[type[SchedulerConfig]] = DDIMConfig
    makes_images: ClassVar[bool] = False

    config: DDIMConfig

    def levels(self, steps: int) -> tuple[NoiseLevel, ...]:
        """The `steps` levels of a whole run, cleanest first, and the noisiest at the end."""
        rising = whole_levels(self.config, self.schedule, self.config.set_alpha_to_one, steps)[::-1]
        asked = [NoiseLevel(there.t, here.sigma) for here, there in pairwise(rising)]
        return *asked, rising[-1]

    def step(
        self,
        timesteps: Timesteps,
        i: int,
        x_t: Tensor,
        prediction: Prediction,
        history: History,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, History]:
        there = timesteps.levels[i + 1]
        x0 = clipped(prediction.x0, self.config)
        return there.signal_rate * x0 + there.noise_rate * prediction.eps, ()  # eq. 12, eta = 0
