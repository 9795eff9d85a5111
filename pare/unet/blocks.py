"""The stages of the UNet: one down block and one up block per resolution, and the middle."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pare.attention import ControlledStep
from pare.config import UNetConfig
from pare.unet.resnet import Downsample, ResnetBlock, Upsample
from pare.unet.transformer import SpatialTransformer


class DownBlock(nn.Module):
    """ResNet blocks, each followed by a transformer where the stage has them; then downsample.

    Every output on the way is a skip connection to the up block of the same stage.
    """

    def __init__(
        self, config: UNetConfig, stage: int, in_channels: int, *, attends: bool, last: bool
    ) -> None:
        super().__init__()
        channels, layers = config.block_out_channels[stage], config.layers_per_block
        self.resnets = nn.ModuleList(
            resnet(config, in_channels if i == 0 else channels, channels) for i in range(layers)
        )
        if attends:
            self.attentions = nn.ModuleList(transformer(config, stage) for _ in range(layers))
        if not last:
            self.downsamplers = nn.ModuleList([Downsample(channels)])
        self.attends, self.downsamples = attends, not last

    def forward(
        self, x: Tensor, time: Tensor, text: Tensor, control: ControlledStep | None
    ) -> tuple[Tensor, list[Tensor]]:
        """x (B, in, h, w) -> x (B, C, h/2, w/2) and the skips, in the order they were made"""
        skips = []
        for i, block in enumerate(self.resnets):
            x = block(x, time)
            if self.attends:
                x = self.attentions[i](x, text, control)
            skips.append(x)
        if self.downsamples:
            x = self.downsamplers[0](x)
            skips.append(x)
        return x, skips


class MidBlock(nn.Module):
    """The middle, at the lowest resolution: ResNet block, transformer, ResNet block."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        stage = len(config.block_out_channels) - 1
        channels = config.block_out_channels[stage]
        self.resnets = nn.ModuleList(resnet(config, channels, channels) for _ in range(2))
        self.attentions = nn.ModuleList([transformer(config, stage)])

    def forward(
        self, x: Tensor, time: Tensor, text: Tensor, control: ControlledStep | None
    ) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)"""
        x = self.resnets[0](x, time)
        x = self.attentions[0](x, text, control)
        return self.resnets[1](x, time)


class UpBlock(nn.Module):
    """ResNet blocks, each on x and one skip connection concatenated; then upsample.

    One layer more than a down block has: that one takes the skip of the downsampler.
    """

    def __init__(
        self,
        config: UNetConfig,
        stage: int,
        in_channels: int,
        skip_channels: list[int],
        *,
        attends: bool,
        last: bool,
    ) -> None:
        """`skip_channels` are the widths of its skips, in the order in which it takes them."""
        super().__init__()
        channels = config.block_out_channels[stage]
        self.resnets = nn.ModuleList(
            resnet(config, (in_channels if i == 0 else channels) + skip, channels)
            for i, skip in enumerate(skip_channels)
        )
        if attends:
            self.attentions = nn.ModuleList(transformer(config, stage) for _ in skip_channels)
        if not last:
            self.upsamplers = nn.ModuleList([Upsample(channels)])
        self.attends, self.upsamples = attends, not last

    def forward(
        self,
        x: Tensor,
        skips: list[Tensor],
        time: Tensor,
        text: Tensor,
        control: ControlledStep | None,
    ) -> Tensor:
        """x (B, in, h, w) -> (B, C, 2h, 2w).  Pops its skips off the end of `skips`."""
        for i, block in enumerate(self.resnets):
            x = block(torch.cat([x, skips.pop()], dim=1), time)
            if self.attends:
                x = self.attentions[i](x, text, control)
        if self.upsamples:
            # An odd size was rounded up when it was downsampled: take the next skip's size.
            height, width = skips[-1].shape[-2:]
            x = self.upsamplers[0](x, size=(height, width))
        return x


def resnet(config: UNetConfig, in_channels: int, out_channels: int) -> ResnetBlock:
    return ResnetBlock(
        in_channels,
        out_channels,
        groups=config.norm_num_groups,
        eps=config.norm_eps,
        time_channels=config.time_channels,
    )


def transformer(config: UNetConfig, stage: int) -> SpatialTransformer:
    return SpatialTransformer(
        config.block_out_channels[stage],
        config.cross_attention_dim,
        config.heads[stage],
        groups=config.norm_num_groups,
        linear_projection=config.use_linear_projection,
        upcast=config.upcast_attention,
    )
