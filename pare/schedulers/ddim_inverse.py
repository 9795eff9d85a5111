"""DDIM inversion (arXiv:2010.02502, sec. 4.3): the deterministic steps reversed, image to noise.

DDIM goes from x_t at a noisier level to x_next at a cleaner one with eps(x_t, t).  In reverse
x_t is the unknown, so eps(x_next, t) stands in for it: each level here has the sigma that
the latents have and the timestep that they go to.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from pare.schedulers.ddim import clipped, whole_levels
from pare.schedulers.hub_config import DDIMConfig, DDIMInverseConfig
from pare.schedulers.schedule import NoiseLevel, Prediction
from pare.schedulers.scheduler import History, Scheduler
from pare.schedulers.timesteps import Timesteps


@dataclass(frozen=True, repr=False)
class DDIMInverse(Scheduler):
    """DDIM's own levels in reverse order.  DDIM with eta 0 undoes it, approximately."""

    name = "ddim-inverse"
    config_type = DDIMInverseConfig
    makes_images = False

    config: DDIMConfig

    def levels(self, steps: int) -> tuple[NoiseLevel, ...]:
        """The `steps` levels of a whole run, cleanest first, and the noisiest at the end."""
        rising = whole_levels(self.config, self.schedule, steps)[::-1]
        evaluated = [NoiseLevel(there.t, here.sigma) for here, there in pairwise(rising)]
        return *evaluated, rising[-1]

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
