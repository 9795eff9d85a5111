"""DDIM inversion (arXiv:2010.02502, section 4.3): the noise from which DDIM makes an image.

DDIM's steps are deterministic, so they can be reversed:

    x_t = sqrt(alpha_bar_t) x0 + sqrt(1 - alpha_bar_t) eps        (eq. 12 with sigma = 0)

with x0 and eps of the predictions at x_t.  x_t is what is sought, so eps(x_next), of the
neighbouring noise level, stands in for eps(x_t).  The error is small where steps are short,
but adds up over them; the other methods of this folder reduce it.

`invert` is the loop; `inverted_sampling` samples from its result.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from pare.errors import SchedulerError
from pare.pipeline import Pipeline, Progress
from pare.schedulers import Timesteps
from pare.schedulers.ddim import DDIM
from pare.schedulers.ddim_inverse import DDIMInverse
from pare.text.text_encoder import PromptEmbeddings
from techniques.inversion.latent_trace import Trace

GUIDANCE = 1.0  # inversion uses the conditional prediction alone; so must sampling to undo it

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
    """The latents of one image at every noise level.

    Args:
        x0: (1, 4, h, w), scaled; taken to be at the noise level where sampling ends.
        prompts: `cond` is the embedding of what the image shows; `uncond` is not used.
    """
    _, inverse = solvers(pipe)
    timesteps = inverse.timesteps(steps)
    only_cond = PromptEmbeddings(cond=prompts.cond, uncond=prompts.cond)
    x_t, visited = x0, [x0]
    for i in progress(range(steps)):
        level = timesteps.levels[i]
        prediction = pipe.predict(x_t, level, only_cond, guidance=1.0, step=i)
        x_t, _ = inverse.step(timesteps, i, x_t, prediction, ())
        visited.append(x_t)
    return Trace(torch.cat(visited[::-1]))


def solvers(pipe: Pipeline) -> tuple[DDIM, DDIMInverse]:
    """The pipeline's DDIM, set up so that its steps can be reversed, and its inverse.

    Both end at the noise level of timestep 0 and not at zero noise (`set_alpha_to_one` false),
    where the inverse step would divide by 0; neither clips x0, which cannot be undone.

    Raises:
        SchedulerError: another solver, or fresh noise in each step.
    """
    scheduler = pipe.scheduler
    if not isinstance(scheduler, DDIM) or scheduler.stochastic:
        which = "ddim with `eta` above 0" if isinstance(scheduler, DDIM) else scheduler.name
        raise SchedulerError(
            f"{which} has no exact inverse",
            expected="ddim with `eta` 0, which has one (ddim-inverse)",
            fix="use `scheduler=ddim`",
        )
    config = dataclasses.replace(scheduler.config, set_alpha_to_one=False, clip_sample=False)
    return DDIM(config, scheduler.schedule), DDIMInverse(config, scheduler.schedule)


def check_signal(timesteps: Timesteps) -> None:
    """Raise a SchedulerError if the highest noise level has zero signal-to-noise ratio."""
    if math.isinf(timesteps.levels[0].sigma):
        raise SchedulerError(
            "the highest noise level has no signal (rescale_betas_zero_snr), so that an image "
            "cannot be recovered from it",
            fix="use `spacing=leading`",
        )
