"""Null-text inversion (arXiv:2211.09794): learn what to put in the place of "".

Plain inversion leads back at guidance 1, where edits are weak.  At guidance 7.5 its small
errors are enlarged, and sampling leaves the way.  The way of inversion is kept as the pivot;
at each step the embedding of the empty prompt is trained until the guided step from where
sampling is leads to where the pivot is.  The prompt stays free for the edit.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pare.attention import Control
from pare.errors import SettingError
from pare.guidance import branch_outputs, guide
from pare.pipeline import Pipeline, Progress
from pare.schedulers import Timesteps, interpret
from pare.schedulers.ddim import DDIM
from pare.text.text_encoder import PromptEmbeddings
from techniques.inversion.ddim import Watch, invert_latents, solvers
from techniques.inversion.trace import Trace

GUIDANCE = 7.5
INNER_STEPS = 10  # of Adam, at most, for each step of sampling
MOST_STEPS = 100  # the published learning rate, 1e-2 (1 - i / 100), falls no further


def invert(
    pipe: Pipeline,
    x0: Tensor,
    prompts: PromptEmbeddings,
    steps: int,
    guidance: float = GUIDANCE,
    *,
    inner_steps: int = INNER_STEPS,
    progress: Progress = iter,
    watch: Callable[[int, list[float]], None] | None = None,
) -> Trace:
    """The pivot, and the embeddings that keep sampling on it at `guidance`.

    Args:
        prompts: of one image; `uncond` is where the training starts.
        watch: is given a step's index and the losses of its training.

    Raises:
        SettingError: more than 100 steps.
    """
    if steps > MOST_STEPS:
        raise SettingError(
            f"steps is {steps}", expected=f"at most {MOST_STEPS} for null-text inversion"
        )
    pivot = invert_latents(pipe, x0, prompts.cond, steps, progress=progress)
    ddim, _ = solvers(pipe)
    timesteps = ddim.timesteps(steps)
    x_t, uncond, learnt = pivot[:1], prompts.uncond.float(), []
    for i in progress(range(steps)):
        with torch.no_grad():
            cond = answer(pipe, x_t, timesteps, i, prompts.cond)
        uncond = uncond.clone().requires_grad_(True)  # begins where the step before ended
        optimiser = torch.optim.Adam([uncond], lr=1e-2 * (1 - i / 100))
        losses = []
        for _ in range(inner_steps):
            with torch.enable_grad():
                output = guide(answer(pipe, x_t, timesteps, i, uncond), cond, guidance)
                x_next = moved(ddim, x_t, timesteps, i, output)
                loss = F.mse_loss(x_next, pivot[i + 1 : i + 2])
            optimiser.zero_grad()
            # For the embedding alone: the model's weights gather no gradients.
            loss.backward(inputs=[uncond])  # type: ignore[no-untyped-call]
            optimiser.step()
            losses.append(loss.item())
            if losses[-1] < loss_bound(i):
                break
        if watch:
            watch(i, losses)

        uncond = uncond.detach()
        with torch.no_grad():
            output = guide(answer(pipe, x_t, timesteps, i, uncond), cond, guidance)
            x_t = moved(ddim, x_t, timesteps, i, output)
        learnt.append(uncond)
    return Trace(pivot, uncond=torch.cat(learnt))


def answer(pipe: Pipeline, x_t: Tensor, timesteps: Timesteps, i: int, text: Tensor) -> Tensor:
    """The UNet's own output for one text, differentiable in it."""
    return branch_outputs(pipe.unet, x_t, timesteps.levels[i], {"text": text}, step=i)["text"]


def moved(ddim: DDIM, x_t: Tensor, timesteps: Timesteps, i: int, output: Tensor) -> Tensor:
    """x_t after step i of DDIM with the guided `output`."""
    prediction = interpret(output, x_t, timesteps.levels[i], ddim.prediction_type)
    return ddim.step(timesteps, i, x_t, prediction, ())[0]


def loss_bound(i: int) -> float:
    """Training stops here: a mean squared error of latents, looser as sampling goes on."""
    return 1e-5 + i * 2e-5


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
    """As `ddim.sample_latents`, with the learnt embeddings for `prompts.uncond`."""
    assert trace.uncond is not None
    ddim, _ = solvers(pipe)
    timesteps = ddim.timesteps(trace.steps, skip)
    x_t = trace.start(skip, len(prompts), pipe.device)
    for i in progress(range(len(timesteps))):
        level = timesteps.levels[i]
        uncond = trace.uncond[skip + i].to(pipe.device).expand_as(prompts.cond)
        learnt = PromptEmbeddings(cond=prompts.cond, uncond=uncond)
        prediction = pipe.predict(x_t, level, learnt, guidance, control=control, step=skip + i)
        x_t, _ = ddim.step(timesteps, i, x_t, prediction, ())
        if watch:
            watch(skip + i, x_t)
    return x_t
