"""Sliced and tiled: a large image piece by piece."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pare.vae.tiling import in_tiles, tile_starts
from tests.random_models import TINY_VAE, normal, vae_pair


def test_sliced_is_each_image_alone_bit_for_bit() -> None:
    vae, theirs = vae_pair(TINY_VAE)
    image, latents = normal(3, 3, 16, 24), normal(3, 4, 8, 12, seed=2)
    theirs.enable_slicing()
    with torch.no_grad():
        sliced = vae.encode(image, sliced=True)
        alone = [vae.encode(one).mean for one in image.split(1)]
        assert torch.equal(sliced.mean, torch.cat(alone))
        assert torch.equal(sliced.mean, theirs.encode(image).latent_dist.mean)
        decoded = vae.decode(latents, sliced=True)
        assert torch.equal(decoded, theirs.decode(latents).sample)
        # Together or alone differs in rounding at most.
        torch.testing.assert_close(decoded, vae.decode(latents), rtol=1e-5, atol=1e-5)


def test_one_tile_is_the_whole_bit_for_bit() -> None:
    vae, _ = vae_pair(TINY_VAE)
    image, latents = normal(1, 3, 16, 12), normal(1, 4, 8, 6, seed=2)
    with torch.no_grad():
        assert torch.equal(vae.encode(image, tile=16).mean, vae.encode(image).mean)
        assert torch.equal(vae.decode(latents, tile=16), vae.decode(latents))


@pytest.mark.parametrize("sliced", [False, True])
def test_tiles_have_the_shape_of_the_whole(sliced: bool) -> None:
    vae, _ = vae_pair(TINY_VAE)
    with torch.no_grad():
        assert vae.encode(normal(2, 3, 40, 28), sliced=sliced, tile=16).mean.shape == (2, 4, 20, 14)
        assert vae.decode(normal(2, 4, 20, 14), sliced=sliced, tile=16).shape == (2, 3, 40, 28)


@pytest.mark.parametrize("size", [(17, 9), (64, 40), (8, 31), (33, 33)])
@pytest.mark.parametrize("tile", [8, 16])
def test_what_looks_at_one_pixel_has_no_seams(size: tuple[int, int], tile: int) -> None:
    """The weights of the cross-fade add up to 1 everywhere, at any size."""
    x = normal(2, 3, *size)
    torch.testing.assert_close(
        in_tiles(lambda part: 3 * part + 1, x, tile=tile, scale=1), 3 * x + 1
    )


def test_tiles_land_where_they_belong_when_the_scale_changes() -> None:
    x = normal(1, 3, 40, 24)

    def double(part: Tensor) -> Tensor:
        return F.interpolate(part, scale_factor=2, mode="nearest")

    def halve(part: Tensor) -> Tensor:
        return F.avg_pool2d(part, 2)

    torch.testing.assert_close(in_tiles(double, x, tile=16, scale=2), double(x))
    torch.testing.assert_close(in_tiles(halve, x, tile=16, scale=1 / 2), halve(x))


def test_a_seam_is_gradual() -> None:
    """Two tiles that disagree by 1 never make a step of more than a fraction between pixels."""
    calls = iter(range(100))

    def disagree(part: Tensor) -> Tensor:
        return torch.full_like(part, float(next(calls)))

    joined = in_tiles(disagree, torch.zeros(1, 1, 32, 56), tile=32, scale=1)
    assert joined.min() == 0
    assert joined.max() == 1
    # A quarter of 32 pixels to go from 0 to 1.
    assert joined.diff(dim=-1).abs().max() <= 1.5 / 8


@pytest.mark.parametrize("size", range(1, 60))
@pytest.mark.parametrize(("tile", "scale"), [(8, 8.0), (16, 0.125), (24, 0.125), (16, 0.5)])
def test_tiles_cover_everything_and_overlap(size: int, tile: int, scale: float) -> None:
    unit = max(1, round(1 / scale))
    size *= unit
    starts = tile_starts(size, tile, scale)
    assert starts[0] == 0
    assert max(starts[-1] + tile, size) == max(size, tile)
    for before, after in zip(starts, starts[1:], strict=False):
        assert before < after < before + tile
    assert all(start % unit == 0 for start in starts)
