"""Timestep embedding: the noise level as a vector that every ResNet block reads."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def sinusoids(
    t: Tensor, channels: int, *, flip_sin_to_cos: bool = True, freq_shift: float = 0.0
) -> Tensor:
    """Sinusoidal embedding of timesteps: (B,) -> (B, channels), cosines and sines.

    The position encoding of arXiv:1706.03762, sec. 3.5, with `t` as the position.  The
    frequencies fall geometrically: they resolve both large differences of t and single steps.
    `t` may be fractional.  SD puts the cosines first (`flip_sin_to_cos`).
    """
    half = channels // 2
    # float32 on the way, in this order: the UNet was trained on these roundings.
    exponents = -math.log(10_000) * torch.arange(half, dtype=torch.float32, device=t.device)
    frequencies = torch.exp(exponents / (half - freq_shift))
    angles = t[:, None].float() * frequencies[None, :]
    waves = (angles.cos(), angles.sin()) if flip_sin_to_cos else (angles.sin(), angles.cos())
    embedding = torch.cat(waves, dim=-1)
    return F.pad(embedding, (0, channels - 2 * half))


def guidance_sinusoids(guidance: Tensor, channels: int) -> Tensor:
    """Embedding of guidance scales, as latent consistency models read it: (B,) -> (B, channels).

    The sinusoids of 1000 w, sines first, where the paper's w is the scale minus 1
    (arXiv:2310.04378, sec. 4.2 and appendix E).  `guidance` is float64, on the CPU.
    """
    half = channels // 2
    # float32 in this order: an angle of 6500 keeps the roundings of its frequency.
    exponents = torch.arange(half, dtype=torch.float32)
    frequencies = torch.exp(exponents * -(torch.log(torch.tensor(10_000.0)) / (half - 1)))
    angles = ((guidance - 1).float() * 1000.0)[:, None] * frequencies[None, :]
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=-1), (0, channels - 2 * half))


class TimestepEmbedding(nn.Module):
    """A two-layer MLP on the sinusoids; its output is the time embedding."""

    def __init__(
        self, in_channels: int, out_channels: int, guidance_channels: int | None = None
    ) -> None:
        """`guidance_channels`: of a latent consistency model, which reads the guidance scale."""
        super().__init__()
        self.linear_1 = nn.Linear(in_channels, out_channels)
        if guidance_channels is not None:
            self.cond_proj = nn.Linear(guidance_channels, in_channels, bias=False)
        self.linear_2 = nn.Linear(out_channels, out_channels)

    def forward(self, waves: Tensor, guidance: Tensor | None = None) -> Tensor:
        """(B, in_channels) and guidance's sinusoids (B, guidance_channels) -> (B, out_channels)"""
        if guidance is not None:
            waves = waves + self.cond_proj(guidance)
        return self.linear_2(F.silu(self.linear_1(waves)))
