"""Blended latent diffusion on diffusers' components: the reference, free of pare.

The loop is the published tutorial's (hf_diffusers_deconstruct_core99, `blended_loop.py`) in
its order of operations, with all noise handed in.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def reference_blend(
    unet: Any,
    scheduler: Any,
    source: Tensor,
    mask: Tensor,
    uncond: Tensor,
    cond: Tensor,
    foreground_noise: Tensor,
    background_noise: Tensor,
    *,
    steps: int,
    strength: float,
    guidance: float,
) -> Tensor:
    """Clean latents (1, 4, h, w), mask (1, 1, h, w), embeddings (1, 77, C) -> edited latents."""
    text = torch.cat([uncond, cond])
    scheduler.set_timesteps(steps)
    start = int(steps * (1 - strength))
    timesteps = scheduler.timesteps[start:]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)
    latents = scheduler.add_noise(source, foreground_noise, timesteps[:1])
    for t in timesteps:
        background = scheduler.add_noise(source, background_noise, t[None])
        latents = mask * latents + (1.0 - mask) * background
        batch = scheduler.scale_model_input(torch.cat([latents] * 2), t)
        noise_uncond, noise_cond = unet(batch, t, encoder_hidden_states=text).sample.chunk(2)
        noise_pred = noise_uncond + guidance * (noise_cond - noise_uncond)
        latents = scheduler.step(noise_pred, t, latents).prev_sample
    return mask * latents + (1.0 - mask) * source
