"""EDICT (arXiv:2211.12446): exact inversion by two coupled latents that alternate.

DDIM inversion is inexact because eps(x_t) is needed before x_t is known.  Here x is updated
with the prediction at y, then y with the prediction at the new x: the one that is not updated
is known, so each update can be undone exactly.  After each step the two are mixed, which is
invertible as well, and keeps them together.

One step from x, y to x_next, y_next, with x_next = a x + b eps the step of DDIM:

    x' = a x + b eps(y)             y' = a y + b eps(x')
    x_next = p x' + (1 - p) y'      y_next = p y' + (1 - p) x_next

All in float64, on the CPU: undoing the mixing divides by p, which amplifies rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pare.attention import Control
from pare.pipeline import Pipeline, Progress
from pare.schedulers import NoiseLevel
from pare.text.text_encoder import PromptEmbeddings
from techniques.inversion.ddim_inversion import Watch, solvers
from techniques.inversion.latent_trace import Trace

GUIDANCE = 3.0  # the paper's, of inversion and sampling
P = 0.93  # the mixing weight; 1 does not mix


@torch.no_grad()
def invert(
    pipe: Pipeline,
    x0: Tensor,
    prompts: PromptEmbeddings,
    steps: int,
    guidance: float = GUIDANCE,
    *,
    p: float = P,
    progress: Progress = iter,
) -> Trace:
    """The two latents at every noise level, float64 on the CPU; equal at the image."""
    ddim, _ = solvers(pipe)
    levels = ddim.timesteps(steps).levels
    x = y = x0.cpu().double()
    visited = [(x, y)]
    for i in progress(range(steps - 1, -1, -1)):  # sampling's steps, the last one first
        a, b = coefficients(levels[i], levels[i + 1])
        x, y = alternated(i, x, y)
        y = (y - (1 - p) * x) / p
        x = (x - (1 - p) * y) / p
        y = (y - b * eps(pipe, x, levels[i], prompts, guidance, step=i)) / a
        x = (x - b * eps(pipe, y, levels[i], prompts, guidance, step=i)) / a
        x, y = alternated(i, x, y)
        visited.append((x, y))
    xs, ys = zip(*visited[::-1], strict=True)
    return Trace(torch.cat(xs), partner=torch.cat(ys))


@torch.no_grad()
def sample_latents(
    pipe: Pipeline,
    trace: Trace,
    prompts: PromptEmbeddings,
    guidance: float,
    *,
    p: float = P,
    skip: int = 0,
    control: Control | None = None,
    mask: Tensor | None = None,
    progress: Progress = iter,
    watch: Watch | None = None,
) -> Tensor:
    """As `inverted_sampling.sample_latents`, for both latents; x is returned, float64 on the CPU.

    Args:
        mask: (1, 1, h, w); where it is 0, both are the inversion's.
    """
    assert trace.partner is not None
    ddim, _ = solvers(pipe)
    timesteps = ddim.timesteps(trace.steps, skip)
    levels, rows = timesteps.levels, len(prompts)
    x = trace.latents[skip].cpu().double().expand(rows, -1, -1, -1)
    y = trace.partner[skip].cpu().double().expand(rows, -1, -1, -1)
    for k in progress(range(len(timesteps))):
        i = skip + k
        a, b = coefficients(levels[k], levels[k + 1])
        x, y = alternated(i, x, y)
        x = a * x + b * eps(pipe, y, levels[k], prompts, guidance, step=i, control=control)
        y = a * y + b * eps(pipe, x, levels[k], prompts, guidance, step=i, control=control)
        x = p * x + (1 - p) * y
        y = p * y + (1 - p) * x
        x, y = alternated(i, x, y)
        if mask is not None:
            x = mask.cpu() * x + (1 - mask.cpu()) * trace.latents[i + 1].cpu()
            y = mask.cpu() * y + (1 - mask.cpu()) * trace.partner[i + 1].cpu()
        if watch:
            watch(i, x)
    return x


def alternated(i: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The pair in the order of its updates, which alternates from step to step."""
    return (y, x) if i % 2 else (x, y)


def coefficients(level: NoiseLevel, next_level: NoiseLevel) -> tuple[float, float]:
    """a and b of DDIM's step x_next = a x_t + b eps (arXiv:2010.02502, eq. 12, rearranged)."""
    a = next_level.signal_rate / level.signal_rate
    return a, next_level.noise_rate - a * level.noise_rate


def eps(
    pipe: Pipeline,
    x_t: Tensor,
    level: NoiseLevel,
    prompts: PromptEmbeddings,
    guidance: float,
    *,
    step: int,
    control: Control | None = None,
) -> Tensor:
    """The guided eps of one of the two latents, float64 on the CPU.

    The model's input is float32, so that the last digits of x_t, which undoing a step does not
    reproduce, cannot change the prediction.
    """
    seen = x_t.float().to(pipe.device)
    prediction = pipe.predict(seen, level, prompts, guidance, control=control, step=step)
    return prediction.eps.cpu().double()  # in this order: MPS has no float64
