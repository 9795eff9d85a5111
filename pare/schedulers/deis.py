"""DEIS (arXiv:2204.13902, algorithm 1): eps as a polynomial in log sigma, integrated exactly.

    d x_hat / d sigma = eps,   x_hat = x_t / sqrt(alpha_bar)

is the ODE of `k_diffusion`, and the method that of `lms`, but for the polynomial's variable: the
paper's "log rho", in which eps changes evenly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from pare.schedulers.dpm_solver import DPMSolverScheduler, few_steps
from pare.schedulers.hub_config import DEISConfig
from pare.schedulers.schedule import Prediction
from pare.schedulers.scheduler import History
from pare.schedulers.timesteps import Timesteps


@dataclass(frozen=True, repr=False)
class DEIS(DPMSolverScheduler):
    """A multistep method; the run ends at the level of timestep 0."""

    name = "deis"
    config_type = DEISConfig

    config: DEISConfig

    def step(
        self,
        timesteps: Timesteps,
        i: int,
        x_t: Tensor,
        prediction: Prediction,
        history: History,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, History]:
        there, left = timesteps.levels[i + 1], len(timesteps) - i
        order = self.config.solver_order
        if self.config.lower_order_final and few_steps(timesteps):
            order = min(order, left)
        slopes = (prediction.eps, *history)[:order]  # newest first
        sigmas = [timesteps.levels[i - k].sigma for k in range(len(slopes))]
        weights = log_multistep_coefficients(sigmas, there.sigma)
        # As in LMS: the weights add up to sigma_next - sigma, so that sigma may be infinite.
        x_hat = prediction.x0 + there.sigma * slopes[0]
        for weight, slope in zip(weights[1:], slopes[1:], strict=True):
            x_hat = x_hat + weight * (slope - slopes[0])
        return there.signal_rate * x_hat, (prediction.eps, *history)[: self.config.solver_order - 1]


def log_multistep_coefficients(sigmas: Sequence[float], sigma_next: float) -> list[float]:
    """The weight of each sigma's slope in the integral from `sigmas[0]` to `sigma_next`.

    It is the integral over sigma of the node's Lagrange basis polynomial in log sigma.  A node at
    infinity has weight 0, and its factor in the others' polynomials is 1.
    """
    logs = [math.log(sigma) for sigma in sigmas]
    weights = []
    for j, node in enumerate(logs):
        others = [log for k, log in enumerate(logs) if k != j and math.isfinite(log)]
        if math.isinf(node):
            weights.append(0.0)
            continue
        scale = math.prod(node - other for other in others)
        top, bottom = (antiderivative(sigma, others) for sigma in (sigma_next, sigmas[0]))
        weights.append((top - bottom) / scale)
    return weights


def antiderivative(sigma: float, roots: Sequence[float]) -> float:
    """Of the product of (log sigma - root), for up to two roots."""
    if sigma == 0 or math.isinf(sigma):
        return sigma
    u = math.log(sigma)
    if not roots:
        return sigma
    if len(roots) == 1:
        return sigma * (u - 1 - roots[0])
    one, other = roots
    return sigma * (u**2 - 2 * u + 2 - (one + other) * (u - 1) + one * other)
