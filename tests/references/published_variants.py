"""Two published variants of inversion on diffusers' components, which only tests compare with.

Direct inversion (arXiv:2310.01506) and EDICT (arXiv:2211.12446), as the papers' code does them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


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
