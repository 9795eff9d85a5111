"""k-diffusion's solvers with fresh noise as formulas in x_hat and sigma.  Knows nothing of pare.

A denoiser takes (x_hat, sigma) and gives x0.  `brownian(high, low)` is the increment of a Brownian
motion over sigma from `high` to `low`, divided by its standard deviation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor

Denoise = Callable[[Tensor, float], Tensor]
Noise = Callable[[float, float], Tensor]


def down_and_up(sigma: float, sigma_next: float) -> tuple[float, float]:
    up = min(sigma_next, math.sqrt(sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2))
    return math.sqrt(sigma_next**2 - up**2), up


def dpmpp_2s_ancestral(
    x: Tensor, sigmas: Sequence[float], denoise: Denoise, brownian: Noise
) -> Tensor:
    for sigma, sigma_next in pairwise(sigmas):
        denoised = denoise(x, sigma)
        down, up = down_and_up(sigma, sigma_next)
        if down == 0:
            x = x + (x - denoised) / sigma * (down - sigma)
        else:
            t, t_next = -math.log(sigma), -math.log(down)
            h = t_next - t
            middle = math.exp(-(t + h / 2))
            between = middle / sigma * x - math.expm1(-h / 2) * denoised
            x = down / sigma * x - math.expm1(-h) * denoise(between, middle)
        if sigma_next > 0:
            x = x + up * brownian(sigma, sigma_next)
    return x


def dpmpp_sde(x: Tensor, sigmas: Sequence[float], denoise: Denoise, brownian: Noise) -> Tensor:
    for sigma, sigma_next in pairwise(sigmas):
        denoised = denoise(x, sigma)
        if sigma_next == 0:
            x = x + (x - denoised) / sigma * (sigma_next - sigma)
            continue
        t = -math.log(sigma)
        middle = math.exp(-(t + (-math.log(sigma_next) - t) / 2))
        down, up = down_and_up(sigma, middle)
        between = down / sigma * x - math.expm1(t + math.log(down)) * denoised
        between = between + up * brownian(sigma, middle)
        denoised = denoise(between, middle)
        down, up = down_and_up(sigma, sigma_next)
        x = down / sigma * x - math.expm1(t + math.log(down)) * denoised
        x = x + up * brownian(sigma, sigma_next)
    return x


def dpmpp_3m_sde(x: Tensor, sigmas: Sequence[float], denoise: Denoise, brownian: Noise) -> Tensor:
    """With eta 1; in its second step it is the 2M SDE solver of the kind 'heun'."""
    denoised_1 = denoised_2 = None
    h_1 = h_2 = math.nan
    for sigma, sigma_next in pairwise(sigmas):
        denoised = denoise(x, sigma)
        if sigma_next == 0:
            return denoised
        h = math.log(sigma / sigma_next)
        h_eta = 2 * h
        x = math.exp(-h_eta) * x - math.expm1(-h_eta) * denoised
        phi_2 = math.expm1(-h_eta) / h_eta + 1
        if denoised_2 is not None and denoised_1 is not None:
            r0, r1 = h_1 / h, h_2 / h
            d1_0, d1_1 = (denoised - denoised_1) / r0, (denoised_1 - denoised_2) / r1
            d1 = d1_0 + (d1_0 - d1_1) * r0 / (r0 + r1)
            d2 = (d1_0 - d1_1) / (r0 + r1)
            x = x + phi_2 * d1 - (phi_2 / h_eta - 0.5) * d2
        elif denoised_1 is not None:
            x = x + phi_2 * (denoised - denoised_1) / (h_1 / h)
        x = x + sigma_next * math.sqrt(-math.expm1(-2 * h)) * brownian(sigma, sigma_next)
        denoised_1, denoised_2, h_1, h_2 = denoised, denoised_1, h, h_1
    return x
