"""Direct inversion (arXiv:2310.01506): keep the source on its way, leave the targets alone.

Sampling with guidance leaves the way of inversion.  Nothing is trained against that: at each
step, what the source prompt's row of the batch has strayed by is added back to it, and to no
other row.  The source row so stays on the way exactly, and the targets keep their freedom.

The paper stores the distances in a pass of its own and adds them later.  What comes out is
the latents that the inversion met, so here the row is put back on those: the same, without
that pass, at any guidance, and with nothing for rounding to grow in.

A target is helped only through what it takes from the source row: attention, in
prompt-to-prompt.  Without that it is what plain DDIM inversion makes of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pare.attention import Control
from pare.pipeline import Pipeline, Progress
from pare.text.text_encoder import PromptEmbeddings
from techniques.inversion.ddim import Watch, invert, solvers
from techniques.inversion.trace import Trace

__all__ = ["GUIDANCE", "invert", "sample_latents"]  # the way is DDIM's

GUIDANCE = 7.5


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
    """As `ddim.sample_latents`; the first of the prompts' rows is the source's."""
    ddim, _ = solvers(pipe)
    timesteps = ddim.timesteps(trace.steps, skip)
    x_t = trace.start(skip, len(prompts), pipe.device)
    for i in progress(range(len(timesteps))):
        level = timesteps.levels[i]
        prediction = pipe.predict(x_t, level, prompts, guidance, control=control, step=skip + i)
        x_t, _ = ddim.step(timesteps, i, x_t, prediction, ())
        source = trace.start(skip + i + 1, 1, pipe.device)
        x_t = torch.cat([source, x_t[1:]])
        if watch:
            watch(skip + i, x_t)
    return x_t
