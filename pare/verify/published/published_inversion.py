"""Inversion on diffusers' components: the references, free of pare.

`reference_invert` and `reference_sample` are the published tutorial's two loops
(hf_diffusers_deconstruct_core99, `inversion_implemention.py`) in their order of operations.
The others are what the papers' code does around diffusers' DDIMScheduler.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def reference_invert(
    unet: Any,
    inverse_scheduler: Any,
    latents: Tensor,
    text: Tensor,
    *,
    steps: int,
    visual_steps: Sequence[int] = (),
) -> tuple[Tensor, dict[int, Tensor]]:
    """Clean latents -> noise, and the latents after the chosen steps."""
    inverse_scheduler.set_timesteps(steps)
    visited = {}
    for i, t in enumerate(inverse_scheduler.timesteps):
        noise_pred = unet(latents, t, encoder_hidden_states=text).sample
        latents = inverse_scheduler.step(noise_pred, t, latents).prev_sample
        if i in visual_steps:
            visited[i] = latents.clone()
    return latents, visited


@torch.no_grad()
def reference_sample(
    unet: Any,
    scheduler: Any,
    latents: Tensor,
    text: Tensor,
    *,
    steps: int,
    visual_steps: Sequence[int] = (),
) -> tuple[Tensor, dict[int, Tensor]]:
    """Noise -> clean latents, and the latents after the chosen steps."""
    scheduler.set_timesteps(steps)
    visited = {}
    for i, t in enumerate(scheduler.timesteps):
        noise_pred = unet(latents, t, encoder_hidden_states=text).sample
        latents = scheduler.step(noise_pred, t, latents).prev_sample
        if i in visual_steps:
            visited[i] = latents.clone()
    return latents, visited


@torch.no_grad()
def reference_guided(
    unet: Any,
    scheduler: Any,
    latents: Tensor,
    unconds: Sequence[Tensor],
    cond: Tensor,
    *,
    guidance: float,
    quantile: float | None = None,
) -> Tensor:
    """Sampling with guidance and an embedding of its own for "" in each step.

    `quantile`: of the differences, those that are smaller are set to 0 (ProxNPI, l0).
    """
    scheduler.set_timesteps(len(unconds))
    for t, uncond in zip(scheduler.timesteps, unconds, strict=True):
        predicted = unet(
            torch.cat([latents] * 2), t, encoder_hidden_states=torch.cat([uncond, cond])
        )
        noise_uncond, noise_cond = predicted.sample.chunk(2)
        delta = noise_cond - noise_uncond
        if quantile is not None:
            threshold = delta.abs().quantile(quantile)
            delta = delta - delta.clamp(-threshold, threshold)
            delta = torch.where(delta > 0, delta + threshold, delta)
            delta = torch.where(delta < 0, delta - threshold, delta)
        noise_pred = noise_uncond + guidance * delta
        latents = scheduler.step(noise_pred, t, latents).prev_sample
    return latents


def reference_null_text(
    unet: Any,
    scheduler: Any,
    pivot: Sequence[Tensor],
    uncond: Tensor,
    cond: Tensor,
    *,
    guidance: float,
    inner_steps: int,
    losses: list[float] | None = None,
) -> list[Tensor]:
    """The pivot's latents, the noisiest first -> the embedding of "" for each step.

    losses: is given the last one of each step.
    """
    steps = len(pivot) - 1
    scheduler.set_timesteps(steps)
    latents, learnt = pivot[0], []
    for i, t in enumerate(scheduler.timesteps):
        uncond = uncond.clone().detach().requires_grad_(True)
        optimizer = torch.optim.Adam([uncond], lr=1e-2 * (1.0 - i / 100.0))
        with torch.no_grad():
            noise_cond = unet(latents, t, encoder_hidden_states=cond).sample
        for _ in range(inner_steps):
            noise_uncond = unet(latents, t, encoder_hidden_states=uncond).sample
            noise_pred = noise_uncond + guidance * (noise_cond - noise_uncond)
            moved = scheduler.step(noise_pred, t, latents).prev_sample
            loss = F.mse_loss(moved, pivot[i + 1])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if loss.item() < 1e-5 + i * 2e-5:
                break
        if losses is not None:
            losses.append(loss.item())
        learnt.append(uncond.detach())
        with torch.no_grad():
            noise_uncond = unet(latents, t, encoder_hidden_states=uncond).sample
            noise_pred = noise_uncond + guidance * (noise_cond - noise_uncond)
            latents = scheduler.step(noise_pred, t, latents).prev_sample
    return learnt
