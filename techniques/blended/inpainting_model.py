"""Inpainting models: a UNet that reads the mask and the masked image at every step.

Stable Diffusion's inpainting models are text-to-image models, trained on for a while with
five more channels at the UNet's door, in this order (arXiv:2112.10752, sec. 4.5, has the
idea; the order is that of the published weights):

    x_t                  4   the noisy latents, as ever
    mask                 1   1 = paint, 0 = keep, on the latent grid
    masked image       4   its VAE latents, scaled; what is to be painted is mid-grey in it

So the model is told at every step what stays, and has learnt to continue it: nothing needs
to be put back between the steps.  What it makes of the outside is a copy, not the original,
and its pixels are left to the background that `blend` is asked for.
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
    """The latents of the edited image, (B, 4, h, w): the model's own answer everywhere.

    Args:
        timestep schedule: from its full start on, the run begins with pure noise, as the model was
            trained; from midway on with the noised source.
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
