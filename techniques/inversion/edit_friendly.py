"""Edit-friendly DDPM inversion (arXiv:2304.06140): noise that carries the image.

DDPM draws fresh noise z in each step:

    x_next = mean(x_t) + sigma * z

The image is noised to every level, each time with noise of its own, so that neighbouring
levels are further apart than in any run of the model.  Then z is solved for.  It is far
from white, holds the image's structure, and gives the image back exactly: from the
prompt and the guidance that it was solved with, rounding apart; another prompt changes the
mean, and what z holds stays.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from pare.attention import Control
from pare.noise import Noise
from pare.pipeline import Pipeline, Progress
from pare.schedulers import add_noise
from pare.schedulers.ddim import DDIM
from pare.text.text_encoder import PromptEmbeddings
from techniques.inversion.ddim import Watch, solvers
from techniques.inversion.trace import Trace

GUIDANCE = 3.5  # of the inversion; the paper edits at 15
SKIP = 0.36  # the paper's share of the steps that an edit leaves out: what it keeps is layout


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
    """The image at every level, and sigma * z of every step (the trace's `noise`).

    `noise` is drawn from once for each level, the noisiest first.
    """
    ddpm = with_fresh_noise(pipe)
    timesteps = ddpm.timesteps(steps)
    levels = timesteps.levels[:-1]
    shape = tuple(x0.shape[1:])
    way = [add_noise(x0, noise.draw(shape), level.alpha_bar) for level in levels] + [x0]
    solved = []
    for i in progress(range(steps)):
        prediction = pipe.predict(way[i], levels[i], prompts, guidance, step=i)
        mean, _ = ddpm.step(timesteps, i, way[i], prediction, (), noise=torch.zeros_like(x0))
        solved.append(way[i + 1] - mean)
        # Where sampling really gets to: rounding is not to add up over the steps.
        way[i + 1] = mean + solved[i]
    return Trace(torch.cat(way), noise=torch.cat(solved))


@torch.no_grad()
def sample_latents(
    pipe: Pipeline,
    trace: Trace,
    prompts: PromptEmbeddings,
    guidance: float,
    *,
    skip: int = 0,
    control: Control | None = None,
    progress: Progress = iter,
    watch: Watch | None = None,
) -> Tensor:
    """As `ddim.sample_latents`, under DDPM with the noise that was solved for."""
    assert trace.noise is not None
    ddpm = with_fresh_noise(pipe)
    timesteps = ddpm.timesteps(trace.steps, skip)
    noise = trace.noise.to(pipe.device)
    x_t = trace.start(skip, len(prompts), pipe.device)
    for i in progress(range(len(timesteps))):
        level = timesteps.levels[i]
        prediction = pipe.predict(x_t, level, prompts, guidance, control=control, step=skip + i)
        mean, _ = ddpm.step(timesteps, i, x_t, prediction, (), noise=torch.zeros_like(x_t))
        x_t = mean + noise[skip + i]
        if watch:
            watch(skip + i, x_t)
    return x_t


def with_fresh_noise(pipe: Pipeline) -> DDIM:
    """DDPM on DDIM's levels: eta 1."""
    return dataclasses.replace(solvers(pipe)[0], eta=1.0)
