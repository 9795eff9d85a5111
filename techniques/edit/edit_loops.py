"""The edits: four loops over the way back from an inversion.

    resample_latents        other words, and nothing else
    prompt_to_prompt        the source beside the target, which looks where the source looks
    blend_latents           outside a mask, where the inversion was
    erase_latents           concepts pushed away

All take a `Way` and return latents (B, 4, h, w) at its end.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pare.pipeline import Progress
from techniques.edit.sampling_back import Way
from techniques.erasure import (
    Concept,
    Gates,
    WhereLookedAt,
    branch_texts,
    capped,
    eps_per_output,
    gate,
)
from techniques.prompt_to_prompt import Injection


@torch.no_grad()
def resample_latents(way: Way, *, progress: Progress = iter) -> Tensor:
    """Back along the way under other words."""
    x_t = way.start()
    for i in progress(range(len(way))):
        x_t = way.step(i, x_t, way.look(i, x_t))
    return x_t


@torch.no_grad()
def prompt_to_prompt_latents(
    way: Way, injection: Injection, *, progress: Progress = iter
) -> Tensor:
    """Source and target side by side, the source first (arXiv:2208.01626, sec. 4; with null-text
    inversion arXiv:2211.09794, with direct inversion arXiv:2310.01506).

    Args:
        injection: of `prepare`, for all steps, those that are left out included; its masks, if
            there are any, keep the target to the source outside.
    """
    if injection.masks is not None:
        injection.masks.require_maps(way.pipe.unet.sites())
    x_t = way.start()
    for i in progress(range(len(way))):
        x_t = way.step(i, x_t, way.look(i, x_t, injection))
        x_t = way.with_source(i, x_t)
        if injection.masks is not None:
            x_t = injection.masks.blend(way.skip + i, x_t)
    return x_t


@torch.no_grad()
def blend_latents(way: Way, mask: Tensor, *, progress: Progress = iter) -> Tensor:
    """New inside the mask (1, 1, h, w), exactly the image's latents outside.

    Blended latent diffusion noises the image afresh for its background.  Here the inversion
    knows what the image was at each level, under the very noise that the inside comes from
    (arXiv:2210.11427, sec. 3.2, step 3).
    """
    x_t = way.start()
    for i in progress(range(len(way))):
        x_t = way.step(i, x_t, way.look(i, x_t))
        x_t = mask * x_t + (1 - mask) * way.inverted_at(i + 1)
    return x_t


@torch.no_grad()
def erase_latents(
    way: Way,
    concepts: Sequence[Concept],
    gates: Gates,
    *,
    mask: Tensor | None = None,
    progress: Progress = iter,
) -> Tensor:
    """Back along the way, pushed away from concepts: `techniques.erasure.erase_latents`, whose
    letters these are, with u what the method has in the place of "".

    With edit-friendly inversion and gates by quantile and attention this is LEDITS++
    (arXiv:2311.16711).

    Args:
        mask: (1, 1, h, w); outside, the image stays, as in `blend_latents`.
    """
    pipe, guidance = way.pipe, way.guidance
    texts = branch_texts(pipe, way.prompts, concepts)
    looks = WhereLookedAt(pipe, concepts) if gates.attention is not None else None
    momentum: Tensor | float = 0.0
    x_t = way.start()
    for i in progress(range(len(way))):
        level = way.level(i)
        texts["uncond"] = way.uncond(i)
        outputs = pipe.branch_outputs(x_t, level, texts, control=looks, step=way.skip + i)
        uncond, cond, *unwanted = outputs.values()

        to_eps = eps_per_output(level, way.solver.prediction_type)
        total = torch.zeros_like(x_t)
        for k, (concept, answer) in enumerate(zip(concepts, unwanted, strict=True)):
            attention = looks.at(k, x_t) if looks else None
            direction = answer - uncond
            through = gate(direction * to_eps, (cond - answer) * to_eps, gates, attention)
            total = total + concept.weight * through * direction
        total = total + gates.momentum * momentum
        momentum = gates.memory * momentum + (1 - gates.memory) * total
        if gates.cap is not None:
            total = capped(total, guidance * (cond - uncond), gates.cap)

        output = uncond + guidance * (cond - uncond)
        if i >= gates.warm_up:
            output = output - total
        prediction = pipe.interpret(output, x_t, level)
        x_t = way.step(i, x_t, prediction)
        if mask is not None:
            x_t = mask * x_t + (1 - mask) * way.inverted_at(i + 1)
    return x_t
