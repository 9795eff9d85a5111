"""`pare img2img`: image-to-image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pare.cli.embedding_options import embedding_options
from pare.cli.grouped_help import option
from pare.cli.image_run import ImageRun, image_command
from pare.cli.option_types import checked
from pare.cli.options import (
    image_argument,
    image_size_option,
    memory_options,
    preview_option,
    prompt_argument,
    run_options,
)
from pare.cli.terminal import progress
from pare.runtime import validation

STRENGTH = 0.8

strength_option = option(
    "--strength", type=float, usual=True,
    aliases=("--denoising-strength",), callback=checked(validation.check_strength),
    help="How much of the schedule runs, above 0 to 1: 0.2 changes details, 1 keeps little more "
         "than IMAGE's light and colours. Default: 0.8.",
)  # fmt: skip

start_option = option(
    "--start", type=click.IntRange(0), metavar="STEP",
    help="Begin at this step of the schedule, from 0, in place of --strength: 15 of 25 steps is "
         "--strength 0.4.",
)  # fmt: skip

EXAMPLES = ('pare img2img photo.jpg "a road in winter" --strength 0.6 --out winter.png',)


@image_command(section="make", examples=EXAMPLES)
@image_argument
@prompt_argument
@strength_option
@start_option
@image_size_option
@run_options
@preview_option
@embedding_options
@memory_options
def img2img(
    image: Path, prompt: str, strength: float | None, start: int | None, **given: Any
) -> None:
    """Image-to-image: re-generate IMAGE from PROMPT, keeping its composition.

    IMAGE is noised to the middle of the schedule and denoised from there (SDEdit,
    arXiv:2108.01073). The result has IMAGE's size.
    """
    from pare.io.images import fit, load_image
    from pare.study.record.setting_sweep import strength_from

    if strength is not None and start is not None:
        raise click.UsageError("--strength and --start exclude each other.")
    run = ImageRun.start()
    if start is not None:
        strength = strength_from(start, given["steps"])
    strength = STRENGTH if strength is None else strength
    source = load_image(image)
    input_image, restore = fit(source, given["size"])
    pipe = run.load_pipeline(texts=[prompt, given["negative"]])
    width, height = run.size(pipe, input_image.size)
    fitted = run.fit_memory(pipe, width, height)
    with run.preview(pipe) as shown:
        images = shown.img2img(
            input_image, prompt, run.seeds, strength=strength, progress=progress(), **fitted,
            **run.sampling,
        )  # fmt: skip
    made = [restore(one) for one in images]
    run.write(pipe, made, [run.judge(pipe, one, before=source, prompt=prompt) for one in made])
