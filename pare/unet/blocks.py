"""The levels of the U: a block a level on the way down, one at the bottom, one a level up."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pare.attention import ControlledStep, Site
from pare.config import UNetConfig
from pare.unet.resnet import Downsample, ResnetBlock, Upsample
from pare.unet.transformer import SpatialTransformer


class DownBlock(nn.Module):
    """ResNet blocks, each followed by a transformer where the level has them; then halve.

    Everything it makes on the way is kept as a skip connection for the way up.
    """

    def __init__(
        self, config: UNetConfig, level: int, in_channels: int, *, attends: bool, last: bool
    ) -> None:
        super().__init__()
        channels, layers = config.block_out_channels[level], config.layers_per_block
        self.resnets = nn.ModuleList(
            resnet(config, in_channels if i == 0 else channels, channels) for i in range(layers)
        )
        if attends:
            self.attentions = nn.ModuleList(
                transformer(config, "down", level, i, f"down_blocks.{level}") for i in range(layers)
            )
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
    """The bottom of the U: ResNet block, transformer, ResNet block."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        level = len(config.block_out_channels) - 1
        channels = config.block_out_channels[level]
        self.resnets = nn.ModuleList(resnet(config, channels, channels) for _ in range(2))
        self.attentions = nn.ModuleList([transformer(config, "mid", level, 0, "mid_block")])

    def forward(
        self, x: Tensor, time: Tensor, text: Tensor, control: ControlledStep | None
    ) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)"""
        x = self.resnets[0](x, time)
        x = self.attentions[0](x, text, control)
        return self.resnets[1](x, time)


class UpBlock(nn.Module):
    """ResNet blocks that each take back one skip connection; then double.

    One more layer than on the way down: that one takes the skip of the downsampler.
    """

    def __init__(
        self,
        config: UNetConfig,
        position: int,
        in_channels: int,
        skip_channels: list[int],
        *,
        attends: bool,
        last: bool,
    ) -> None:
        """`position` counts from the bottom; `skip_channels` are the widths it takes back."""
        super().__init__()
        level = len(config.block_out_channels) - 1 - position
        channels = config.block_out_channels[level]
        self.resnets = nn.ModuleList(
            resnet(config, (in_channels if i == 0 else channels) + skip, channels)
            for i, skip in enumerate(skip_channels)
        )
        if attends:
            self.attentions = nn.ModuleList(
                transformer(config, "up", level, i, f"up_blocks.{position}")
                for i in range(len(skip_channels))
            )
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
        """x (B, in, h, w) -> (B, C, 2h, 2w).  Takes its skips off the end of `skips`."""
        for i, block in enumerate(self.resnets):
            x = block(torch.cat([x, skips.pop()], dim=1), time)
            if self.attends:
                x = self.attentions[i](x, text, control)
        if self.upsamples:
            # An odd size was rounded up on the way down: meet the skip, not its double.
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


def transformer(
    config: UNetConfig, block: str, level: int, index: int, path: str
) -> SpatialTransformer:
    name = f"{path}.attentions.{index}.transformer_blocks.0.attn1"
    return SpatialTransformer(
        config.block_out_channels[level],
        config.cross_attention_dim,
        Site(block, level, index, "self", config.heads[level], name),  # type: ignore[arg-type]
        groups=config.norm_num_groups,
        linear_projection=config.use_linear_projection,
        upcast=config.upcast_attention,
    )
