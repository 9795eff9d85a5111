"""LoRA files for tests: written by diffusers and peft, or under kohya's names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


def random_adapter(module: nn.Module, config: Any) -> None:
    """Give a module peft's layers with random numbers, the magnitudes of DoRA included."""
    from peft import inject_adapter_in_model

    inject_adapter_in_model(config, module)
    generator = torch.Generator().manual_seed(7)
    for name, parameter in module.named_parameters():
        if any(part in name for part in ("lora_", "hada_", "lokr_")):
            noise = torch.randn(parameter.shape, generator=generator)
            if "magnitude" in name:
                parameter.data.mul_(1 + 0.2 * noise.clamp(-2, 2))
            else:
                parameter.data.copy_(0.3 * noise)


def kohya(
    layers: Mapping[str, tuple[int, ...]], rank: int = 2, alpha: float | None = 1.0, seed: int = 3
) -> dict[str, Tensor]:
    """kohya's tensors for layers: name without dots, prefix included -> the weight's shape."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (outputs, inputs, *kernel) in layers.items():
        ones = [1] * len(kernel)
        tensors[f"{name}.lora_down.weight"] = 0.3 * torch.randn(
            rank, inputs, *kernel, generator=generator
        )
        tensors[f"{name}.lora_up.weight"] = 0.3 * torch.randn(
            outputs, rank, *ones, generator=generator
        )
        if alpha is not None:
            tensors[f"{name}.alpha"] = torch.tensor(alpha)
    return tensors


def named_layers(
    module: nn.Module, prefix: str, ends: Iterable[str] = ("",)
) -> dict[str, tuple[int, ...]]:
    """kohya's names of a network's linear layers and convolutions, and their weights' shapes."""
    return {
        prefix + name.replace(".", "_"): tuple(layer.weight.shape)
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and name.endswith(tuple(ends))
    }


def write_lora(path: Path, tensors: Mapping[str, Tensor], **metadata: str) -> Path:
    save_file(dict(tensors), path, metadata={"format": "pt"} | metadata)
    return path
