"""SD 1.4 and SD 2.1 at their full size, with random weights: the same bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.hub_configs import SD14_UNET, SD21_UNET, SD_VAE
from tests.random_models import normal, unet_pair, vae_pair

pytestmark = pytest.mark.full


@pytest.mark.parametrize("raw", [SD14_UNET, SD21_UNET], ids=["SD 1.4", "SD 2.1"])
def test_the_unet_is_diffusers_bit_for_bit(raw: dict[str, Any]) -> None:
    ours, theirs = unet_pair(raw)
    t = torch.tensor([981, 40])
    text = normal(2, 77, raw["cross_attention_dim"], seed=2)
    with torch.no_grad():
        for size in ((8, 8), (16, 16), (9, 11)):
            x_t = normal(2, 4, *size)
            output = ours(x_t, t, text)
            assert output.std() > 0.1  # random weights, yet nothing drowned
            assert torch.equal(output, theirs(x_t, t, text).sample)


def test_the_vae_is_diffusers_bit_for_bit() -> None:
    ours, theirs = vae_pair(SD_VAE)
    with torch.no_grad():
        for size in (8, 16):
            image, latents = normal(1, 3, 8 * size, 8 * size), normal(1, 4, size, size, seed=2)
            posterior, reference = ours.encode(image), theirs.encode(image).latent_dist
            assert torch.equal(posterior.mean, reference.mean)
            assert torch.equal(posterior.std, reference.std)
            assert torch.equal(ours.decode(latents), theirs.decode(latents).sample)
