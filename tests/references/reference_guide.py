"""The published notebook's loop with a loss, written on diffusers' parts alone.

Latents are in the space of LMS throughout, as there; nothing of pare is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def reference_guide(
    unet: Any,
    vae: Any,
    scheduler: Any,
    texts: tuple[Tensor, Tensor],
    noise: Tensor,
    loss: Callable[[Tensor], Tensor],
    *,
    steps: int,
    guidance: float,
    scale: float,
    every: int,
    through_unet: bool = False,
    velocity: bool = False,
) -> tuple[Tensor, list[float]]:
    """The final latents (1, 4, h, w) and the losses seen.

    Args:
        scheduler: LMSDiscreteScheduler for eps, also where the model predicts v (`velocity`):
            then its answer is turned into eps first.
    """
    scheduler.set_timesteps(steps)
    latents = noise * scheduler.init_noise_sigma
    uncond, cond = texts
    seen = []

    def guided_eps(latents: Tensor, i: int) -> Tensor:
        t = scheduler.timesteps[i]
        entering = latents / (scheduler.sigmas[i] ** 2 + 1) ** 0.5
        both = unet(torch.cat([entering] * 2), t, torch.cat([uncond, cond])).sample
        nothing, prompt = both.chunk(2)
        answer = nothing + guidance * (prompt - nothing)
        if velocity:
            sigma = scheduler.sigmas[i]
            answer = (answer + sigma * entering) / (sigma**2 + 1) ** 0.5
        return answer

    for i, t in enumerate(scheduler.timesteps):
        sigma = scheduler.sigmas[i]
        scheduler.scale_model_input(latents, t)  # it insists
        with torch.no_grad():
            eps = guided_eps(latents, i)
        if i % every == 0:
            latents = latents.detach().requires_grad_()
            constant = guided_eps(latents, i) if through_unet else eps
            x0 = latents - sigma * constant
            images = vae.decode(x0 / vae.config.scaling_factor).sample / 2 + 0.5
            value = loss(images) * scale
            (gradient,) = torch.autograd.grad(value, latents)
            seen.append(value.item() / scale)
            latents = latents.detach() - gradient * sigma**2
        with torch.no_grad():
            latents = scheduler.step(eps, t, latents).prev_sample
    return latents, seen
