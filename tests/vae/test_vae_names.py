"""Names, shapes and sizes of the tensors are the Hub's: checked on `meta`, without weights."""

from __future__ import annotations

import torch

from pare.config import VAEConfig
from pare.vae import AutoencoderKL
from tests.hub_configs import SD_VAE


def test_the_tensors_are_diffusers_by_name_and_shape() -> None:
    import diffusers

    with torch.device("meta"):
        ours = AutoencoderKL(VAEConfig.read(SD_VAE, "config.json")).state_dict()
        theirs = diffusers.AutoencoderKL.from_config(SD_VAE).state_dict()
    assert {name: tensor.shape for name, tensor in ours.items()} == {
        name: tensor.shape for name, tensor in theirs.items()
    }
    assert len(ours) == 248
    assert sum(tensor.numel() for tensor in ours.values()) == 83_653_863
