"""Blended latent diffusion (arXiv:2206.02779, algorithm 1): sampling with a fixed background.

The foreground is sampled as usual.  Before each step, the latents outside the mask are
replaced by those of the *original* image, noised to the noise level of the step:

    x_t = mask * x_t + (1 - mask) * q(x_t | source)

So the model denoises the whole scene at every step, and the foreground fits its surroundings.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pare.noise import Noise
from pare.pipeline import Pipeline, Progress
from pare.schedulers import History, Timesteps, add_noise
from pare.text.text_encoder import PromptEmbeddings


@torch.no_grad()
def blend_latents(
    pipe: Pipeline,
    timesteps: Timesteps,
    prompts: PromptEmbeddings,
    source: Tensor,
    mask: Tensor,
    foreground_noise: Tensor,
    background_noise: Tensor,
    *,
    guidance: float,
    rescale: float = 0.0,
    shrink: int = 0,
    keep_history: bool = True,
    noise: Noise | None = None,
    extra: Tensor | None = None,
    progress: Progress = iter,
) -> Tensor:
    """The latents of the edited image: new inside the mask, exactly `source` outside.

    Args:
        timesteps: of `pipe.scheduler`; they may start midway, and then the foreground starts
            from the noised source and keeps something of it.
        prompts: what the foreground is to show.
        source: clean latents of the original image, (B, 4, h, w).
        mask: (1, 1, h, w), 1 = edit and 0 = keep.
        foreground_noise, background_noise: (B, 4, h, w), unit, independent of each other.
            The background keeps its noise for the whole run, so that its latents
            follow one smooth path over the noise levels, as the foreground's do.
        shrink: see `shrunken`.
        keep_history: whether a multistep solver keeps its earlier predictions across a blend.
            A blend changes x_t between steps, but only *outside* the mask; solvers act
            element-wise, and their result outside is replaced anyway.  So keeping it is
            right; without, every solver is reduced to first order.
        noise: needed by schedulers that are `stochastic`.
        extra: what an inpainting model reads beside x_t, see `techniques.blended.inpainting_model`.

    Returns:
        (B, 4, h, w)
    """
    x_t = add_noise(source, foreground_noise, timesteps.levels[0].alpha_bar)
    history: History = ()
    for i in progress(range(len(timesteps))):
        level = timesteps.levels[i]

        # The technique: arXiv:2206.02779, algorithm 1.
        background = add_noise(source, background_noise, level.alpha_bar)
        edit = shrunken(mask, shrink, i, len(timesteps))
        x_t = edit * x_t + (1 - edit) * background
        if not keep_history:
            history = ()

        prediction = pipe.predict(
            x_t, level, prompts, guidance, rescale=rescale, step=i, extra=extra
        )
        fresh = pipe.fresh_noise(noise, x_t)
        x_t, history = pipe.scheduler.step(timesteps, i, x_t, prediction, history, fresh)

    # No blend follows the last step: the background becomes the source, exactly.
    return mask * x_t + (1 - mask) * source


def shrunken(mask: Tensor, shrink: int, i: int, steps: int) -> Tensor:
    """The mask of step `i` of `steps` when it starts larger and shrinks to its own size.

    Under a thin mask the foreground is too small to develop before the blend overrides it.
    So the first of `shrink + 1` equal segments of the run works on the mask
    dilated by `shrink` latent pixels, the next by one less, the last on the mask itself
    ("progressive mask shrinking" in arXiv:2206.02779).
    """
    radius = shrink - i * (shrink + 1) // steps
    return F.max_pool2d(mask, 2 * radius + 1, stride=1, padding=radius)
