"""DDIM inversion (arXiv:2010.02502, section 4.3): the noise that an image would come from.

DDIM's steps are deterministic, so they can be walked back.  A step went from x_t to x_next
with eps(x_t); on the way back x_t is what we look for, and eps(x_next) stands in for it.
That is nearly right where steps are short, and the small errors of all steps add up: the
other files of this folder are ways around them.

`invert_latents` and `sample_latents` are the two loops.  What they start and end with:

    latents[0]   the noisiest latents, where sampling starts    ("x_T")
    latents[i]   the latents that sampling meets before its step i
    latents[-1]  the image's own latents
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from pare.attention import Control
from pare.errors import SchedulerError
from pare.pipeline import Pipeline, Progress
from pare.schedulers import Timesteps
from pare.schedulers.ddim import DDIM
from pare.schedulers.ddim_inverse import DDIMInverse
from pare.text.text_encoder import PromptEmbeddings
from techniques.inversion.trace import Trace

GUIDANCE = 1.0  # inversion looks at the prompt alone, and so must the way that undoes it

Watch = Callable[[int, Tensor], None]
"""Is given a step's index and the latents (B, 4, h, w) after it."""


@torch.no_grad()
def invert(
    pipe: Pipeline,
    x0: Tensor,
    prompts: PromptEmbeddings,
    steps: int,
    *,
    progress: Progress = iter,
) -> Trace:
    """One image's latents (1, 4, h, w) and its prompt -> the way to its noise."""
    return Trace(invert_latents(pipe, x0, prompts.cond, steps, progress=progress))


@torch.no_grad()
def invert_latents(
    pipe: Pipeline,
    x0: Tensor,
    cond: Tensor,
    steps: int,
    *,
    progress: Progress = iter,
    watch: Watch | None = None,
) -> Tensor:
    """The latents of an image at every level, the noisiest first: (steps + 1, 4, h, w).

    Args:
        x0: (1, 4, h, w), scaled; taken to stand at the level where sampling ends.
        cond: the embedding of what the image shows, (1, 77, C).
    """
    _, inverse = solvers(pipe)
    timesteps = inverse.timesteps(steps)
    only_cond = PromptEmbeddings(cond=cond, uncond=cond)
    x_t, visited = x0, [x0]
    for i in progress(range(steps)):
        level = timesteps.levels[i]
        prediction = pipe.predict(x_t, level, only_cond, guidance=1.0, step=i)
        x_t, _ = inverse.step(timesteps, i, x_t, prediction, ())
        visited.append(x_t)
        if watch:
            watch(i, x_t)
    return torch.cat(visited[::-1])


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
    """Back along the trace with the prompts' B rows, all from its noise -> (B, 4, h, w).

    Args:
        skip: begin after so many steps, from the latents that the inversion met there.
    """
    ddim, _ = solvers(pipe)
    timesteps = ddim.timesteps(trace.steps, skip)
    x_t = trace.start(skip, len(prompts), pipe.device)
    for i in progress(range(len(timesteps))):
        level = timesteps.levels[i]
        prediction = pipe.predict(x_t, level, prompts, guidance, control=control, step=skip + i)
        x_t, _ = ddim.step(timesteps, i, x_t, prediction, ())
        if watch:
            watch(skip + i, x_t)
    return x_t


def solvers(pipe: Pipeline) -> tuple[DDIM, DDIMInverse]:
    """The pipeline's DDIM, fit to be walked both ways, and its inverse.

    Both end at the level of timestep 0 and not clean (`set_alpha_to_one` false), where a step
    back would divide by no noise; and neither clips x0, which cannot be undone.

    Raises:
        SchedulerError: another solver, fresh noise in each step, or no signal at the end.
    """
    scheduler = pipe.scheduler
    if not isinstance(scheduler, DDIM) or scheduler.stochastic:
        which = "ddim with eta above 0" if isinstance(scheduler, DDIM) else scheduler.name
        raise SchedulerError(
            f"{which} has no exact inverse",
            expected="ddim with eta 0, which has one (ddim-inverse)",
            fix="choose the scheduler ddim (--scheduler ddim)",
        )
    config = dataclasses.replace(scheduler.config, set_alpha_to_one=False, clip_sample=False)
    return DDIM(config, scheduler.schedule), DDIMInverse(config, scheduler.schedule)


def check_signal(timesteps: Timesteps) -> None:
    """Raise a SchedulerError if the noisiest level has forgotten the image altogether."""
    if math.isinf(timesteps.levels[0].sigma):
        raise SchedulerError(
            "the noisiest level has no signal (rescale_betas_zero_snr), so that nothing of a "
            "image can be found there",
            fix="use the leading spacing (spacing='leading')",
        )
