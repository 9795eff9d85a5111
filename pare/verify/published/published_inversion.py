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


@torch.no_grad()
def reference_direct(
    unet: Any,
    scheduler: Any,
    way: Sequence[Tensor],
    uncond: Tensor,
    conds: Tensor,
    *,
    guidance: float,
) -> Tensor:
    """Inversion's latents, the noisiest first, and embeddings [source, target] -> latents.

    First the source's offsets in a pass of their own, then the sampling that adds them.
    """
    scheduler.set_timesteps(len(way) - 1)

    def moved(latents: Tensor, t: Tensor, texts: Tensor) -> Tensor:
        both = torch.cat([uncond.expand_as(texts), texts])
        predicted = unet(torch.cat([latents] * 2), t, encoder_hidden_states=both).sample
        noise_uncond, noise_cond = predicted.chunk(2)
        noise_pred = noise_uncond + guidance * (noise_cond - noise_uncond)
        result: Tensor = scheduler.step(noise_pred, t, latents).prev_sample
        return result

    latents, offsets = way[0], []
    for i, t in enumerate(scheduler.timesteps):
        latents = moved(latents, t, conds[:1])
        offsets.append(way[i + 1] - latents)
        latents = latents + offsets[-1]
    latents = torch.cat([way[0]] * 2)
    for i, t in enumerate(scheduler.timesteps):
        latents = moved(latents, t, conds)
        latents = torch.cat([latents[:1] + offsets[i], latents[1:]])
    return latents


@torch.no_grad()
def reference_edict(
    unet: Any,
    scheduler: Any,
    latents: Tensor,
    uncond: Tensor,
    cond: Tensor,
    *,
    steps: int,
    guidance: float,
    p: float,
    backwards: bool,
) -> tuple[Tensor, Tensor]:
    """EDICT from one pair of equal latents: forwards denoises, backwards inverts."""
    scheduler.set_timesteps(steps)
    stride = scheduler.config.num_train_timesteps // steps

    def alpha(t: int) -> Tensor:
        table = scheduler.alphas_cumprod.double()
        return table[t] if t >= 0 else table[0]

    def eps(x: Tensor, t: int) -> Tensor:
        batch, texts = torch.cat([x.float()] * 2), torch.cat([uncond, cond])
        u, c = unet(batch, t, encoder_hidden_states=texts).sample.double().chunk(2)
        return u + guidance * (c - u)

    pair = [latents.double(), latents.double()]
    order = list(enumerate(scheduler.timesteps.tolist()))
    for i, t in reversed(order) if backwards else order:
        now, then = alpha(t), alpha(t - stride)
        a = (then / now).sqrt()
        b = (1 - then).sqrt() - (then * (1 - now) / now).sqrt()
        first, second = (0, 1) if i % 2 == 0 else (1, 0)
        if backwards:
            pair[second] = (pair[second] - (1 - p) * pair[first]) / p
            pair[first] = (pair[first] - (1 - p) * pair[second]) / p
            pair[second] = (pair[second] - b * eps(pair[first], t)) / a
            pair[first] = (pair[first] - b * eps(pair[second], t)) / a
        else:
            pair[first] = a * pair[first] + b * eps(pair[second], t)
            pair[second] = a * pair[second] + b * eps(pair[first], t)
            pair[first] = p * pair[first] + (1 - p) * pair[second]
            pair[second] = p * pair[second] + (1 - p) * pair[first]
    return pair[0], pair[1]
