"""Parity of finished images under every solver: generated, image-to-image, and blended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from pare.io.images import to_pil, to_tensor
from pare.pipeline import Pipeline
from pare.schedulers import start_index
from pare.verify import diffusers_side
from pare.verify.model_pair import (
    GUIDANCE,
    KARRAS,
    NEGATIVE,
    PROMPT,
    SEED,
    SOLVERS,
    ModelPair,
    solver_options,
)
from pare.verify.paired_timing import in_turns
from pare.verify.parity_table import Bound, Compared, Distance, ParityRow, Skipped
from techniques.blended import blend


def generate_rows(models: ModelPair) -> Iterator[Compared]:
    """A prompt to an image under every solver; diffusers' side is its own pipeline call."""

    def theirs(pipeline: Any, name: str, karras: bool) -> Tensor:
        config = models.pipe.scheduler_config
        return diffusers_side.generate(
            pipeline,
            diffusers_side.build_scheduler(name, config, karras=karras),
            PROMPT,
            seed=SEED,
            steps=models.steps,
            guidance=GUIDANCE,
            negative=NEGATIVE,
            latent_shape=models.latent_shape,
        )

    def ours(pipe: Pipeline) -> Tensor:
        return pipe.generate(
            PROMPT, [SEED], steps=models.steps, guidance=GUIDANCE, negative=NEGATIVE
        ).tensor

    yield from image_rows(models, "generate", ours, theirs)


def img2img_rows(models: ModelPair) -> Iterator[Compared]:
    """Image-to-image at strength 0.6 under every solver."""
    strength = 0.6

    def theirs(pipeline: Any, name: str, karras: bool) -> Tensor:
        return diffusers_side.img2img(
            pipeline,
            their_run(models, name, karras, strength),
            models.image,
            PROMPT,
            seed=SEED,
            guidance=GUIDANCE,
            negative=NEGATIVE,
        )

    def ours(pipe: Pipeline) -> Tensor:
        return pipe.img2img(
            models.image,
            PROMPT,
            [SEED],
            strength=strength,
            steps=models.steps,
            guidance=GUIDANCE,
            negative=NEGATIVE,
        ).tensor

    yield from image_rows(models, "img2img", ours, theirs)


def blend_rows(models: ModelPair) -> Iterator[Compared]:
    """Blended latent diffusion under every solver, its background as the VAE decodes it.

    Both sides return finished 8-bit images, so that errors are whole 255ths.
    """

    strength = 0.8
    mask = middle_mask(models.image.size)

    def theirs(pipeline: Any, name: str, karras: bool) -> Tensor:
        edited, _ = diffusers_side.blend(
            pipeline,
            their_run(models, name, karras, strength),
            models.image,
            mask,
            PROMPT,
            seed=SEED,
            guidance=GUIDANCE,
            negative=NEGATIVE,
        )
        image = diffusers_side.to_8_bits(pipeline, edited)[0]
        return to_tensor(image) / 2 + 0.5

    def ours(pipe: Pipeline) -> Tensor:
        blended = blend(
            pipe,
            models.image,
            mask,
            PROMPT,
            [SEED],
            strength=strength,
            steps=models.steps,
            guidance=GUIDANCE,
            negative=NEGATIVE,
            background="latent",
        )
        return to_tensor(blended.images[0])

    yield from image_rows(models, "blend", ours, theirs)


def their_run(
    models: ModelPair, name: str, karras: bool, strength: float
) -> diffusers_side.SolverRun:
    """diffusers' run that starts at the step at which pare's does for this strength."""
    scheduler = diffusers_side.build_scheduler(name, models.pipe.scheduler_config, karras=karras)
    start = start_index(models.steps, strength)
    return diffusers_side.SolverRun(name, scheduler, models.steps, start, models.device)


def image_rows(
    models: ModelPair,
    group: str,
    ours: Callable[[Pipeline], Tensor],
    theirs: Callable[[Any, str, bool], Tensor],
) -> Iterator[Compared]:
    """One row a solver.  `ours(pipe)` gives (1, 3, H, W) in [-1, 1] and
    `theirs(pipeline, solver, karras)` the same in [0, 1]."""
    if models.inpaints:
        yield Skipped(group, "an inpainting model, whose UNet takes a mask as well")
        return
    config = models.pipe.scheduler_config
    for name, karras in (*((name, False) for name in SOLVERS), *((name, True) for name in KARRAS)):
        label = name + (" with Karras sigmas" if karras else "")
        reason = diffusers_side.known_deviation(name, config, karras=karras)
        if name == "euler-ancestral" and models.exact is not None:
            reason = "diffusers draws the noise of its steps in half precision"
        if reason:
            yield Skipped(f"{group}, {label}", reason)
            continue
        pipe = models.pipe.with_scheduler(name, **solver_options(name, karras))
        timing = in_turns(
            partial(ours, pipe),
            partial(theirs, models.theirs, name, karras),
            models.device,
            pairs=1,
        )
        levels = apart(models, timing.ours, timing.theirs)
        limit = 1
        if models.exact is not None:
            # pare keeps latents in float32 between the steps and diffusers does not, so that
            # pare may be nearer to diffusers' float32: either will do.
            exact = theirs(models.exact, name, karras)
            limit = max(1, apart(models, exact * 2 - 1, timing.theirs))
            levels = min(levels, apart(models, timing.ours, exact))
        distance = Distance.between((timing.ours / 2 + 0.5).clamp(0, 1), timing.theirs)
        yield ParityRow(group, label, distance, Bound("levels", limit), levels, timing.ratio)


def apart(models: ModelPair, ours: Tensor, theirs: Tensor) -> int:
    """The largest difference of two images in 8-bit levels, each rounded by its own side."""
    one = np.asarray(to_pil(ours)[0]).astype(int)
    other = np.asarray(diffusers_side.to_8_bits(models.theirs, theirs)[0]).astype(int)
    return int(np.abs(one - other).max())


def middle_mask(size: tuple[int, int]) -> Image.Image:
    """White in the middle half of the image, black around it."""
    width, height = size
    mask = Image.new("L", size, 0)
    box = (width // 4, height // 4, width * 3 // 4 - 1, height * 3 // 4 - 1)
    ImageDraw.Draw(mask).rectangle(box, fill=255)
    return mask
