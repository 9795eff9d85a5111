"""DPM-Solver++(2S) with fresh noise, as k-diffusion has it: ancestral, and for the SDE.

    x_hat_next = denoised + (sigma_down / sigma) * (x_hat - denoised) + sigma_up * z

`denoised` is the x0 predicted in the middle of the step (arXiv:2211.01095, algorithm 1, r = 1/2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pare.schedulers.hub_config import DPM2SAncestralConfig, DPMSDEConfig, SchedulerConfig
from pare.schedulers.k_diffusion import ancestral_step
from pare.schedulers.midpoint import MidpointHistory, MidpointScheduler
from pare.schedulers.schedule import Prediction


@dataclass(frozen=True, repr=False)
class DPMPlusPlus2SAncestral(MidpointScheduler):
    """`sample_dpmpp_2s_ancestral`: second order to sigma_down, then fresh noise."""

    name = "dpm++2s-ancestral"
    config_type: ClassVar[type[SchedulerConfig]] = DPM2SAncestralConfig
    ancestral = True

    def second_half(
        self,
        sigmas: tuple[float, float, float],
        start: MidpointHistory,
        prediction: Prediction,
        noise: Tensor | None,
    ) -> Tensor:
        sigma, _, sigma_next = sigmas
        sigma_down, sigma_up = ancestral_step(sigma, sigma_next)
        denoised = prediction.x0
        d = (start.x_hat - denoised) / sigma
        return self.with_noise(denoised, d, sigma_down, sigma_up, noise)


@dataclass(frozen=True, repr=False)
class DPMPlusPlusSDE(DPMPlusPlus2SAncestral):
    """`sample_dpmpp_sde`: fresh noise in the middle too.

    The noise of a whole step contains that of its first half: both are increments of one Brownian
    motion over sigma, so that the second draw adds only what is left.
    """

    name = "dpm++sde"
    config_type = DPMSDEConfig

    def middle(self, sigma: float, sigma_next: float) -> float:
        return math.sqrt(sigma) * math.sqrt(sigma_next)

    def first_half(
        self, sigma: float, middle: float, prediction: Prediction, noise: Tensor | None
    ) -> Tensor:
        return self.with_noise(prediction.x0, prediction.eps, *ancestral_step(sigma, middle), noise)

    def kept_noise(self, noise: Tensor | None) -> Tensor | None:
        return noise

    def second_half(
        self,
        sigmas: tuple[float, float, float],
        start: MidpointHistory,
        prediction: Prediction,
        noise: Tensor | None,
    ) -> Tensor:
        sigma, middle, sigma_next = sigmas
        first, second = self.need_noise(start.noise), self.need_noise(noise)
        share = (sigma - middle) / (sigma - sigma_next)
        whole = math.sqrt(share) * first + math.sqrt(1 - share) * second
        return super().second_half(sigmas, start, prediction, whole)
