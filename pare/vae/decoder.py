"""The VAE's decoder: latents to image."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from pare.config import VAEConfig
from pare.vae.vae_blocks import NORM_EPS, DecoderBlock, MidBlock


class Decoder(nn.Module):
    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = MidBlock(widths[0], groups)
        self.up_blocks = nn.ModuleList(
            DecoderBlock(
                widths[max(position - 1, 0)],
                width,
                config.layers_per_block + 1,
                groups,
                last=position == len(widths) - 1,
            )
            for position, width in enumerate(widths)
        )
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=NORM_EPS)
        self.conv_out = nn.Conv2d(widths[-1], config.out_channels, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        """(B, 4, h, w) -> (B, 3, 8h, 8w)"""
        x = self.conv_in(latents)
        x = self.mid_block(x)
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))
