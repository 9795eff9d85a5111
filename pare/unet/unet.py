"""The UNet: predicts eps or v from noisy latents, a timestep and the embedded prompt.

An encoder-decoder with skip connections (arXiv:1505.04597) and cross-attention to the text
(arXiv:2112.10752, sec. 3.3), trained on noised latents (arXiv:2006.11239).  Stable Diffusion
1 at its trained size, 64 x 64 latents of 512 x 512 pixels:

    stage  grid     down block              skips            up block: x + skip -> output
                    conv_in     4 -> 320                     conv_out 320 -> 4
      0    64 x 64  R T R T   320 -> 320    320  320  320    R T R T R T  640+320 .. 320+320 -> 320
      1    32 x 32  R T R T   320 -> 640    320  640  640    R T R T R T  1280+640 .. 640+320 -> 640
      2    16 x 16  R T R T   640 -> 1280   640 1280 1280    R T R T R T  1280+1280 .. +640 -> 1280
      3     8 x 8   R R      1280 -> 1280  1280 1280 1280    R R R        1280+1280 -> 1280
                    mid_block: R T R  1280

R is a ResNet block, which also reads the embedded timestep; T a transformer, which attends to
the text.  Down a stage a strided convolution halves the resolution; up a stage interpolation
and a convolution double it.  A stage's skips are what enters it and the output of each of
its layers; each R of the up block reads x and one skip, the last made first, concatenated.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pare.attention import Attention, ControlledStep, Site
from pare.config import UNetConfig
from pare.unet.blocks import DownBlock, MidBlock, UpBlock
from pare.unet.embeddings import TimestepEmbedding, guidance_sinusoids, sinusoids


class UNet(nn.Module):
    """Every SD 1.x / 2.x UNet; tensors are named as on the Hub."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.block_out_channels
        stages = range(len(widths))

        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(
            widths[0], config.time_channels, config.time_cond_proj_dim
        )
        self.down_blocks = nn.ModuleList(
            DownBlock(
                config,
                stage,
                widths[max(stage - 1, 0)],
                attends=config.down_block_types[stage] == "CrossAttnDownBlock2D",
                last=stage == stages[-1],
            )
            for stage in stages
        )
        self.mid_block = MidBlock(config)
        skips = skip_widths(config)
        self.up_blocks = nn.ModuleList(
            UpBlock(
                config,
                stage,
                widths[min(stage + 1, stages[-1])],
                [skips.pop() for _ in range(config.layers_per_block + 1)],
                attends=config.up_block_types[position] == "CrossAttnUpBlock2D",
                last=stage == 0,
            )
            for position, stage in enumerate(reversed(stages))
        )
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, widths[0], eps=config.norm_eps)
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)

        for name, module in self.named_modules():
            if isinstance(module, Attention):
                module.site = site_of(name, len(stages), module.heads)

    def forward(
        self,
        x_t: Tensor,
        t: Tensor | float,
        text: Tensor,
        control: ControlledStep | None = None,
        guidance: Tensor | float | None = None,
    ) -> Tensor:
        """The prediction for x_t: eps or v, as the model was trained for.

        Args:
            x_t: latents (B, 4, h, w), variance-preserving; any h and w.
            t: training timestep in [0, 1000), one for all or (B,); may be fractional.
            text: prompt embeddings (B, 77, C).
            control: observes or edits attention weights; see `pare.attention`.
            guidance: the guidance scale that a latent consistency model imitates, one for all
                or (B,); None, and for every other model, is none.

        Returns:
            (B, 4, h, w)
        """
        time = self.embed_time(t, x_t, guidance)

        x = self.conv_in(x_t)
        skips = [x]
        for down in self.down_blocks:
            x, made = down(x, time, text, control)
            skips += made

        x = self.mid_block(x, time, text, control)

        for up in self.up_blocks:
            x = up(x, skips, time, text, control)

        return self.conv_out(F.silu(self.conv_norm_out(x)))

    def embed_time(
        self, t: Tensor | float, x_t: Tensor, guidance: Tensor | float | None = None
    ) -> Tensor:
        """t and a guidance scale, each one for all or (B,) -> (B, time_channels)"""
        t = torch.as_tensor(t, device=x_t.device).expand(x_t.shape[0])
        waves = sinusoids(
            t,
            self.config.block_out_channels[0],
            flip_sin_to_cos=self.config.flip_sin_to_cos,
            freq_shift=self.config.freq_shift,
        )
        if guidance is None or self.config.time_cond_proj_dim is None:
            return self.time_embedding(waves.to(x_t.dtype))
        scales = torch.as_tensor(guidance, dtype=torch.float64, device="cpu")
        embedded = guidance_sinusoids(scales.expand(x_t.shape[0]), self.config.time_cond_proj_dim)
        return self.time_embedding(waves.to(x_t.dtype), embedded.to(x_t))

    def sites(self) -> Iterator[Site]:
        """Every attention layer, in the order of execution."""
        for block in (*self.down_blocks, self.mid_block, *self.up_blocks):
            for module in block.modules():
                if isinstance(module, Attention) and module.site is not None:
                    yield module.site


PATH = re.compile(
    r"(?:(?P<down>down)|(?P<up>up)|mid)_blocks?(?:\.(?P<position>\d+))?"
    r"\.attentions\.(?P<index>\d+)\.transformer_blocks\.0\.attn(?P<kind>[12])"
)


def site_of(name: str, stages: int, heads: int) -> Site:
    """The site of the attention layer at a module path of a UNet with that many stages:
    `up_blocks.1.attentions.2.transformer_blocks.0.attn2` of four is cross-attention at stage 2."""
    path = PATH.fullmatch(name)
    assert path is not None, name
    kind: Literal["self", "cross"] = "self" if path["kind"] == "1" else "cross"
    index = int(path["index"])
    if path["down"]:
        return Site("down", int(path["position"]), index, kind, heads, name)
    if path["up"]:  # up blocks count from the lowest resolution
        return Site("up", stages - 1 - int(path["position"]), index, kind, heads, name)
    return Site("mid", stages - 1, index, kind, heads, name)


def skip_widths(config: UNetConfig) -> list[int]:
    """Widths of the skip connections, in the order in which the down blocks make them."""
    widths = config.block_out_channels
    skips = [widths[0]]
    for stage, width in enumerate(widths):
        skips += [width] * config.layers_per_block
        if stage < len(widths) - 1:
            skips.append(width)  # the downsampler's
    return skips
