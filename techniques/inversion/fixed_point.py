"""Fixed-point inversion (arXiv:2309.04907): each inversion step solved instead of approximated.

The x_t before a DDIM step is the solution of

    x_t = inverse_step(x_next, eps(x_t, t))

which has x_t on both sides.  DDIM inversion replaces the x_t on the right by x_next.  Inserting
the result there again, until it no longer changes, gives the x_t from which one DDIM step
leads to x_next exactly, at guidance 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pare.pipeline import Pipeline, Progress
from pare.schedulers import NoiseLevel
from pare.text.text_encoder import PromptEmbeddings
from techniques.inversion.ddim_inversion import solvers
from techniques.inversion.latent_trace import Trace

GUIDANCE = 1.0
ITERATIONS = 10  # at most, for one step
TOLERANCE = 1e-6  # root mean square change of the latents; near float32's precision


@torch.no_grad()
def invert(
    pipe: Pipeline,
    x0: Tensor,
    prompts: PromptEmbeddings,
    steps: int,
    *,
    iterations: int = ITERATIONS,
    tolerance: float = TOLERANCE,
    progress: Progress = iter,
) -> Trace:
    """As `ddim_inversion.invert`; every step is iterated until it changes by < `tolerance`.

    Where a step does not converge the last iterate is taken, which is no worse than the first.
    `iterations` 1 is DDIM inversion.
    """
    ddim, _ = solvers(pipe)
    levels = ddim.timesteps(steps).levels
    only_cond = PromptEmbeddings(cond=prompts.cond, uncond=prompts.cond)
    x_next, visited = x0, [x0]
    for i in progress(range(steps)):
        noisier, level = levels[steps - 1 - i], levels[steps - i]
        x_t = x_next
        for _ in range(iterations):
            before = x_t
            eps = pipe.predict(before, noisier, only_cond, guidance=1.0, step=i).eps
            x_t = inverse_step(x_next, eps, level, noisier)
            if (x_t - before).square().mean().sqrt() < tolerance:
                break
        x_next = x_t
        visited.append(x_t)
    return Trace(torch.cat(visited[::-1]))


def inverse_step(x_next: Tensor, eps: Tensor, level: NoiseLevel, noisier: NoiseLevel) -> Tensor:
    """The x_t at `noisier` from which a DDIM step with `eps` leads to x_next at `level`."""
    x0 = (x_next - level.noise_rate * eps) / level.signal_rate
    return noisier.signal_rate * x0 + noisier.noise_rate * eps  # arXiv:2010.02502, eq. 12
