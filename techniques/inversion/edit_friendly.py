"""Edit-friendly DDPM inversion (arXiv:2304.06140): the noise of each DDPM step, solved for.

DDPM draws fresh noise z in each step:

    x_next = mean(x_t) + sigma * z

The image is noised to every noise level, with independent noise at each, so that latents of
neighbouring levels are further apart than in sampling.  Then z is solved for (section 3).  It
is not white noise: it holds the image's structure.  With the prompt and guidance of the
inversion, sampling reproduces the image up to rounding; another prompt changes the mean alone.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from pare.noise import Noise
from pare.pipeline import Pipeline, Progress
from pare.schedulers import add_noise
from pare.schedulers.ddim import DDIM
from pare.text.text_encoder import PromptEmbeddings
from techniques.inversion.ddim_inversion import solvers
from techniques.inversion.latent_trace import Trace

GUIDANCE = 3.5  # of the inversion; the paper edits at 15


@torch.no_grad()
def invert(
    pipe: Pipeline,
    x0: Tensor,
    prompts: PromptEmbeddings,
    steps: int,
    guidance: float = GUIDANCE,
    *,
    noise: Noise,
    progress: Progress = iter,
) -> Trace:
    """The image at every noise level, and sigma * z of every step (the trace's `noise`).

    `noise` is drawn from once for each level, the noisiest first.
    """
    ddpm = ddpm_solver(pipe)
    timesteps = ddpm.timesteps(steps)
    levels = timesteps.levels[:-1]
    shape = tuple(x0.shape[1:])
    latents = [add_noise(x0, noise.draw(shape), level.alpha_bar) for level in levels] + [x0]
    solved = []
    for i in progress(range(steps)):
        prediction = pipe.predict(latents[i], levels[i], prompts, guidance, step=i)
        mean, _ = ddpm.step(timesteps, i, latents[i], prediction, (), noise=torch.zeros_like(x0))
        solved.append(latents[i + 1] - mean)
        # Where sampling arrives in floating point, so that rounding does not add up.
        latents[i + 1] = mean + solved[i]
    return Trace(torch.cat(latents), noise=torch.cat(solved))


def ddpm_solver(pipe: Pipeline) -> DDIM:
    """DDPM at DDIM's noise levels: eta 1."""
    return dataclasses.replace(solvers(pipe)[0], eta=1.0)
