"""The transformer inside the UNet: self-attention among pixels, cross-attention to the prompt.

arXiv:2112.10752, sec. 3.3 and appendix E.2.1.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from pare.attention import Attention, ControlledStep

GROUP_NORM_EPS = 1e-6  # the ResNet blocks beside it have 1e-5
LAYER_NORM_EPS = 1e-5


class GEGLU(nn.Module):
    """A linear layer whose one half is multiplied by the GELU of the other (arXiv:2002.05202)."""

    def __init__(self, channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 2 * hidden_channels)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """A GEGLU to four times the width and a linear layer back, for each pixel by itself."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # The Hub's names are `net.0` and `net.2`; `net.1` was dropout.
        self.net = nn.Sequential(
            GEGLU(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention, feed-forward; each a pre-norm residual branch."""

    def __init__(self, channels: int, text_channels: int, heads: int, *, upcast: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=LAYER_NORM_EPS)
        self.attn1 = Attention(channels, channels, heads, upcast=upcast)
        self.norm2 = nn.LayerNorm(channels, eps=LAYER_NORM_EPS)
        self.attn2 = Attention(channels, text_channels, heads, upcast=upcast)
        self.norm3 = nn.LayerNorm(channels, eps=LAYER_NORM_EPS)
        self.ff = FeedForward(channels)

    def forward(
        self, x: Tensor, text: Tensor, grid: tuple[int, int], control: ControlledStep | None
    ) -> Tensor:
        """x (B, pixels, C), text (B, tokens, text_channels) -> (B, pixels, C)"""
        x = self.attn1(self.norm1(x), grid=grid, control=control) + x
        x = self.attn2(self.norm2(x), text, grid=grid, control=control) + x
        return self.ff(self.norm3(x)) + x


class SpatialTransformer(nn.Module):
    """A transformer block between two projections, on the pixels of a feature map.

    SD 1 projects with 1x1 convolutions, SD 2 with linear layers.  They compute the same, but
    their tensors differ in shape, so each kind of file needs its own.
    """

    def __init__(
        self,
        channels: int,
        text_channels: int,
        heads: int,
        *,
        groups: int,
        linear_projection: bool,
        upcast: bool,
    ) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=GROUP_NORM_EPS)
        self.proj_in = project(channels, linear_projection)
        self.transformer_blocks = nn.ModuleList(
            [TransformerBlock(channels, text_channels, heads, upcast=upcast)]
        )
        self.proj_out = project(channels, linear_projection)

    def forward(self, x: Tensor, text: Tensor, control: ControlledStep | None) -> Tensor:
        """x (B, C, h, w), text (B, tokens, text_channels) -> (B, C, h, w)"""
        height, width = x.shape[-2:]
        hidden = self.norm(x)
        if isinstance(self.proj_in, nn.Linear):
            hidden = self.proj_in(to_pixels(hidden))
        else:
            hidden = to_pixels(self.proj_in(hidden))
        for block in self.transformer_blocks:
            hidden = block(hidden, text, (height, width), control)
        if isinstance(self.proj_out, nn.Linear):
            hidden = to_grid(self.proj_out(hidden), height, width)
        else:
            hidden = self.proj_out(to_grid(hidden, height, width))
        return hidden + x


def project(channels: int, linear: bool) -> nn.Linear | nn.Conv2d:
    return nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)


def to_pixels(x: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h * w, C)"""
    batch, channels, height, width = x.shape
    return x.permute(0, 2, 3, 1).reshape(batch, height * width, channels)


def to_grid(x: Tensor, height: int, width: int) -> Tensor:
    """(B, h * w, C) -> (B, C, h, w)"""
    batch, _, channels = x.shape
    return x.view(batch, height, width, channels).permute(0, 3, 1, 2).contiguous()
