"""The algorithm: denoise the whole image, and put what is to stay back before every look.

The foreground is denoised by the model, as ever.  Before each step, everything outside the
mask is replaced by the *original* image, noised to the very level at which the foreground
is.  So the model always sees the whole scene, and what it paints grows into it.
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
        timestep schedule: of `pipe.scheduler`; it may start midway, and then the foreground starts
            from the noised source and keeps something of it.
        prompts: what the foreground is to show.
        source: clean latents of the original image, (B, 4, h, w).
        mask: (1, 1, h, w), 1 = edit and 0 = keep.
        foreground_noise, background_noise: (B, 4, h, w), unit, independent of each other.
            The background keeps its noise for the whole run, so that from level to level it
            moves on one smooth path, as the foreground does.
        shrink: see `shrunken`.
        keep_history: whether a multistep solver remembers earlier steps across a blend.
            A blend changes x_t behind the solver's back, but only *outside* the mask; solvers
            work pixel by pixel, and what they make of the outside is replaced anyway.  So to
            keep it is right; without, every solver becomes its first-order self.
        noise: needed by schedulers that are `stochastic`.
        extra: what an inpainting model reads beside x_t, see `techniques.blended.inpainting_model`.

    Returns:
        (B, 4, h, w)
    """
    x_t = add_noise(source, foreground_noise, timesteps.levels[0].alpha_bar)
    history: History = ()
    for i in progress(range(len(timesteps))):
        level = timesteps.levels[i]

        # The whole idea.  algorithm 1 of arXiv:2206.02779
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

    # The last step has no blend behind it: pin the background to what it was.
    return mask * x_t + (1 - mask) * source


def shrunken(mask: Tensor, shrink: int, i: int, steps: int) -> Tensor:
    """The mask of step `i` of `steps` when it starts larger and shrinks to its own size.

    A thin mask leaves the model nothing to work on: what it begins there is overruled from
    all sides.  So the first of `shrink + 1` equal segments of the run works on the mask
    dilated by `shrink` latent pixels, the next by one less, the last on the mask itself
    ("progressive mask shrinking" in arXiv:2206.02779).
    """
    radius = shrink - i * (shrink + 1) // steps
    return F.max_pool2d(mask, 2 * radius + 1, stride=1, padding=radius)
