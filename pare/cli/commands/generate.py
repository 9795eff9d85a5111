"""`pare generate`: images from words."""

from __future__ import annotations

from typing import Any

import click

from pare.cli.examples import examples
from pare.cli.options import (
    checked,
    memory_options,
    model_options,
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

generate_options = click.option(
    "--size", metavar="WxH", callback=checked(validation.parse_size),
    help="Multiples of 8; the size that the model was trained at if not given.",
)  # fmt: skip


EXAMPLES = examples(
    'pare generate "a snowy road in the forest" --seed 7',
    'pare generate "a red car by the sea" --count 4 --scheduler ddim --out cars.png',
)


@click.command(cls=ImageCommand, epilog=EXAMPLES)
@prompt_argument
@generate_options
@sampling_options
@text_options
@memory_options
@scheduler_options
@model_options
@revision_option
@tokenizer_option
@output_options
def generate(prompt: str, size: tuple[int, int] | None, **given: Any) -> None:
    """Make images from PROMPT."""
    run, edits = Run.plan(), read_edits(given)
    pipe = under_edits(load_pipeline(given), edits, [prompt, given["negative"]])
    width, height = size or pipe.trained_size
    warn_of_size(pipe, (width, height), "take a smaller --size")
    fitted = fit_memory(pipe, run, given, height, width)
    run = noting_words(run.noting(**fitted), given, edits)
    images = pipe.generate(
        prompt, run.seeds, width=width, height=height, progress=progress(), **fitted,
        **sampling(given),
    )  # fmt: skip
    run.write(pipe, images)
