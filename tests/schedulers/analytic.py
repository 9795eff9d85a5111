"""A denoiser that is known exactly: images drawn from a mixture of Gaussians.

If x0 comes from sum_k weight_k N(mean_k, spread_k^2), then x_t is again such a mixture, and
the mean of x0 given x_t is a weighted sum of each component's own (Tweedie's formula).
Like a trained model it is asked with a timestep, which may be fractional, and answers as
eps, v or x0.  It computes in float64 and hands float32 back, so that two solvers that ask
it the same question get the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

Model = Callable[[Tensor, float], Tensor]

MEANS = (-0.6, 1.0, 2.2)
SPREADS = (0.45, 0.6, 0.35)
WEIGHTS = (0.3, 0.5, 0.2)


def posterior_mean(x_t: Tensor, alpha_bar: float) -> Tensor:
    """The mean of x0 given x_t, in float64."""
    x = x_t.double()[..., None]
    means = torch.tensor(MEANS, dtype=torch.float64)
    variances = torch.tensor(SPREADS, dtype=torch.float64) ** 2
    spread = alpha_bar * variances + 1 - alpha_bar  # variance of x_t in each component
    surprise = x - math.sqrt(alpha_bar) * means
    log_weights = torch.tensor(WEIGHTS, dtype=torch.float64).log() - spread.log() / 2
    share = torch.softmax(log_weights - surprise**2 / (2 * spread), dim=-1)
    component = means + math.sqrt(alpha_bar) * variances / spread * surprise
    return (share * component).sum(-1)


def images(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """x0 drawn from the mixture, in float32."""
    generator = torch.Generator().manual_seed(seed)
    count = math.prod(shape)
    component = torch.multinomial(torch.tensor(WEIGHTS), count, True, generator=generator)
    noise = torch.randn(count, generator=generator)
    return (torch.tensor(MEANS)[component] + torch.tensor(SPREADS)[component] * noise).view(shape)


def alpha_bars(config: Mapping[str, Any]) -> np.ndarray:
    """The training's alpha_bar in float64, written out again and apart from pare's."""
    count = int(config.get("num_train_timesteps", 1000))
    start, end = float(config.get("beta_start", 0.0001)), float(config.get("beta_end", 0.02))
    schedule = config.get("beta_schedule", "linear")
    if schedule == "linear":
        betas = np.linspace(start, end, count)
    elif schedule == "scaled_linear":
        betas = np.linspace(start**0.5, end**0.5, count) ** 2
    else:
        time = np.arange(count + 1) / count
        cosine = np.cos((time + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - cosine[1:] / cosine[:-1], 0.999)
    products = np.cumprod(1 - betas)
    if config.get("rescale_betas_zero_snr"):
        root = np.sqrt(products)
        products = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return products


def model(config: dict[str, object]) -> Model:
    """The exact model for a training with this config: (x_t, t) -> eps, v or x0."""
    products = alpha_bars(config)
    count = len(products)
    kind = config.get("prediction_type", "epsilon")

    def answer(x_t: Tensor, t: float) -> Tensor:
        alpha_bar = float(np.interp(float(t), np.arange(count), products))
        x0 = posterior_mean(x_t, alpha_bar)
        if kind == "sample":
            return x0.to(x_t.dtype)
        signal, noise = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
        eps = (x_t.double() - signal * x0) / noise
        return (eps if kind == "epsilon" else signal * eps - noise * x0).to(x_t.dtype)

    return answer


def exact_flow(x: float, sigma: float, target: float, mean: float, spread: float) -> float:
    """Where the probability-flow ODE takes x_hat = x_t / sqrt(alpha_bar), for one Gaussian."""
    return mean + (x - mean) * math.sqrt((spread**2 + target**2) / (spread**2 + sigma**2))
