"""The VAE against diffusers', bit for bit, over the space of configs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from pare.vae import Posterior
from tests.random_models import TINY_VAE, normal, vae_pair

CONFIGS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "one level": {
        "block_out_channels": [8],
        "down_block_types": ["DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D"],
    },
    "four levels": {
        "block_out_channels": [8, 8, 16, 24],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    },
    "widths that shrink": {"block_out_channels": [16, 8]},
    "three layers": {"layers_per_block": 3},
    "other channels": {"in_channels": 1, "out_channels": 2, "latent_channels": 8},
    "one group": {"norm_num_groups": 1},
    "groups of one channel": {"norm_num_groups": 8},
}


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS.keys())
def test_every_config(changes: dict[str, Any]) -> None:
    raw = TINY_VAE | changes
    ours, theirs = vae_pair(raw)
    image = normal(2, raw["in_channels"], 16, 24)
    latents = normal(2, raw["latent_channels"], 5, 3, seed=2)
    with torch.no_grad():
        posterior, reference = ours.encode(image), theirs.encode(image).latent_dist
        assert torch.equal(posterior.mean, reference.mean)
        assert torch.equal(posterior.logvar, reference.logvar)
        assert torch.equal(ours.decode(latents), theirs.decode(latents).sample)


@pytest.mark.parametrize("size", [(8, 8), (9, 15), (2, 3), (17, 4)])
def test_every_size(size: tuple[int, int]) -> None:
    ours, theirs = vae_pair(TINY_VAE)
    image, latents = normal(1, 3, *size), normal(1, 4, *size, seed=2)
    with torch.no_grad():
        assert torch.equal(ours.encode(image).mean, theirs.encode(image).latent_dist.mean)
        assert torch.equal(ours.decode(latents), theirs.decode(latents).sample)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype: torch.dtype) -> None:
    """The same operations in the same order give the same bits in every number type."""
    ours, theirs = vae_pair(TINY_VAE, dtype=dtype)
    image, latents = normal(1, 3, 16, 16, dtype=dtype), normal(1, 4, 8, 8, seed=2, dtype=dtype)
    with torch.no_grad():
        mean, image = ours.encode(image).mean, theirs.encode(image).latent_dist.mean
        assert mean.dtype == dtype
        assert torch.equal(mean, image)
        assert torch.equal(ours.decode(latents), theirs.decode(latents).sample)


def test_the_posterior_is_diffusers() -> None:
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    # Log-variances that reach beyond both ends of the clamp.
    moments = torch.cat([normal(2, 4, 5, 3), 20 * normal(2, 4, 5, 3, seed=2)], dim=1)
    ours, theirs = Posterior.from_moments(moments), DiagonalGaussianDistribution(moments)
    assert ours.logvar.min() == -30
    assert ours.logvar.max() == 20
    assert torch.equal(ours.mean, theirs.mean)
    assert torch.equal(ours.std, theirs.std)
    assert torch.equal(ours.mode(), theirs.mode())
    drawn = ours.sample(torch.Generator().manual_seed(7))
    assert torch.equal(drawn, theirs.sample(torch.Generator().manual_seed(7)))
    torch.testing.assert_close(ours.kl(), theirs.kl())


def test_a_sample_is_the_mean_and_as_much_noise_as_std_says() -> None:
    posterior = Posterior(torch.full((1, 4, 64, 64), 3.0), torch.full((1, 4, 64, 64), -2.0))
    drawn = posterior.sample(torch.Generator().manual_seed(0))
    assert drawn.mean().item() == pytest.approx(3.0, abs=0.02)
    assert drawn.std().item() == pytest.approx(torch.tensor(-1.0).exp().item(), rel=0.02)


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    """Any SD VAE, small."""
    levels, groups = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 4]))
    return {
        # Two channels a group at least: GroupNorm refuses a group of a single number.
        "block_out_channels": [2 * groups * draw(st.integers(1, 2)) for _ in range(levels)],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "in_channels": draw(st.integers(1, 4)),
        "out_channels": draw(st.integers(1, 4)),
        "latent_channels": draw(st.integers(1, 5)),
        "layers_per_block": draw(st.integers(1, 2)),
        "norm_num_groups": groups,
        "sample_size": 16,
    }


# Shrinking an example would build hundreds of VAEs; a config of this size reads well as it is.
@settings(max_examples=20, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(
    raw=configs(), batch=st.integers(1, 3), size=st.tuples(st.integers(4, 11), st.integers(4, 11))
)
def test_any_config(raw: dict[str, Any], batch: int, size: tuple[int, int]) -> None:
    ours, theirs = vae_pair(raw)
    image = normal(batch, raw["in_channels"], *size)
    latents = normal(batch, raw["latent_channels"], *size, seed=2)
    with torch.no_grad():
        assert torch.equal(ours.encode(image).mean, theirs.encode(image).latent_dist.mean)
        assert torch.equal(ours.decode(latents), theirs.decode(latents).sample)
