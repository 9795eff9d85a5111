"""LMS, as k-diffusion's `sample_lms`: Adams-Bashforth over uneven steps of sigma.

The slope d = eps of this step and of up to three before it are joined by a polynomial in
sigma, which is integrated exactly from sigma to sigma_next.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pare.schedulers.hub_config import LMSConfig, Option, whole_number
from pare.schedulers.k_diffusion import KDiffusionScheduler, sigma_levels
from pare.schedulers.schedule import CLEAN, NoiseLevel, Prediction
from pare.schedulers.scheduler import History
from pare.schedulers.timesteps import Timesteps


@dataclass(frozen=True, repr=False)
class LMS(KDiffusionScheduler):
    """`order` is the number of slopes, this step's and earlier ones, that a step uses."""

    name = "lms"
    config_type = LMSConfig
    field_options: ClassVar[Mapping[str, Option]] = {"order": whole_number(1, 4)}

    config: LMSConfig
    order: int = 4

    def levels(self, steps: int) -> tuple[NoiseLevel, ...]:
        return *sigma_levels(self.config, self.schedule, steps), CLEAN

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
        ds = (prediction.eps, *history)[: self.order]  # newest first
        sigmas = [timesteps.levels[i - k].sigma for k in range(len(ds))]
        coefficients = linear_multistep_coefficients(sigmas, there.sigma)
        # x_hat + sum(coefficient * d), written with x_hat = denoised + sigma * ds[0]: the
        # coefficients add up to sigma_next - sigma, so that sigma itself may be infinite.
        x_hat = prediction.x0 + there.sigma * ds[0]
        for coefficient, d in zip(coefficients[1:], ds[1:], strict=True):
            x_hat = x_hat + coefficient * (d - ds[0])
        return there.signal_rate * x_hat, ds[: self.order - 1]


def linear_multistep_coefficients(sigmas: Sequence[float], sigma_next: float) -> list[float]:
    """The weight of each sigma's slope in the integral from `sigmas[0]` to `sigma_next`.

    It is the integral of the node's Lagrange basis polynomial, of degree 3 at most, for which
    Gauss-Legendre quadrature with two points is exact.  A node at infinity has weight 0,
    and its factor in the others' polynomials is 1.
    """
    middle, half = (sigmas[0] + sigma_next) / 2, (sigma_next - sigmas[0]) / 2
    points = middle - half / math.sqrt(3), middle + half / math.sqrt(3)
    coefficients = []
    for j, node in enumerate(sigmas):
        if math.isinf(node):
            coefficients.append(0.0)
            continue
        others = [s for k, s in enumerate(sigmas) if k != j and math.isfinite(s)]
        basis = [math.prod((p - other) / (node - other) for other in others) for p in points]
        coefficients.append(half * sum(basis))
    return coefficients
