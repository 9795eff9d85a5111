"""Inpainting models: a UNet conditioned on the mask and the masked image (arXiv:2112.10752).

Stable Diffusion's inpainting models are text-to-image models, fine-tuned with five more input
channels (sec. 4.5 has the idea; the order is that of the published weights):

    x_t            4   the noisy latents
    mask           1   1 = paint, 0 = keep, on the latent grid
    masked image   4   its VAE latents, scaled; the region to paint is mid-grey in it

Every step is conditioned on the kept pixels, so no blend is needed between the steps.  The output
outside the mask is a copy, not the original; `blend`'s `background` decides what becomes of it.
"""

from __future__ import annotations

from torch import Tensor

from pare.noise import Noise
from pare.pipeline import Pipeline, Progress
from pare.schedulers import Timesteps, add_noise
from pare.text.text_encoder import PromptEmbeddings


def masked_image(image: Tensor, edit: Tensor) -> Tensor:
    """image (1, 3, H, W) in [-1, 1] with 0, mid-grey, where edit (1, 1, H, W) is 1."""
    return image * (1 - edit)


def inpaint_latents(
    pipe: Pipeline,
    timesteps: Timesteps,
    prompts: PromptEmbeddings,
    source: Tensor,
    foreground_noise: Tensor,
    *,
    extra: Tensor,
    guidance: float,
    rescale: float = 0.0,
    noise: Noise | None = None,
    progress: Progress = iter,
) -> Tensor:
    """The latents of the edited image, (B, 4, h, w): the model's own output everywhere.

    Args:
        timesteps: a full run starts with pure noise, as the model was trained; one that starts
            midway with the noised source.
        source: clean latents of the original image, (B, 4, h, w).
        foreground_noise: (B, 4, h, w), unit.
        extra: mask and masked image's latents, (B, 5, h, w) or (1, 5, h, w).
        noise: needed by schedulers that are `stochastic`.
    """
    if timesteps.first == 0:
        x_t = foreground_noise * timesteps.initial_scale
    else:
        x_t = add_noise(source, foreground_noise, timesteps.levels[0].alpha_bar)
    return pipe.denoise(
        x_t,
        timesteps,
        prompts,
        guidance=guidance,
        rescale=rescale,
        noise=noise,
        extra=extra,
        progress=progress,
    )
