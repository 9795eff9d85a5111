"""diffusers' own inpainting pipeline: the reference, free of pare."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from PIL import Image
from torch import Tensor


class ModeInpaintPipeline(diffusers.StableDiffusionInpaintPipeline):  # type: ignore[misc]
    """The pipeline as it is, but that it encodes to the posterior's mode instead of a sample,
    so that its generator draws the noise alone."""

    def _encode_vae_image(self, image: Tensor, generator: Any) -> Tensor:
        latents: Tensor = self.vae.encode(image).latent_dist.mode()
        return latents * self.vae.config.scaling_factor


def inpaint_pipeline(unet: Any, vae: Any, scheduler: Any) -> ModeInpaintPipeline:
    """Of parts without a text encoder: prompts are given as embeddings."""
    pipeline = ModeInpaintPipeline(
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def reference_inpaint(
    pipeline: Any, image: Image.Image, mask: Image.Image, seeds: list[int], **given: Any
) -> tuple[Tensor, list[Image.Image]]:
    """Edited latents (B, 4, h, w), scaled, and the images."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    latents = pipeline(
        image=image,
        mask_image=mask,
        width=image.width,
        height=image.height,
        generator=generators if len(seeds) > 1 else generators[0],
        output_type="latent",
        **given,
    ).images
    with torch.no_grad():
        decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    return latents, pipeline.image_processor.postprocess(decoded)
