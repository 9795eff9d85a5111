"""Negative-prompt inversion (arXiv:2305.16807), and its proximal guidance (arXiv:2306.05414).

Null-text inversion trains the empty prompt's embedding until guidance does no harm.  The
source prompt's own embedding does the same without training: where both branches read the
same words they give the same answer, and guidance has nothing to enlarge.  With a new prompt,
it enlarges what is new.

    eps = source + guidance * prox(cond - source)

The proximal variant has prox set the smaller part of the difference to zero, which is mostly
noise and would change what the new words do not speak of.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pare.attention import Control
from pare.pipeline import Pipeline, Progress
from pare.text.text_encoder import PromptEmbeddings
from techniques.inversion.ddim import Watch, invert, solvers
from techniques.inversion.trace import Trace

__all__ = ["GUIDANCE", "QUANTILE", "invert", "proximal", "sample_latents"]  # the way: DDIM's

GUIDANCE = 7.5
QUANTILE = 0.7  # of |cond - source|, of all of an image's latents


@torch.no_grad()
def sample_latents(
    pipe: Pipeline,
    trace: Trace,
    prompts: PromptEmbeddings,
    guidance: float,
    *,
    quantile: float | None = None,
    skip: int = 0,
    control: Control | None = None,
    progress: Progress = iter,
    watch: Watch | None = None,
) -> Tensor:
    """As `ddim.sample_latents`.

    Args:
        prompts: `uncond` is the source prompt's embedding, in each row.
        quantile: that of the proximal variant; None lets everything through.
    """
    ddim, _ = solvers(pipe)
    timesteps = ddim.timesteps(trace.steps, skip)
    texts = {"uncond": prompts.uncond, "cond": prompts.cond}
    x_t = trace.start(skip, len(prompts), pipe.device)
    for i in progress(range(len(timesteps))):
        level = timesteps.levels[i]
        outputs = pipe.branch_outputs(x_t, level, texts, control=control, step=skip + i)
        difference = outputs["cond"] - outputs["uncond"]
        if quantile is not None:
            difference = proximal(difference, quantile)
        output = outputs["uncond"] + guidance * difference
        prediction = pipe.interpret(output, x_t, level)
        x_t, _ = ddim.step(timesteps, i, x_t, prediction, ())
        if watch:
            watch(skip + i, x_t)
    return x_t


def proximal(difference: Tensor, share: float) -> Tensor:
    """The difference (B, 4, h, w), 0 where it is among its image's smallest `share`."""
    size = difference.abs().float()
    threshold = torch.quantile(size.flatten(1), share, dim=1).view(-1, 1, 1, 1)
    return torch.where(size > threshold, difference, 0.0)  # its hard threshold, prox of l0
