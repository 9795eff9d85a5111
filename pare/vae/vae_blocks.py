"""The VAE's building blocks.  Every norm in a VAE has eps 1e-6 (the UNet's mostly 1e-5)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from pare.attention import Attention
from pare.unet.resnet import ResnetBlock, Upsample

NORM_EPS = 1e-6


class PaddedDownsample(nn.Module):
    """Halve the resolution with a strided convolution that is padded right and below only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H / 2, W / 2)"""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class EncoderBlock(nn.Module):
    """One resolution of the encoder: ResNet blocks, then downsample."""

    def __init__(
        self, in_channels: int, out_channels: int, layers: int, groups: int, *, last: bool
    ) -> None:
        super().__init__()
        self.resnets = resnets(in_channels, out_channels, layers, groups)
        self.downsamplers = nn.ModuleList([] if last else [PaddedDownsample(out_channels)])

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        for downsample in self.downsamplers:
            x = downsample(x)
        return x


class DecoderBlock(nn.Module):
    """One resolution of the decoder: ResNet blocks, then upsample."""

    def __init__(
        self, in_channels: int, out_channels: int, layers: int, groups: int, *, last: bool
    ) -> None:
        super().__init__()
        self.resnets = resnets(in_channels, out_channels, layers, groups)
        self.upsamplers = nn.ModuleList([] if last else [Upsample(out_channels)])

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        for upsample in self.upsamplers:
            x = upsample(x)
        return x


def resnets(in_channels: int, out_channels: int, layers: int, groups: int) -> nn.ModuleList:
    """A block's ResNet blocks; the first one changes the width."""
    return nn.ModuleList(
        ResnetBlock(
            in_channels if i == 0 else out_channels, out_channels, groups=groups, eps=NORM_EPS
        )
        for i in range(layers)
    )


class PixelAttention(Attention):
    """Single-head self-attention over all pixels, with its own norm and residual.

    The VAE's only layer with a global receptive field.
    """

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__(channels, channels, heads=1, bias=True)
        self.group_norm = nn.GroupNorm(groups, channels, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """(B, C, h, w) -> (B, C, h, w)"""
        batch, channels, height, width = x.shape
        pixels = self.group_norm(x.view(batch, channels, height * width)).transpose(1, 2)
        attended = super().forward(pixels, grid=(height, width))
        return attended.transpose(1, 2).reshape(x.shape) + x


class MidBlock(nn.Module):
    """The middle, at the lowest resolution: ResNet block, attention, ResNet block."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock(channels, channels, groups=groups, eps=NORM_EPS) for _ in range(2)
        )
        self.attentions = nn.ModuleList([PixelAttention(channels, groups)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnets[0](x)
        x = self.attentions[0](x)
        return self.resnets[1](x)
