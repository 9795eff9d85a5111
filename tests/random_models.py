"""Pairs of models, pare's and diffusers', that share one set of random weights.

The weights keep activations near unit size, so that a difference anywhere reaches the
output instead of drowning; norms get random scales and shifts, because at their usual
start (1 and 0) a forgotten one would go unseen.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from pare.config import UNetConfig, VAEConfig
from pare.unet import UNet
from pare.vae import AutoencoderKL

TINY_UNET: dict[str, Any] = {
    "act_fn": "silu",
    "attention_head_dim": 2,
    "block_out_channels": [8, 16],
    "cross_attention_dim": 12,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "in_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "out_channels": 4,
    "sample_size": 8,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}

TINY_VAE: dict[str, Any] = {
    "act_fn": "silu",
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "out_channels": 3,
    "sample_size": 16,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
}


def random_state(module: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    """Random tensors with the names and shapes of `module`'s, which may be on `meta`."""
    state = {}
    for name, tensor in module.state_dict().items():
        drawn = normals(tensor.shape, generator)
        if tensor.ndim > 1:  # a weight matrix or kernel
            drawn *= 1 / math.sqrt(tensor[0].numel())
        else:  # biases, and the scales and shifts of norms
            drawn *= 0.2
            if "norm" in name and name.endswith("weight"):
                drawn += 1
        state[name] = drawn
    return state


def normals(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Random numbers; in large tensors a million of them over and over, which is quicker."""
    count, most = shape.numel(), 1_000_003  # a prime: no two rows of a matrix are alike
    if count <= most:
        return torch.randn(shape, generator=generator)
    block = torch.randn(most, generator=generator)
    return block.repeat(math.ceil(count / most))[:count].view(shape)


def unet_pair(
    raw: dict[str, Any], seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[UNet, nn.Module]:
    """pare's and diffusers' UNet for a Hub config, with one set of tensors between them."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        ours = UNet(UNetConfig.read(raw, "the test's config"))
        theirs = UNet2DConditionModel.from_config(raw)
    share(ours, theirs, seed, dtype)
    return ours, theirs


def vae_pair(
    raw: dict[str, Any], seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[AutoencoderKL, Any]:
    """pare's and diffusers' VAE for a Hub config, with one set of tensors between them."""
    import diffusers

    with torch.device("meta"):
        ours = AutoencoderKL(VAEConfig.read(raw, "the test's config"))
        theirs = diffusers.AutoencoderKL.from_config(raw)
    share(ours, theirs, seed, dtype)
    return ours, theirs


def share(ours: nn.Module, theirs: nn.Module, seed: int, dtype: torch.dtype) -> None:
    """Fill both with the same random tensors: the same memory, not only the same values."""
    # Names and shapes are diffusers' own, so that a wrong one of pare's fails right here.
    state = random_state(theirs, torch.Generator().manual_seed(seed))
    state = {name: tensor.to(dtype) for name, tensor in state.items()}
    theirs.load_state_dict(state, strict=True, assign=True)
    ours.load_state_dict(state, strict=True, assign=True)
    ours.eval().requires_grad_(False)
    theirs.eval().requires_grad_(False)


def normal(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
