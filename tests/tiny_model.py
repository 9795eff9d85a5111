"""A whole model folder in the Hub's layout, tiny and random: what any model looks like."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pare.config import UNetConfig, VAEConfig
from pare.unet import UNet
from pare.vae import AutoencoderKL
from tests.random_models import TINY_UNET, TINY_VAE, random_state

MODEL_INDEX: dict[str, Any] = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.2.2",
    "feature_extractor": ["transformers", "CLIPFeatureExtractor"],
    "requires_safety_checker": True,
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}

# SD 1.4's.
SCHEDULER: dict[str, Any] = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}

# Three levels, as the latent grid of diffusers' pipeline is SD's: an eighth of the side.
VAE: dict[str, Any] = TINY_VAE | {
    "block_out_channels": [8, 8, 16, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "sample_size": 64,
    "scaling_factor": 0.3,
}

TEXT: dict[str, Any] = {
    "architectures": ["CLIPTextModel"],
    "bos_token_id": 522,
    "eos_token_id": 523,
    "hidden_act": "quick_gelu",
    "hidden_size": TINY_UNET["cross_attention_dim"],
    "intermediate_size": 20,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "pad_token_id": 523,
    "torch_dtype": "float32",
    "vocab_size": 524,
}

# "snowy" and "road" are two tokens and one; any other letter is one.
MERGES = [("s", "n"), ("sn", "o"), ("r", "o"), ("a", "d</w>"), ("ro", "ad</w>"), ("w", "y</w>")]
MERGES += [("c", "a"), ("ca", "r</w>"), ("t", "h"), ("th", "e</w>")]


def write_tiny_model(folder: Path, seed: int = 0) -> Path:
    """Write the folder."""
    generator = torch.Generator().manual_seed(seed)
    write_json(folder / "model_index.json", MODEL_INDEX)
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    write_tokenizer(folder / "tokenizer")
    with torch.device("meta"):
        unet = UNet(UNetConfig.read(TINY_UNET, "the test's config"))
        vae = AutoencoderKL(VAEConfig.read(VAE, "the test's config"))
    unet_config = TINY_UNET | {"_class_name": "UNet2DConditionModel"}
    write_part(folder / "unet", unet_config, random_state(unet, generator))
    write_part(folder / "vae", VAE | {"_class_name": "AutoencoderKL"}, random_state(vae, generator))
    text = random_state(text_modules(TEXT), generator)
    text["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    write_part(folder / "text_encoder", TEXT, text, stem="model")
    return folder


def write_inpainting_model(folder: Path) -> Path:
    """Write the folder of a model whose UNet reads a mask and the masked image, too."""
    write_tiny_model(folder)
    raw = TINY_UNET | {"in_channels": 9}
    with torch.device("meta"):
        unet = UNet(UNetConfig.read(raw, "the test's config"))
    tensors = random_state(unet, torch.Generator().manual_seed(1))
    write_part(folder / "unet", raw | {"_class_name": "UNet2DConditionModel"}, tensors)
    change_json(folder / "model_index.json", _class_name="StableDiffusionInpaintPipeline")
    return folder


def text_modules(config: dict[str, Any]) -> nn.Module:
    """Modules with the names and shapes that a text encoder's file has on the Hub."""
    width, inner = config["hidden_size"], config["intermediate_size"]

    def layer() -> nn.ModuleDict:
        projections = ("q_proj", "k_proj", "v_proj", "out_proj")
        return nn.ModuleDict(
            {
                "self_attn": nn.ModuleDict({p: nn.Linear(width, width) for p in projections}),
                "layer_norm1": nn.LayerNorm(width),
                "mlp": nn.ModuleDict(
                    {"fc1": nn.Linear(width, inner), "fc2": nn.Linear(inner, width)}
                ),
                "layer_norm2": nn.LayerNorm(width),
            }
        )

    with torch.device("meta"):
        embeddings = {
            "token_embedding": nn.Embedding(config["vocab_size"], width),
            "position_embedding": nn.Embedding(config["max_position_embeddings"], width),
        }
        layers = nn.ModuleList(layer() for _ in range(config["num_hidden_layers"]))
        parts = {
            "embeddings": nn.ModuleDict(embeddings),
            "encoder": nn.ModuleDict({"layers": layers}),
            "final_layer_norm": nn.LayerNorm(width),
        }
        return nn.ModuleDict({"text_model": nn.ModuleDict(parts)})


def write_tokenizer(folder: Path) -> None:
    """CLIP's files with ten merges in place of 48,894."""
    from roads.train.train_tokenizer import write_tokenizer as write

    write(folder, MERGES)


def write_part(
    folder: Path,
    config: dict[str, Any],
    tensors: dict[str, Tensor],
    *,
    stem: str = "diffusion_pytorch_model",
) -> None:
    write_json(folder / "config.json", config)
    save_file(tensors, folder / f"{stem}.safetensors", metadata={"format": "pt"})


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")


def change_json(path: Path, **changes: object) -> None:
    """Set keys of a JSON object; a value of `...` removes the key."""
    content = json.loads(path.read_text()) | changes
    write_json(path, {key: value for key, value in content.items() if value is not ...})
