"""The variational autoencoder (arXiv:1312.6114): images to latents of 1/8 the side, and back.

Diffusion runs in its latent space (arXiv:2112.10752, sec. 3.1), because 64 x 64 x 4 values
cost far less than the 512 x 512 x 3 of the image.  Latents here are *unscaled*:
`Pipeline.encode` multiplies them by `config.scaling_factor`, `Pipeline.decode` divides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pare.config import VAEConfig
from pare.runtime.short_repr import short_repr
from pare.vae.decoder import Decoder
from pare.vae.encoder import Encoder
from pare.vae.tiling import in_tiles, tile_in_latents


@dataclass(frozen=True)
class Posterior:
    """The encoder's posterior q(z | image): a diagonal Gaussian over latents."""

    mean: Tensor
    """(B, 4, h, w)"""
    logvar: Tensor
    """(B, 4, h, w), clamped to [-30, 20] so that its exponential stays finite."""

    __repr__ = short_repr

    @classmethod
    def from_moments(cls, moments: Tensor) -> Posterior:
        mean, logvar = moments.chunk(2, dim=1)
        return cls(mean, logvar.clamp(-30.0, 20.0))

    @property
    def std(self) -> Tensor:
        return torch.exp(0.5 * self.logvar)

    def mode(self) -> Tensor:
        """The most likely latents; deterministic, as inversion needs them."""
        return self.mean

    def sample(self, generator: torch.Generator) -> Tensor:
        """Reparameterised sample, mean + std * noise (arXiv:1312.6114, eq. 10).

        The noise is drawn on the CPU in float32.
        """
        noise = torch.randn(self.mean.shape, generator=generator, dtype=torch.float32)
        return self.mean + self.std * noise.to(self.mean)

    def kl(self) -> Tensor:
        """KL divergence to the standard normal, summed over latents: (B,), in nats.

        arXiv:1312.6114, appendix B.
        """
        terms = self.mean.square() + self.logvar.exp() - 1.0 - self.logvar
        return 0.5 * terms.sum(dim=(1, 2, 3))


class AutoencoderKL(nn.Module):
    """Encoder and decoder; tensors are named as on the Hub."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        moments = 2 * config.latent_channels
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(moments, moments, 1)
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)

    def encode(self, image: Tensor, *, sliced: bool = False, tile: int | None = None) -> Posterior:
        """image (B, 3, H, W) in [-1, 1], H and W multiples of 8 -> posterior over (B, 4, H/8, W/8).

        Two ways to need less memory: `sliced` works one image of the batch at a time;
        `tile` is the side of overlapping tiles, in pixels of the image (a multiple of 8, at
        least 64).  Tiles are encoded apart, so that the result differs a little from the
        whole image's.

        Raises:
            SettingError: a `tile` that is no multiple of 8, or less than 64.
        """
        return Posterior.from_moments(self.moments(image, sliced=sliced, tile=tile))

    def moments(self, image: Tensor, *, sliced: bool = False, tile: int | None = None) -> Tensor:
        """As `encode`: the posterior's mean and log-variance, one after the other, unclamped."""
        factor = self.config.factor
        side = None if tile is None else factor * tile_in_latents(tile, factor)
        return piecewise(self.moments_whole, image, sliced, side, 1 / factor)

    def moments_whole(self, image: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(image))

    def decode(self, latents: Tensor, *, sliced: bool = False, tile: int | None = None) -> Tensor:
        """latents (B, 4, h, w), unscaled -> image (B, 3, 8h, 8w), about [-1, 1].

        `sliced` and `tile` as in `encode`; `tile` counts pixels of the image here, too.
        """
        factor = self.config.factor
        side = None if tile is None else tile_in_latents(tile, factor)
        return piecewise(self.decode_whole, latents, sliced, side, factor)

    def decode_whole(self, latents: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(latents))

    def forward(self, image: Tensor) -> Tensor:
        """The reconstruction from the posterior's mode."""
        return self.decode(self.encode(image).mode())


def piecewise(
    function: Callable[[Tensor], Tensor], x: Tensor, sliced: bool, tile: int | None, scale: float
) -> Tensor:
    """`function(x)`, all at once, image by image, or tile by tile.

    `tile` counts pixels of `x`, each of which becomes `scale` x `scale`.
    """
    if sliced and x.shape[0] > 1:
        return torch.cat(
            [piecewise(function, one, False, tile, scale) for one in x.chunk(x.shape[0])]
        )
    return function(x) if tile is None else in_tiles(function, x, tile=tile, scale=scale)
