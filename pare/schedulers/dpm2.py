"""DPM-Solver-2 as k-diffusion has it (`sample_dpm_2`; arXiv:2206.00364, appendix, on 2206.00927).

    x_hat_next = x_hat + (sigma_next - sigma) * d(middle)

The slope in the middle of the step, in log sigma, stands for the whole of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from pare.schedulers.hub_config import DPM2AncestralConfig, DPM2Config, SchedulerConfig
from pare.schedulers.midpoint import MidpointHistory, MidpointScheduler
from pare.schedulers.schedule import NoiseLevel, Prediction


@dataclass(frozen=True, repr=False)
class DPM2(MidpointScheduler):
    """Second order, two evaluations a step."""

    name = "dpm2"
    config_type: ClassVar[type[SchedulerConfig]] = DPM2Config

    def levels(self, steps: int) -> tuple[NoiseLevel, ...]:
        levels = super().levels(steps)
        if self.config.spread != "karras":
            return levels
        # As diffusers: the model is told whole timesteps, but for those in the middle.
        return *(replace(level, t=float(round(level.t))) for level in levels[:-1]), levels[-1]

    def second_half(
        self,
        sigmas: tuple[float, float, float],
        start: MidpointHistory,
        prediction: Prediction,
        noise: Tensor | None,
    ) -> Tensor:
        sigma, _, sigma_next = sigmas
        sigma_down, sigma_up = self.target(sigma, sigma_next)
        d = (sigma_down - sigma) * prediction.eps
        return self.with_noise(start.x_hat, d, 1.0, sigma_up, noise)


@dataclass(frozen=True, repr=False)
class DPM2Ancestral(DPM2):
    """`sample_dpm_2_ancestral`: to sigma_down, then fresh noise up to sigma_next."""

    name = "dpm2-ancestral"
    config_type = DPM2AncestralConfig
    ancestral = True
