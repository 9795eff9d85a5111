"""Fixed-point inversion (arXiv:2309.04907): look for the latents that really lead back.

The x_t before a step of DDIM is the solution of

    x_t = inverse_step(x_next, eps(x_t, t))

x_t stands on both sides.  Plain inversion puts x_next in the place of the one on the right.
Put the result there, and again, and it settles: then one step of sampling from it leads to
x_next exactly, at guidance 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pare.pipeline import Pipeline, Progress
from pare.schedulers import NoiseLevel
from pare.text.text_encoder import PromptEmbeddings
from techniques.inversion.ddim import solvers
from techniques.inversion.trace import Trace

GUIDANCE = 1.0
ITERATIONS = 10  # at most, for one step
TOLERANCE = 1e-6  # of the latents, root mean square; float32 has little more


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
    """As `ddim.invert`; every step is iterated until it moves by less than `tolerance`.

    Where a step does not settle the last iterate is taken, which is no worse than the first.
    `iterations` 1 is plain inversion.
    """
    ddim, _ = solvers(pipe)
    levels = ddim.timesteps(steps).levels
    only_cond = PromptEmbeddings(cond=prompts.cond, uncond=prompts.cond)
    x_next, visited = x0, [x0]
    for i in progress(range(steps)):
        there, here = levels[steps - 1 - i], levels[steps - i]  # the noisier one, and ours
        x_t = x_next
        for _ in range(iterations):
            before = x_t
            eps = pipe.predict(before, there, only_cond, guidance=1.0, step=i).eps
            x_t = back(x_next, eps, here, there)
            if (x_t - before).square().mean().sqrt() < tolerance:
                break
        x_next = x_t
        visited.append(x_t)
    return Trace(torch.cat(visited[::-1]))


def back(x_next: Tensor, eps: Tensor, here: NoiseLevel, there: NoiseLevel) -> Tensor:
    """The x_t at the level `there` that a step of DDIM with `eps` brings to x_next, `here`."""
    x0 = (x_next - here.noise_rate * eps) / here.signal_rate
    return there.signal_rate * x0 + there.noise_rate * eps  # arXiv:2010.02502, eq. 12
