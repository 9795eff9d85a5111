"""From an image and its prompt to the inversion, and from there to images.

inverted = invert(pipe, image, "a road in the mountains", method="null-text")
again    = sample(pipe, inverted)                                    # the image
edited   = sample(pipe, inverted, "a snowy road in the mountains")   # the edit
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from torch import Tensor

from pare.errors import InversionError, SettingError
from pare.io.images import ImageLike, as_image, fit_to_multiple, to_pil, to_tensor
from pare.pipeline import Pipeline, Progress
from pare.results import Images
from pare.runtime import validation
from pare.runtime.calls import checked_keywords
from pare.schedulers import Scheduler
from pare.text.text_encoder import PromptEmbeddings
from techniques.inversion import (
    ddim_inversion,
    edict,
    edit_friendly,
    fixed_point,
    inverted_sampling,
    null_text,
)
from techniques.inversion.inverted import Inverted
from techniques.inversion.latent_trace import Method, Trace

# The solver that the technique needs; `ddim_inversion.solvers` says why.
PREFERRED_SCHEDULER: Mapping[str, object] = {"scheduler": "ddim"}

# The default guidance of an inversion, and of the sampling that reconstructs the image.
USUAL_GUIDANCE: Mapping[Method, float] = {
    "ddim": ddim_inversion.GUIDANCE,
    "fixed-point": fixed_point.GUIDANCE,
    "null-text": null_text.GUIDANCE,
    "negative": inverted_sampling.GUIDANCE,
    "proximal": inverted_sampling.GUIDANCE,
    "direct": inverted_sampling.GUIDANCE,
    "edit-friendly": edit_friendly.GUIDANCE,
    "edict": edict.GUIDANCE,
}


@checked_keywords
def invert(
    pipe: Pipeline,
    image: ImageLike,
    prompt: str,
    *,
    method: Method = "ddim",
    steps: int = 50,
    guidance: float | None = None,
    seed: int = 0,
    progress: Progress = iter,
) -> Inverted:
    """Find the noise from which `pipe`'s DDIM makes an image under its prompt.

    Args:
        image: any size, worked at the next multiple of the VAE's factor.
        prompt: a description of the image, as exact as possible.
        guidance: at which the prompt is to reconstruct the image.  None: the method's default.
            ("ddim" and "fixed-point" always invert without guidance, and so reconstruct at 1.)
        seed: of the noise of "edit-friendly"; the others draw none.

    Raises:
        SettingError: a setting out of range, or no such method.
        SchedulerError: a scheduler without an exact inverse.
        ModelError: an inpainting model.
    """
    pipe.require_channels("inversion")
    if method not in get_args(Method):
        raise SettingError(f"`method` is {method!r}", expected=", ".join(get_args(Method)))
    guidance = USUAL_GUIDANCE[method] if guidance is None else validation.check_guidance(guidance)
    validation.check_prompt(prompt)
    solver, _ = ddim_inversion.solvers(pipe)
    ddim_inversion.check_signal(solver.timesteps(steps))
    image = as_image(image)
    worked, _ = fit_to_multiple(image, pipe.vae.config.factor)
    x0 = pipe.encode(to_tensor(worked))
    prompts = pipe.encode_prompts([prompt])
    given: dict[str, Any] = {"progress": progress}
    if method == "fixed-point":
        trace = fixed_point.invert(pipe, x0, prompts, steps, **given)
    elif method == "null-text":
        trace = null_text.invert(pipe, x0, prompts, steps, guidance, **given)
    elif method == "edit-friendly":
        noise = pipe.noise([seed])
        trace = edit_friendly.invert(pipe, x0, prompts, steps, guidance, noise=noise, **given)
    elif method == "edict":
        trace = edict.invert(pipe, x0, prompts, steps, guidance, **given)
    else:  # the others differ in sampling alone
        trace = ddim_inversion.invert(pipe, x0, prompts, steps, **given)
    return Inverted(
        method=method,
        prompt=prompt,
        guidance=guidance,
        width=image.width,
        height=image.height,
        model=fingerprints(pipe),
        scheduler=described(solver),
        trace=trace,
    )


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Sampled(Images):
    """The image sampled from an inversion, at the size of the image that was inverted."""

    latents: Tensor  # (1, 4, h, w), scaled, float32
    visited: Mapping[int, Tensor] = field(default_factory=dict)
    """The latents (1, 4, h, w) after the steps that were asked for."""


def sample(
    pipe: Pipeline,
    inverted: Inverted,
    prompt: str | None = None,
    *,
    guidance: float | None = None,
    skip: int = 0,
    visual_steps: Sequence[int] = (),
    progress: Progress = iter,
) -> Sampled:
    """Reconstruct the image, or, with another prompt, edit it.

    Args:
        prompt: None is the one that the image was inverted with.
        guidance: None is the inversion's.
        skip: start after so many steps, from the inverted latents there: more keeps more.
            (arXiv:2304.06140 edits at guidance 15 and skips 36 of 100.)
        visual_steps: the steps, 0 to steps - 1, whose latents are returned.

    Raises:
        SettingError: a setting out of range.
        InversionError: the inversion is of another model, or of other noise levels.
        SchedulerError: a scheduler without an exact inverse.
    """
    pipe.require_channels("inversion")
    check_fit(pipe, inverted)
    prompt = inverted.prompt if prompt is None else validation.check_prompt(prompt)
    guidance = inverted.guidance if guidance is None else validation.check_guidance(guidance)
    check_steps_asked(inverted.trace, skip, visual_steps)
    visited: dict[int, Tensor] = {}

    def watch(i: int, x_t: Tensor) -> None:
        if i in visual_steps:
            visited[i] = x_t[-1:].float()

    direct = inverted.method == "direct"
    rows = dict.fromkeys([inverted.prompt, prompt] if direct else [prompt])  # the source first
    latents = sample_rows(
        pipe, inverted, list(rows), guidance,
        keep_source=direct, skip=skip, progress=progress, watch=watch,
    )  # fmt: skip
    x0 = latents[-1:].float()
    # The image was worked at the next multiple of the VAE's factor, its edges repeated.
    image = to_pil(pipe.decode(x0))[0].crop((0, 0, inverted.width, inverted.height))
    return Sampled(images=[image], latents=x0, visited=visited)


def sample_rows(
    pipe: Pipeline,
    inverted: Inverted,
    rows: Sequence[str],
    guidance: float,
    **given: Any,
) -> Tensor:
    """One row for each prompt, by the inversion's own method: (B, 4, h, w)."""
    prompts = embedded(pipe, inverted, rows)
    if inverted.method == "edict":
        given.pop("keep_source")
        return edict.sample_latents(pipe, inverted.trace, prompts, guidance, **given)
    method = inverted.method
    return inverted_sampling.sample_latents(
        pipe, inverted.trace, prompts, guidance, method=method, **given
    )


def embedded(pipe: Pipeline, inverted: Inverted, rows: Sequence[str]) -> PromptEmbeddings:
    """The prompts' embeddings, `uncond` being what the inversion's method puts there."""
    as_negative = inverted.method in ("negative", "proximal")
    return pipe.encode_prompts(rows, negative=inverted.prompt if as_negative else "")


# --- compatibility -------------------------------------------------------------------------


def fingerprints(pipe: Pipeline) -> Mapping[str, str]:
    """What identifies the model: the fingerprints of its weights, or its name without any."""
    return dict(pipe.source.files) or {"name": pipe.source.name}


def described(solver: Scheduler) -> dict[str, Any]:
    """The solver's description as JSON reads it back."""
    through_json: dict[str, Any] = json.loads(json.dumps(solver.describe()))
    return through_json


def check_fit(pipe: Pipeline, inverted: Inverted) -> None:
    """Raise an InversionError unless the pipeline has the inversion's model and noise levels."""
    solver, _ = ddim_inversion.solvers(pipe)
    if fingerprints(pipe) != inverted.model and not pipe.source.has_files(inverted.model):
        raise InversionError(
            f"the inversion is of another model than {pipe.source.name}",
            expected="the model that the image was inverted with",
        )
    if inverted.scheduler != described(solver):
        raise InversionError(
            "the inversion is of another noise schedule or spacing of steps than the pipeline's",
            fix="use the scheduler options that the image was inverted with",
        )
    trace, vae = inverted.trace, pipe.vae.config
    sides = tuple(math.ceil(side / vae.factor) for side in (inverted.height, inverted.width))
    if trace.latents.shape[1:] != (vae.latent_channels, *sides):
        raise InversionError(
            f"the inversion has latents of the shape {tuple(trace.latents.shape[1:])}",
            expected=f"{(vae.latent_channels, *sides)} for an image of "
            f"{inverted.width} x {inverted.height}",
        )
    width = pipe.unet.config.cross_attention_dim
    if trace.uncond is not None and trace.uncond.shape[2] != width:
        raise InversionError(
            f"the inversion has embeddings of width {trace.uncond.shape[2]}", expected=str(width)
        )


def check_steps_asked(trace: Trace, skip: int, visual_steps: Sequence[int]) -> None:
    for name, step in (("`skip`", skip), *(("a visual step", step) for step in visual_steps)):
        if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < trace.steps:
            raise SettingError(
                f"{name} is {step!r}", expected=f"a whole number from 0 to {trace.steps - 1}"
            )
