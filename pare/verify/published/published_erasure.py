"""Concept erasure on diffusers' components: the references, free of pare.

`reference_erase` is the published tutorial's loop (hf_diffusers_deconstruct_core99,
`concept_erasure.py`) in its order of operations.  `safe_direction` and `sega_direction` are
what Safe Latent Diffusion (arXiv:2211.05105, its code: a minimum where eq. 6 has a maximum)
and SEGA (arXiv:2301.12247) put in the place of its subtraction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# step, uncond, cond, the concepts' -> guided noise
Combine = Callable[[int, Tensor, Tensor, Sequence[Tensor]], Tensor]


@torch.no_grad()
def reference_erase(
    unet: Any,
    scheduler: Any,
    source: Tensor,
    texts: Sequence[Tensor],
    noise: Tensor,
    *,
    steps: int,
    start: int,
    combine: Combine,
) -> Tensor:
    """Clean latents (1, 4, h, w), embeddings [uncond, cond, *erase] of (1, 77, C) -> latents."""
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps[start:]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)
    latents = scheduler.add_noise(source, noise, timesteps[:1])
    for i, t in enumerate(timesteps):
        batch = scheduler.scale_model_input(torch.cat([latents] * len(texts)), t)
        predicted = unet(batch, t, encoder_hidden_states=torch.cat(list(texts))).sample
        uncond, cond, *erase = predicted.chunk(len(texts))
        latents = scheduler.step(combine(i, uncond, cond, erase), t, latents).prev_sample
    return latents


def tutorial(guidance: float, weights: Sequence[float]) -> Combine:
    """u + s (c - u) - sum_i w_i (e_i - u)"""

    def combine(i: int, uncond: Tensor, cond: Tensor, erase: Sequence[Tensor]) -> Tensor:
        guided = uncond + guidance * (cond - uncond)
        for weight, predicted in zip(weights, erase, strict=True):
            guided = guided - weight * (predicted - uncond)
        return guided

    return combine


def safe(
    guidance: float, scale: float, threshold: float, warm_up: int, momentum: float, beta: float
) -> Combine:
    """Safe Latent Diffusion with one concept."""
    remembered: list[Tensor] = []

    def combine(i: int, uncond: Tensor, cond: Tensor, erase: Sequence[Tensor]) -> Tensor:
        (unsafe,) = erase
        pull = cond - uncond
        weight = torch.clamp(torch.abs(cond - unsafe) * scale, max=1.0)
        weight = torch.where(cond - unsafe >= threshold, torch.zeros_like(weight), weight)
        before = remembered[-1] if remembered else torch.zeros_like(uncond)
        push = (unsafe - uncond) * weight + momentum * before
        remembered.append(beta * before + (1 - beta) * push)
        if i >= warm_up:
            pull = pull - push
        return uncond + guidance * pull

    return combine


def sega(
    guidance: float,
    scales: Sequence[float],
    share: float,
    warm_up: int,
    momentum: float,
    beta: float,
) -> Combine:
    """SEGA with concepts that are all reversed, that is, pushed away."""
    remembered: list[Tensor] = []

    def combine(i: int, uncond: Tensor, cond: Tensor, erase: Sequence[Tensor]) -> Tensor:
        total = torch.zeros_like(uncond)
        for scale, predicted in zip(scales, erase, strict=True):
            edit = -scale * (predicted - uncond)
            for row in range(edit.shape[0]):
                for channel in range(edit.shape[1]):
                    plane = edit[row, channel].abs()
                    bound = torch.quantile(plane.flatten(), share)
                    total[row, channel] += edit[row, channel] * (plane >= bound)
        before = remembered[-1] if remembered else torch.zeros_like(uncond)
        total = total + momentum * before
        remembered.append(beta * before + (1 - beta) * total)
        guided = uncond + guidance * (cond - uncond)
        return guided + total if i >= warm_up else guided

    return combine
