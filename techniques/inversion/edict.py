"""EDICT (arXiv:2211.12446): two latents that take turns, so that every step can be undone.

Plain inversion fails because eps(x_t) must be known before x_t is.  Here x moves by what the
model says about y, and then y by what it says about the new x: whoever moves, the other
stands still and can be asked again on the way back.  After each step the two are drawn
together, by a mixing that can be undone as well.

One step from x, y to x_next, y_next, with x_next = a x + b eps the step of DDIM:

    x' = a x + b eps(y)             y' = a y + b eps(x')
    x_next = p x' + (1 - p) y'      y_next = p y' + (1 - p) x_next

All of this is in float64, on the CPU: the undoing divides by p, and rounding would grow.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pare.attention import Control
from pare.pipeline import Pipeline, Progress
from pare.schedulers import NoiseLevel
from pare.text.text_encoder import PromptEmbeddings
from techniques.inversion.ddim import Watch, solvers
from techniques.inversion.trace import Trace

GUIDANCE = 3.0  # the paper's, on the way there and back
P = 0.93  # how little the two are mixed


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
    """Both timestep schedules, float64 on the CPU; at the image they are one."""
    ddim, _ = solvers(pipe)
    levels = ddim.timesteps(steps).levels
    x = y = x0.cpu().double()
    ways = [(x, y)]
    for i in progress(range(steps - 1, -1, -1)):  # sampling's steps, the last one first
        a, b = coefficients(levels[i], levels[i + 1])
        x, y = turned(i, x, y)
        y = (y - (1 - p) * x) / p
        x = (x - (1 - p) * y) / p
        y = (y - b * eps(pipe, x, levels[i], prompts, guidance, step=i)) / a
        x = (x - b * eps(pipe, y, levels[i], prompts, guidance, step=i)) / a
        x, y = turned(i, x, y)
        ways.append((x, y))
    xs, ys = zip(*ways[::-1], strict=True)
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
    """As `ddim.sample_latents`, of both latents; x is returned, float64 on the CPU.

    Args:
        mask: (1, 1, h, w); where it is 0, both stay where the inversion was.
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
        x, y = turned(i, x, y)
        x = a * x + b * eps(pipe, y, levels[k], prompts, guidance, step=i, control=control)
        y = a * y + b * eps(pipe, x, levels[k], prompts, guidance, step=i, control=control)
        x = p * x + (1 - p) * y
        y = p * y + (1 - p) * x
        x, y = turned(i, x, y)
        if mask is not None:
            x = mask.cpu() * x + (1 - mask.cpu()) * trace.latents[i + 1].cpu()
            y = mask.cpu() * y + (1 - mask.cpu()) * trace.partner[i + 1].cpu()
        if watch:
            watch(i, x)
    return x


def turned(i: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Who moves first changes from step to step, so that neither leads."""
    return (y, x) if i % 2 else (x, y)


def coefficients(here: NoiseLevel, there: NoiseLevel) -> tuple[float, float]:
    """a and b of DDIM's step x_next = a x_t + b eps (arXiv:2010.02502, eq. 12, sorted)."""
    a = there.signal_rate / here.signal_rate
    return a, there.noise_rate - a * here.noise_rate


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

    The model sees float32, so that the last digits of x_t, which the way back does not give
    again, cannot change its answer.
    """
    seen = x_t.float().to(pipe.device)
    prediction = pipe.predict(seen, level, prompts, guidance, control=control, step=step)
    return prediction.eps.cpu().double()  # in this order: MPS has no float64
