"""`pare img2img`: an image made over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pare.cli.examples import examples
from pare.cli.options import (
    checked,
    image_argument,
    memory_options,
    model_options,
    options,
    output_options,
    prompt_argument,
    revision_option,
    sampling_options,
    scheduler_options,
    tokenizer_option,
)
from pare.cli.run_command import (
    ImageCommand,
    Run,
    fit_memory,
    load_pipeline,
    sampling,
    warn_of_size,
)
from pare.cli.terminal import progress
from pare.cli.text_options import noting_words, read_edits, text_options, under_edits
from pare.runtime import validation

img2img_options = options(
    click.option("--strength", type=float, default=0.8, show_default=True,
                 callback=checked(validation.check_strength),
                 help="How much of the timestep schedule runs, from IMAGE under the noise where "
                      "it starts: 1 is all of it, with a trace of IMAGE's light and colours."),
    click.option("--size", metavar="WxH", callback=checked(validation.parse_size),
                 help="Work at this size (multiples of 8); IMAGE's own if not given."),
)  # fmt: skip


EXAMPLES = examples(
    'pare img2img photo.jpg "a road in winter" --strength 0.6 --out winter.png',
)


@click.command(cls=ImageCommand, epilog=EXAMPLES)
@image_argument
@prompt_argument
@img2img_options
@sampling_options
@text_options
@memory_options
@scheduler_options
@model_options
@revision_option
@tokenizer_option
@output_options
def img2img(
    image: Path, prompt: str, strength: float, size: tuple[int, int] | None, **given: Any
) -> None:
    """Make IMAGE over, as PROMPT says; the result has IMAGE's size."""
    from pare.io.images import fit, load_image

    run, edits = Run.plan(), read_edits(given)
    input_image, restore = fit(load_image(image), size)
    pipe = under_edits(load_pipeline(given), edits, [prompt, given["negative"]])
    warn_of_size(pipe, input_image.size, "--size works smaller")
    fitted = fit_memory(pipe, run, given, input_image.height, input_image.width)
    run = noting_words(run.noting(**fitted), given, edits)
    images = pipe.img2img(
        input_image, prompt, run.seeds, strength=strength, progress=progress(), **fitted,
        **sampling(given),
    )  # fmt: skip
    run.write(pipe, [restore(made) for made in images])
