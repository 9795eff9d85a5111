"""LMS: Adams-Bashforth over uneven steps of sigma, as in k-diffusion's `sample_lms`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pare.schedulers.hub_config import SchedulerConfig
from pare.schedulers.k_diffusion import KDiffusionConfig, KDiffusionScheduler, sigma_levels
from pare.schedulers.schedule import CLEAN, NoiseLevel, Prediction
from pare.schedulers.scheduler import History, Scheduler
from pare.schedulers.timesteps import Timesteps


@dataclass(frozen=True, repr=False)
class LMS(KDiffusionScheduler):
    """`order` is the number of slopes, this step's and earlier ones, that a step uses."""

    name: ClassVar[str] = "lms"
    hub_class: ClassVar[str] = "LMSDiscreteScheduler"
    config_type: ClassVar[type[SchedulerConfig]] = KDiffusionConfig
    hub_options: ClassVar[Mapping[str, str]] = {
        **Scheduler.hub_options,
        "karras": "use_karras_sigmas",
    }
    highest_order: ClassVar[int] = 4

    config: KDiffusionConfig
    order: int = 4

    def levels(self, steps: int) -> tuple[NoiseLevel, ...]:
        karras = self.config.use_karras_sigmas
        return *sigma_levels(self.config, self.schedule, steps, karras=karras), CLEAN

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
        slopes = (prediction.eps, *history)[: self.order]  # newest first
        sigmas = [timesteps.levels[i - k].sigma for k in range(len(slopes))]
        weights = adams_bashforth(sigmas, there.sigma)
        # x_hat + sum of weights * slopes, where x_hat = x0 + sigma * slopes[0] and the weights
        # add up to the change of sigma; in this form sigma itself may be infinite.
        x_hat = prediction.x0 + there.sigma * slopes[0]
        for weight, slope in zip(weights[1:], slopes[1:], strict=True):
            x_hat = x_hat + weight * (slope - slopes[0])
        return there.signal_rate * x_hat, slopes[: self.order - 1]


def adams_bashforth(nodes: Sequence[float], end: float) -> list[float]:
    """The weight of each node's slope in the integral from `nodes[0]` to `end`.

    The slopes are joined by a polynomial; a node's weight is the integral of its Lagrange
    basis polynomial.  Up to degree 3, Gauss' rule with two points is exact.  A node at
    infinity has no weight, and its factor in the others' polynomials is 1.
    """
    middle, half = (nodes[0] + end) / 2, (end - nodes[0]) / 2
    weights = []
    for node in nodes:
        others = [other for other in nodes if other != node and math.isfinite(other)]
        if math.isinf(node):
            weights.append(0.0)
            continue
        points = (middle - half / math.sqrt(3), middle + half / math.sqrt(3))
        basis = [math.prod((p - other) / (node - other) for other in others) for p in points]
        weights.append(half * sum(basis))
    return weights
