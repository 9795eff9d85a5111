"""What the inversion of one image yields: latents at every noise level, and what sampling needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pare.runtime.short_repr import short_repr

Method = Literal[
    "ddim", "fixed-point", "null-text", "negative", "proximal", "direct", "edit-friendly", "edict"
]


@dataclass(frozen=True)
class Trace:
    """The latents of one image at every noise level, and what a method computed with them."""

    latents: Tensor
    """(steps + 1, 4, h, w), the noisiest first: entry i is the input of sampling step i, the
    last one is the image itself."""
    uncond: Tensor | None = None
    """Null-text inversion's embedding in place of the empty prompt's, for each step:
    (steps, 77, C)."""
    noise: Tensor | None = None
    """sigma * z of each of edit-friendly DDPM's steps: (steps, 4, h, w)."""
    partner: Tensor | None = None
    """EDICT's second latents, shaped as `latents`."""

    __repr__ = short_repr

    @property
    def steps(self) -> int:
        return len(self.latents) - 1

    @property
    def x_T(self) -> Tensor:
        """The inverted noise, (1, 4, h, w)."""
        return self.latents[:1]

    @property
    def source(self) -> Tensor:
        """The image's own latents, (1, 4, h, w)."""
        return self.latents[-1:]

    def after(self, step: int) -> Tensor:
        """The latents (1, 4, h, w) after the inversion's step `step`, 0 to steps - 1."""
        at = self.steps - 1 - range(self.steps)[step]
        return self.latents[at : at + 1]

    def before_sampling(self, step: int, rows: int, device: torch.device) -> Tensor:
        """The input of sampling step `step`, once for each prompt: (rows, 4, h, w)."""
        return self.latents[step].to(device).expand(rows, -1, -1, -1)
