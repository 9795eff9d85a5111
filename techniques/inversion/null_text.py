"""Null-text inversion (arXiv:2211.09794): optimise the empty prompt's embedding at each step.

DDIM inversion is undone by sampling at guidance 1, where edits are weak.  At guidance 7.5 its
errors are amplified, and sampling leaves the inverted latents.  Those are kept as the pivot;
at each step the embedding of the empty prompt is optimised until the guided step leads to the
pivot's next latents.  The prompt stays free for the edit.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pare.errors import SettingError
from pare.guidance import branch_outputs, guide
from pare.pipeline import Pipeline, Progress
from pare.schedulers import Timesteps, interpret
from pare.schedulers.ddim import DDIM
from pare.text.text_encoder import PromptEmbeddings
from techniques.inversion import ddim_inversion
from techniques.inversion.latent_trace import Trace

GUIDANCE = 7.5
INNER_STEPS = 10  # of Adam, at most, for each step of sampling
MOST_STEPS = 100  # the published learning rate, 1e-2 (1 - i / 100), reaches 0 there


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
    """The pivot, and the embeddings with which sampling at `guidance` follows it.

    Args:
        prompts: of one image; `uncond` is where the optimisation starts.
        watch: is given a step's index and the losses of its optimisation.

    Raises:
        SettingError: more than 100 steps.
    """
    if steps > MOST_STEPS:
        raise SettingError(
            f"`steps` is {steps}", expected=f"at most {MOST_STEPS} for null-text inversion"
        )
    pivot = ddim_inversion.invert(pipe, x0, prompts, steps, progress=progress).latents
    ddim, _ = ddim_inversion.solvers(pipe)
    timesteps = ddim.timesteps(steps)
    x_t, uncond, optimised = pivot[:1], prompts.uncond.float(), []
    for i in progress(range(steps)):
        with torch.no_grad():
            cond = unet_output(pipe, x_t, timesteps, i, prompts.cond)
        uncond = uncond.clone().requires_grad_(True)  # starts where the step before ended
        optimiser = torch.optim.Adam([uncond], lr=1e-2 * (1 - i / 100))
        losses = []
        for _ in range(inner_steps):
            with torch.enable_grad():
                output = guide(unet_output(pipe, x_t, timesteps, i, uncond), cond, guidance)
                x_next = ddim_step(ddim, x_t, timesteps, i, output)
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
            output = guide(unet_output(pipe, x_t, timesteps, i, uncond), cond, guidance)
            x_t = ddim_step(ddim, x_t, timesteps, i, output)
        optimised.append(uncond)
    return Trace(pivot, uncond=torch.cat(optimised))


def unet_output(pipe: Pipeline, x_t: Tensor, timesteps: Timesteps, i: int, text: Tensor) -> Tensor:
    """The UNet's output for one text embedding, differentiable in it."""
    return branch_outputs(pipe.unet, x_t, timesteps.levels[i], {"text": text}, step=i)["text"]


def ddim_step(ddim: DDIM, x_t: Tensor, timesteps: Timesteps, i: int, output: Tensor) -> Tensor:
    """x_t after DDIM's step i with the guided `output`."""
    prediction = interpret(output, x_t, timesteps.levels[i], ddim.prediction_type)
    return ddim.step(timesteps, i, x_t, prediction, ())[0]


def loss_bound(i: int) -> float:
    """The mean squared error at which the optimisation stops, larger at later steps."""
    return 1e-5 + i * 2e-5
