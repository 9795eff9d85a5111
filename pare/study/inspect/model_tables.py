"""The layer tables of a model's parts, for images of any size.

model = describe("sd1")
layers(model, "unet", size=(512, 512))["unet.mid_block"].flops.total
"""

from __future__ import annotations

import torch

from pare.config import TextConfig, UNetConfig, VAEConfig
from pare.study.inspect.layer_table import LayerTable, Shape, layer_table, trace
from pare.study.inspect.model_summary import ModelSummary, empty_module
from pare.vae import AutoencoderKL


def layers(
    model: ModelSummary,
    part: str,
    *,
    size: tuple[int, int] | None = None,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
) -> LayerTable:
    """The layer table of a part.

    Args:
        part: "unet", "vae" (an image encoded, and latents decoded) or "text_encoder".
        size: width and height of the images in pixels; None is the model's own.
        batch: so many images at once.  Under guidance the UNet sees each twice.
        dtype: what the weights would be cast to.

    Raises:
        ModelError: the part's config cannot be read.
    """
    config = model.config(part)
    if isinstance(config, TextConfig):
        return text_layers(config, batch, dtype)
    width, height = size or model.size
    h, w = height // model.factor, width // model.factor
    if isinstance(config, UNetConfig):
        text = text_length(model), config.cross_attention_dim
        unet = empty_module(config).to(dtype)
        return layer_table(unet, (batch, config.in_channels, h, w), 500, (batch, *text),
                           prefix="unet")  # fmt: skip
    return vae_layers(config, (batch, height, width), dtype)


def vae_layers(config: VAEConfig, shape: Shape, dtype: torch.dtype) -> LayerTable:
    """Both directions: an image (B, 3, H, W) to latents, and latents to an image."""
    batch, height, width = shape
    with torch.device("meta"):
        vae = AutoencoderKL(config).to(dtype)
    h, w = height // config.factor, width // config.factor
    image = torch.empty(batch, config.in_channels, height, width, dtype=dtype, device="meta")
    latents = torch.empty(batch, config.latent_channels, h, w, dtype=dtype, device="meta")

    def there_and_back() -> None:
        vae.encode(image)
        vae.decode(latents)

    return trace(vae, there_and_back, "vae")


def text_length(model: ModelSummary) -> int:
    part = model.parts.get("text_encoder")
    config = part.config if part is not None else None
    return config.max_position_embeddings if isinstance(config, TextConfig) else 77


def text_layers(config: TextConfig, batch: int, dtype: torch.dtype) -> LayerTable:
    """Token ids (B, 77) to embeddings."""
    encoder = empty_module(config).to(dtype)
    tokens = torch.zeros(batch, config.max_position_embeddings, dtype=torch.long, device="meta")
    return layer_table(encoder, tokens, prefix="text_encoder")
