"""From an image and what it shows to its inversion, and from there to images again.

inverted = invert(pipe, image, "a road in the mountains", method="null-text")
again    = sample(pipe, inverted)                                    # the image
edited   = sample(pipe, inverted, "a snowy road in the mountains")   # the edit
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from torch import Tensor

from pare.errors import InversionError, SettingError
from pare.io.images import fit_to_multiple, to_pil, to_tensor
from pare.pipeline import Pipeline, Progress
from pare.runtime import validation
from pare.schedulers import Scheduler
from techniques.inversion import (
    ddim,
    direct,
    edict,
    edit_friendly,
    fixed_point,
    negative,
    null_text,
)
from techniques.inversion.inverted import Inverted
from techniques.inversion.trace import Trace

if TYPE_CHECKING:
    from PIL import Image

Method = Literal[
    "ddim", "fixed-point", "null-text", "negative", "proximal", "direct", "edit-friendly", "edict"
]

# The solver that the technique needs; `solvers` says why no other will do.
PREFERRED_SCHEDULER: Mapping[str, object] = {"scheduler": "ddim"}

# At which an image is inverted, and sampled again, if nobody says otherwise.
USUAL_GUIDANCE: Mapping[Method, float] = {
    "ddim": ddim.GUIDANCE,
    "fixed-point": fixed_point.GUIDANCE,
    "null-text": null_text.GUIDANCE,
    "negative": negative.GUIDANCE,
    "proximal": negative.GUIDANCE,
    "direct": direct.GUIDANCE,
    "edit-friendly": edit_friendly.GUIDANCE,
    "edict": edict.GUIDANCE,
}


def invert(
    pipe: Pipeline,
    image: Image.Image,
    prompt: str,
    *,
    method: Method = "ddim",
    steps: int = 50,
    guidance: float | None = None,
    seed: int = 0,
    progress: Progress = iter,
) -> Inverted:
    """Find what `pipe` would have made the image from, under its DDIM.

    Args:
        image: any size, worked at the next multiple of the VAE's factor.
        prompt: what it shows, as well as can be said.
        guidance: at which the prompt is to give the image back.  None: the method's usual.
            ("ddim" and "fixed-point" invert without guidance whatever is given, and so give
            the image back at 1.)
        seed: of the noise that "edit-friendly" draws; the others draw none.

    Raises:
        SettingError: a setting out of range, or no such method.
        SchedulerError: a scheduler without an exact inverse.
        ModelError: an inpainting model.
    """
    pipe.require_channels("inversion")
    if method not in get_args(Method):
        raise SettingError(f"method is {method!r}", expected=", ".join(get_args(Method)))
    guidance = USUAL_GUIDANCE[method] if guidance is None else validation.check_guidance(guidance)
    validation.check_prompt(prompt)
    solver, _ = ddim.solvers(pipe)
    ddim.check_signal(solver.timesteps(steps))
    worked, _ = fit_to_multiple(image.convert("RGB"), pipe.vae.config.factor)
    x0 = pipe.encode(to_tensor(worked))
    prompts = pipe.encode_prompts([prompt])
    given: dict[str, Any] = {"progress": progress}
    if method in ("ddim", "negative", "proximal", "direct"):
        trace = ddim.invert(pipe, x0, prompts, steps, **given)
    elif method == "fixed-point":
        trace = fixed_point.invert(pipe, x0, prompts, steps, **given)
    elif method == "null-text":
        trace = null_text.invert(pipe, x0, prompts, steps, guidance, **given)
    elif method == "edit-friendly":
        noise = pipe.noise([seed])
        trace = edit_friendly.invert(pipe, x0, prompts, steps, guidance, noise=noise, **given)
    else:
        trace = edict.invert(pipe, x0, prompts, steps, guidance, **given)
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


@dataclass(frozen=True)
class Sampled:
    """An image that came from an inversion."""

    image: Image.Image  # RGB, of the size of the image that was inverted
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
    """The image again, or, with another prompt, its edit.

    Args:
        prompt: None is the one that the image was inverted with.
        guidance: None is the inversion's.
        skip: begin after so many steps, from where the inversion was there: the more, the
            less can change.  (arXiv:2304.06140 edits at guidance 15 and skips 36 of 100.)
        visual_steps: of which steps, 0 to steps - 1, the latents behind them are wanted.

    Raises:
        SettingError: a setting out of range.
        InversionError: the inversion is of another model, or of other levels.
        SchedulerError: a scheduler without an exact inverse.
    """
    pipe.require_channels("inversion")
    check_fit(pipe, inverted)
    trace = inverted.trace
    prompt = inverted.prompt if prompt is None else validation.check_prompt(prompt)
    guidance = inverted.guidance if guidance is None else validation.check_guidance(guidance)
    check_steps_asked(trace, skip, visual_steps)
    visited: dict[int, Tensor] = {}

    def watch(i: int, x_t: Tensor) -> None:
        if i in visual_steps:
            visited[i] = x_t[-1:].float()

    latents = sample_rows(
        pipe, inverted, prompt, guidance, skip=skip, progress=progress, watch=watch
    )
    x0 = latents[-1:].float()
    # The image was worked at the next multiple of the VAE's factor, its edges repeated.
    image = to_pil(pipe.decode(x0))[0].crop((0, 0, inverted.width, inverted.height))
    return Sampled(image, x0, visited)


def sample_rows(
    pipe: Pipeline, inverted: Inverted, prompt: str, guidance: float, **given: Any
) -> Tensor:
    """The method's own loop for one prompt: (B, 4, h, w), the prompt's image last."""
    method, trace = inverted.method, inverted.trace
    if method == "null-text":
        return null_text.sample_latents(
            pipe, trace, pipe.encode_prompts([prompt]), guidance, **given
        )
    if method in ("negative", "proximal"):
        prompts = pipe.encode_prompts([prompt], negative=inverted.prompt)
        share = negative.QUANTILE if method == "proximal" else None
        return negative.sample_latents(pipe, trace, prompts, guidance, quantile=share, **given)
    if method == "direct":
        rows = list(dict.fromkeys([inverted.prompt, prompt]))  # the source's row first
        return direct.sample_latents(pipe, trace, pipe.encode_prompts(rows), guidance, **given)
    if method == "edit-friendly":
        return edit_friendly.sample_latents(
            pipe, trace, pipe.encode_prompts([prompt]), guidance, **given
        )
    if method == "edict":
        return edict.sample_latents(pipe, trace, pipe.encode_prompts([prompt]), guidance, **given)
    return ddim.sample_latents(pipe, trace, pipe.encode_prompts([prompt]), guidance, **given)


# --- what fits what ------------------------------------------------------------------------


def fingerprints(pipe: Pipeline) -> Mapping[str, str]:
    """The model by its weights' fingerprints; by its name where it has none."""
    return dict(pipe.source.files) or {"name": pipe.source.name}


def described(solver: Scheduler) -> dict[str, Any]:
    """The solver's description as it comes out of a file."""
    through_json: dict[str, Any] = json.loads(json.dumps(solver.describe()))
    return through_json


def check_fit(pipe: Pipeline, inverted: Inverted) -> None:
    """Raise an InversionError unless the pipeline has the inversion's model and levels."""
    solver, _ = ddim.solvers(pipe)
    if not pipe.source.has_files(inverted.model):
        raise InversionError(
            f"the inversion is of another model than {pipe.source.name}",
            expected="the model whose noise was looked for",
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
    for name, step in (("skip", skip), *(("a visual step", step) for step in visual_steps)):
        if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < trace.steps:
            raise SettingError(
                f"{name} is {step!r}", expected=f"a whole number from 0 to {trace.steps - 1}"
            )
