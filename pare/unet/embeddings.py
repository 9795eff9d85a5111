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


class TimestepEmbedding(nn.Module):
    """A two-layer MLP on the sinusoids; its output is the time embedding."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_channels, out_channels)
        self.linear_2 = nn.Linear(out_channels, out_channels)

    def forward(self, waves: Tensor) -> Tensor:
        """(B, in_channels) -> (B, out_channels)"""
        return self.linear_2(F.silu(self.linear_1(waves)))
