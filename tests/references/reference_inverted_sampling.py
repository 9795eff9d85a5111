"""Sampling from an inversion as each method's paper has it, one plain loop a method.

For `techniques.inversion.inverted_sampling`, which has all of them in one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from pare.attention import Control
from pare.pipeline import Pipeline
from pare.schedulers.ddim import DDIM
from pare.text.text_encoder import PromptEmbeddings
from techniques.inversion import Inverted


@torch.no_grad()
def reference_sampling(
    pipe: Pipeline,
    inverted: Inverted,
    prompts: Sequence[str],
    guidance: float,
    *,
    skip: int = 0,
    control: Control | None = None,
) -> Tensor:
    scheduler, trace, method = pipe.scheduler, inverted.trace, inverted.method
    assert isinstance(scheduler, DDIM)
    config = dataclasses.replace(scheduler.config, set_alpha_to_one=False, clip_sample=False)
    ddim = DDIM(config, scheduler.schedule)
    if method == "edit-friendly":
        ddim = dataclasses.replace(ddim, eta=1.0)
    timesteps = ddim.timesteps(trace.steps)
    texts = pipe.encode_prompts(prompts)
    if method in ("negative", "proximal"):
        texts = pipe.encode_prompts(prompts, negative=inverted.prompt)

    x_t = torch.cat([trace.latents[skip : skip + 1]] * len(prompts))
    for i in range(skip, trace.steps):
        level = timesteps.levels[i]
        if method in ("negative", "proximal"):
            branches = {"uncond": texts.uncond, "cond": texts.cond}
            outputs = pipe.branch_outputs(x_t, level, branches, control=control, step=i)
            difference = outputs["cond"] - outputs["uncond"]
            if method == "proximal":
                size = difference.abs()
                bounds = torch.quantile(size.flatten(1), 0.7, dim=1).view(-1, 1, 1, 1)
                difference = difference * (size > bounds)
            prediction = pipe.interpret(outputs["uncond"] + guidance * difference, x_t, level)
        else:
            if trace.uncond is not None:
                uncond = torch.cat([trace.uncond[i : i + 1]] * len(prompts))
                texts = PromptEmbeddings(cond=texts.cond, uncond=uncond)
            prediction = pipe.predict(x_t, level, texts, guidance, control=control, step=i)
        if trace.noise is None:
            x_t, _ = ddim.step(timesteps, i, x_t, prediction, ())
        else:
            zero = torch.zeros_like(x_t)
            x_t = ddim.step(timesteps, i, x_t, prediction, (), noise=zero)[0] + trace.noise[i]
        if method == "direct":
            x_t = torch.cat([trace.latents[i + 1 : i + 2], x_t[1:]])
    return x_t
