"""A denoiser that is known exactly: images drawn from a mixture of two Gaussians.

Every number of x0 is drawn from  1/2 N(LOW, SPREAD^2) + 1/2 N(HIGH, SPREAD^2).  Then x_t is
a mixture as well, and E[x0 | x_t] is a weighted mean of each component's own (Tweedie's
formula).  Two solvers that ask it the same question get the same bits, so that rolled out to
the end they can only differ in what they themselves compute.

The mixture is not centred at 0: with few steps all answers would be near 0, and a relative
error would measure rounding against nothing.
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
    """(x_t, t) -> what a perfectly trained model would answer; `t` may be fractional."""
    table = schedule.alpha_bar.numpy()

    def answer(x_t: Tensor, t: float) -> Tensor:
        alpha_bar = float(np.interp(t, np.arange(len(table)), table))
        signal, noise = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
        x = x_t.double()
        variance = alpha_bar * SPREAD**2 + noise**2  # of x_t in each component
        # The chance that x_t came from the upper component (Bayes' rule).
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

    return answer
