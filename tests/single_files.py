"""Tiny models in one file, with the names and the quirks of the real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pare.config import TextConfig, UNetConfig, VAEConfig
from pare.loading.conversion import ldm_tensors
from pare.loading.single_file import SingleFile, StoredPart
from pare.text.clip import TextEncoder
from pare.unet import UNet
from pare.vae import AutoencoderKL
from tests.random_models import TINY_UNET, TINY_VAE, random_state

# What a single file says without a config: 32 groups, 8 heads (SD 1) or heads of width 64.
UNET1: dict[str, Any] = TINY_UNET | {
    "attention_head_dim": 8,
    "block_out_channels": [32, 64],
    "norm_num_groups": 32,
    "cross_attention_dim": 64,
}
UNET2 = UNET1 | {
    "attention_head_dim": [1, 2],
    "block_out_channels": [64, 128],
    "use_linear_projection": True,
    "upcast_attention": True,
}
VAE = TINY_VAE | {"block_out_channels": [32, 64], "norm_num_groups": 32}
TEXT: dict[str, Any] = {
    "hidden_act": "quick_gelu",
    "hidden_size": 64,
    "intermediate_size": 128,
    "max_position_embeddings": 77,
    "num_attention_heads": 1,
    "num_hidden_layers": 2,
    "vocab_size": 49408,
}

SCHEDULER = {"_class_name": "PNDMScheduler", "beta_schedule": "scaled_linear"}


def hub_model(
    kind: str, device: str = "cpu", unet: Any = None, vae: Any = VAE, text: Any = None
) -> SingleFile:
    """A model under the Hub's names, random, or on `meta` without numbers."""
    unet = unet or (UNET1 if kind == "SD 1" else UNET2)
    text = text or TEXT | {"hidden_act": "quick_gelu" if kind == "SD 1" else "gelu"}
    with torch.device("meta"):
        states: dict[str, dict[str, Tensor]] = {
            "unet": UNet(UNetConfig.read(unet, "unet")).state_dict(),
            "vae": AutoencoderKL(VAEConfig.read(vae, "vae")).state_dict(),
            "text_encoder": TextEncoder(TextConfig.read(text, "it")).state_dict(),
        }
    if device != "meta":
        generator = torch.Generator().manual_seed(0)
        for name, state in states.items():
            holder = torch.nn.Module()
            holder.state_dict = lambda state=state: state  # type: ignore[assignment,method-assign]
            states[name] = random_state(holder, generator)
    configs = {"unet": unet, "vae": vae, "text_encoder": text}
    parts = {name: StoredPart(configs[name], states[name]) for name in configs}
    return SingleFile(Path("model"), kind, parts, SCHEDULER, ())


def original_checkpoint(kind: str, device: str = "cpu", **configs: Any) -> dict[str, Tensor]:
    """The same model as a training run leaves it: with its schedule, and OpenCLIP whole."""
    model = hub_model(kind, device, **configs)
    tensors, _ = ldm_tensors(model)
    width, layers = (
        model.parts["text_encoder"].config[key] for key in ("hidden_size", "num_hidden_layers")
    )
    if kind == "SD 1":
        tensors["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(
            77, device=device
        ).expand(1, -1)
    else:
        block = "cond_stage_model.model.transformer.resblocks."
        for name in [name for name in tensors if name.startswith(f"{block}0.")]:
            last = name.replace(f"{block}0.", f"{block}{layers}.")
            tensors[last] = torch.zeros_like(tensors[name])
        tensors["cond_stage_model.model.text_projection"] = torch.zeros(width, width, device=device)
        tensors["cond_stage_model.model.logit_scale"] = torch.zeros((), device=device)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, device=device) ** 2
    return tensors | {"betas": betas, "alphas_cumprod": torch.cumprod(1 - betas, 0)}


def with_average(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The checkpoint with a moving average beside the UNet: the same numbers and 1 more."""
    prefix = "model.diffusion_model."
    average = {
        "model_ema.diffusion_model" + name[len(prefix) :].replace(".", ""): tensor + 1
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
    counters = {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
    return tensors | average | counters
