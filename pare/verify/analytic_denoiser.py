"""The exact denoiser of a known distribution: a mixture of two Gaussians.

Every element of x0 is drawn from  1/2 N(LOW, SPREAD^2) + 1/2 N(HIGH, SPREAD^2).  Then x_t is
a mixture as well, and E[x0 | x_t] is the posterior-weighted mean of the components' own
(Tweedie's formula).  For equal inputs it returns equal bits, so two solvers that are rolled
out on it can only differ in what they compute themselves.

The mixture is not centred at 0: with few steps all outputs would be near 0, and a relative
error would measure rounding against a vanishing reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from pare.schedulers import NoiseSchedule

LOW, HIGH, SPREAD = -0.5, 1.5, 0.4

Denoiser = Callable[[Tensor, float], Tensor]


def denoiser(schedule: NoiseSchedule, prediction_type: str) -> Denoiser:
    """(x_t, t) -> the output of a perfectly trained model; `t` may be fractional."""
    table = schedule.alpha_bar.numpy()

    def output_at(x_t: Tensor, t: float) -> Tensor:
        alpha_bar = float(np.interp(t, np.arange(len(table)), table))
        signal, noise = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
        x = x_t.double()
        variance = alpha_bar * SPREAD**2 + noise**2  # of x_t in each component
        # The posterior probability of the upper component (Bayes' rule).
        evidence = (x - signal * LOW) ** 2 - (x - signal * HIGH) ** 2
        share = torch.sigmoid(evidence / (2 * variance))
        pull = signal * SPREAD**2 / variance
        upper = HIGH + pull * (x - signal * HIGH)
        lower = LOW + pull * (x - signal * LOW)
        x0 = share * upper + (1 - share) * lower
        if prediction_type == "sample":
            return x0.to(x_t.dtype)
        eps = (x - signal * x0) / noise
        output = eps if prediction_type == "epsilon" else signal * eps - noise * x0
        return output.to(x_t.dtype)

    return output_at
