"""The UNet: noisy latents, how noisy, and the prompt -> what the noise is.

Down the left side of a U the image shrinks and deepens, at the bottom every pixel
knows of every other, and up the right side each level gets back what the left side saw
at that resolution (arXiv:1505.04597; for diffusion arXiv:2006.11239, app. B; with text
through cross-attention arXiv:2112.10752, sec. 3.3).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pare.attention import Attention, ControlledStep, Site
from pare.config import UNetConfig
from pare.unet.blocks import DownBlock, MidBlock, UpBlock
from pare.unet.embeddings import TimestepEmbedding, sinusoids


class UNet(nn.Module):
    """Every SD 1.x / 2.x UNet; tensors are named as on the Hub."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.block_out_channels
        levels = range(len(widths))

        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(widths[0], config.time_channels)
        self.down_blocks = nn.ModuleList(
            DownBlock(
                config,
                level,
                widths[max(level - 1, 0)],
                attends=config.down_block_types[level] == "CrossAttnDownBlock2D",
                last=level == levels[-1],
            )
            for level in levels
        )
        self.mid_block = MidBlock(config)
        skips = skip_widths(config)
        self.up_blocks = nn.ModuleList(
            UpBlock(
                config,
                position,
                widths[min(level + 1, levels[-1])],
                [skips.pop() for _ in range(config.layers_per_block + 1)],
                attends=config.up_block_types[position] == "CrossAttnUpBlock2D",
                last=level == 0,
            )
            for position, level in enumerate(reversed(levels))
        )
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, widths[0], eps=config.norm_eps)
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)

    def forward(
        self,
        x_t: Tensor,
        t: Tensor | float,
        text: Tensor,
        control: ControlledStep | None = None,
    ) -> Tensor:
        """What the model was trained to predict: eps or v, in the shape of the latents.

        Args:
            x_t: latents (B, 4, h, w), variance-preserving; any h and w.
            t: training timestep in [0, 1000), one for all or (B,); may be fractional.
            text: prompt embeddings (B, 77, C).
            control: looks at attention or edits it; see `pare.attention`.

        Returns:
            (B, 4, h, w)
        """
        time = self.embed_time(t, x_t)

        x = self.conv_in(x_t)
        skips = [x]
        for down in self.down_blocks:
            x, made = down(x, time, text, control)
            skips += made

        x = self.mid_block(x, time, text, control)

        for up in self.up_blocks:
            x = up(x, skips, time, text, control)

        return self.conv_out(F.silu(self.conv_norm_out(x)))

    def embed_time(self, t: Tensor | float, x_t: Tensor) -> Tensor:
        """t, one for all or (B,) -> (B, time_channels)"""
        t = torch.as_tensor(t, device=x_t.device).expand(x_t.shape[0])
        waves = sinusoids(
            t,
            self.config.block_out_channels[0],
            flip_sin_to_cos=self.config.flip_sin_to_cos,
            freq_shift=self.config.freq_shift,
        )
        return self.time_embedding(waves.to(x_t.dtype))

    def sites(self) -> Iterator[Site]:
        """Every attention layer, in the order of execution."""
        for block in (*self.down_blocks, self.mid_block, *self.up_blocks):
            for module in block.modules():
                if isinstance(module, Attention):
                    yield module.site


def skip_widths(config: UNetConfig) -> list[int]:
    """Widths of the skip connections in the order in which the way down makes them."""
    widths = config.block_out_channels
    skips = [widths[0]]
    for level, width in enumerate(widths):
        skips += [width] * config.layers_per_block
        if level < len(widths) - 1:
            skips.append(width)  # the downsampler's
    return skips
