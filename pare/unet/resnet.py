"""ResNet blocks and the convolutions that change resolution."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class ResnetBlock(nn.Module):
    """norm, SiLU, conv, + time, norm, SiLU, conv, + input        (arXiv:1512.03385, 2006.11239)

    The block that does most of the work in the UNet and in the VAE.  The VAE's has no
    time (`time_channels=None`): it does not care how noisy anything is.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        groups: int,
        eps: float,
        time_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = (
            nn.Linear(time_channels, out_channels) if time_channels is not None else None
        )
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        # Where the width changes, the residual has to change with it.
        self.conv_shortcut = (
            nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None
        )

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """x (B, in, h, w), time (B, time_channels) -> (B, out, h, w)"""
        hidden = self.conv1(F.silu(self.norm1(x)))
        if self.time_emb_proj is not None and time is not None:
            # One number per channel, the same for every pixel: "this is how noisy it is".
            hidden = hidden + self.time_emb_proj(F.silu(time))[:, :, None, None]
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x)
        return x + hidden


class Downsample(nn.Module):
    """Halve the resolution with a strided convolution; odd sizes round up."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, ceil(h / 2), ceil(w / 2))"""
        return self.conv(x)


class Upsample(nn.Module):
    """Double the resolution: repeat every pixel, then smooth with a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """(B, C, h, w) -> (B, C, *size).

        `size` is twice the input's unless a level on the way down had an odd size:
        then it is the size of the skip connection that the result will meet.
        """
        height, width = x.shape[-2:]
        return self.conv(F.interpolate(x, size=size or (2 * height, 2 * width), mode="nearest"))
