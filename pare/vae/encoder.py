"""The VAE's encoder: image to the mean and log-variance of the posterior over latents."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from pare.config import VAEConfig
from pare.vae.vae_blocks import NORM_EPS, EncoderBlock, MidBlock


class Encoder(nn.Module):
    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            EncoderBlock(
                widths[max(stage - 1, 0)],
                width,
                config.layers_per_block,
                groups,
                last=stage == len(widths) - 1,
            )
            for stage, width in enumerate(widths)
        )
        self.mid_block = MidBlock(widths[-1], groups)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=NORM_EPS)
        # Twice the channels: mean and log-variance.
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 8, H/8, W/8)"""
        x = self.conv_in(image)
        for block in self.down_blocks:
            x = block(x)
        x = self.mid_block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))
