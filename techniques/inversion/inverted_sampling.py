"""Sampling from inverted latents: the reverse process of every inversion, and its edits.

Each inversion method changes one line of the same DDIM loop:

    ddim, fixed-point   nothing: guidance above 1 drifts away from the inverted latents
    null-text           the optimised embedding stands in for the empty prompt's
                        (arXiv:2211.09794)
    negative            the source prompt stands in for the empty prompt: where both predictions
                        agree, guidance has nothing to amplify (arXiv:2305.16807)
    proximal            the same, and the smaller differences are set to 0 (arXiv:2306.05414):
                        eps = uncond + guidance * prox(cond - uncond)
    direct              the source's row of the batch is put back onto the inverted latents
                        after each step (arXiv:2310.01506); a target profits through what it
                        takes from the source's attention
    edit-friendly       DDPM's steps, with the noise that was solved for (arXiv:2304.06140)

and so does each edit: another prompt; prompt-to-prompt's injected attention and local blend;
a mask, outside of which the latents stay the inversion's; concept erasure.  EDICT alone has a
loop of its own, for two coupled latents: see `edict`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pare.pipeline import Pipeline, Progress
from pare.text.text_encoder import PromptEmbeddings
from techniques.erasure import ErasureGuidance
from techniques.inversion.ddim_inversion import Watch, solvers
from techniques.inversion.edit_friendly import ddpm_solver
from techniques.inversion.latent_trace import Method, Trace
from techniques.prompt_to_prompt import Injection

GUIDANCE = 7.5  # of negative, proximal and direct
QUANTILE = 0.7  # of |cond - uncond| over an image's latents; proximal's, as published


@torch.no_grad()
def sample_latents(
    pipe: Pipeline,
    trace: Trace,
    prompts: PromptEmbeddings,
    guidance: float,
    *,
    method: Method = "ddim",
    keep_source: bool = False,
    injection: Injection | None = None,
    erasure: ErasureGuidance | None = None,
    mask: Tensor | None = None,
    skip: int = 0,
    progress: Progress = iter,
    watch: Watch | None = None,
) -> Tensor:
    """Sample B rows from the inverted noise -> latents (B, 4, h, w).

    Args:
        prompts: of the B rows; for "negative" and "proximal" `uncond` is the source prompt's.
        method: the inversion's; any but "edict".
        keep_source: put the first row, the source's, back onto the inverted latents after each
            step: this is "direct".  With "edit-friendly" the source stays there by itself at
            the guidance of the inversion; the paper gives the two rows guidance scales of
            their own, which comes to the same.
        injection: of prompt-to-prompt (arXiv:2208.01626, sec. 4), for all steps, the skipped
            ones included; the rows are the source and its target.
        erasure: replaces classifier-free guidance.  With "edit-friendly" and gates by quantile
            and attention this is LEDITS++ (arXiv:2311.16711).
        mask: (1, 1, h, w), 1 = edit.  Where it is 0 the latents are the inversion's at that
            noise level (arXiv:2210.11427, sec. 3.2, step 3).
        skip: start after so many steps, from the inverted latents there: more keeps more.
        watch: is given the index of each step and the latents after it.

    Raises:
        SettingError: a local blend by layers that the UNet does not have.
    """
    solver = ddpm_solver(pipe) if trace.noise is not None else solvers(pipe)[0]
    timesteps = solver.timesteps(trace.steps, skip)
    local_blend = None if injection is None else injection.masks
    if local_blend is not None:
        local_blend.require_maps(pipe.unet.sites())
    texts = {"uncond": prompts.uncond, "cond": prompts.cond}
    if erasure is not None:
        texts = erasure.texts(prompts)

    x_t = trace.before_sampling(skip, len(prompts), pipe.device)
    for k in progress(range(len(timesteps))):
        i, level = skip + k, timesteps.levels[k]
        if trace.uncond is not None:  # null-text
            texts["uncond"] = trace.uncond[i].to(pipe.device).expand_as(prompts.cond)

        if erasure is not None:
            outputs = pipe.branch_outputs(x_t, level, texts, control=erasure.attention, step=i)
            output, _ = erasure.combine(k, outputs, x_t, level)
            prediction = pipe.interpret(output, x_t, level)
        elif method in ("negative", "proximal"):  # both predictions, also at guidance 1
            outputs = pipe.branch_outputs(x_t, level, texts, control=injection, step=i)
            difference = outputs["cond"] - outputs["uncond"]
            if method == "proximal":
                difference = proximal(difference, QUANTILE)
            prediction = pipe.interpret(outputs["uncond"] + guidance * difference, x_t, level)
        else:
            prediction = pipe.predict(
                x_t, level, PromptEmbeddings(**texts), guidance, control=injection, step=i
            )

        if trace.noise is None:
            x_t, _ = solver.step(timesteps, k, x_t, prediction, ())
        else:  # edit-friendly
            mean, _ = solver.step(timesteps, k, x_t, prediction, (), noise=torch.zeros_like(x_t))
            x_t = mean + trace.noise[i].to(x_t)

        inverted = trace.before_sampling(i + 1, 1, pipe.device)
        if keep_source:
            x_t = torch.cat([inverted, x_t[1:]])
        if local_blend is not None:
            x_t = local_blend.blend(i, x_t)
        if mask is not None:
            x_t = mask * x_t + (1 - mask) * inverted
        if watch:
            watch(i, x_t)
    return x_t


def proximal(difference: Tensor, quantile: float) -> Tensor:
    """The difference (B, 4, h, w), 0 where its magnitude is at most the image's `quantile`."""
    size = difference.abs().float()
    threshold = torch.quantile(size.flatten(1), quantile, dim=1).view(-1, 1, 1, 1)
    return torch.where(size > threshold, difference, 0.0)  # the hard threshold, prox of l0
