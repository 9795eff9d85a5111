"""`pare sweep`: one prompt under many settings, on one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from pare.cli.commands.generate import generate_options
from pare.cli.examples import examples
from pare.cli.options import (
    InputFile,
    checked,
    model_options,
    options,
    output_options,
    prompt_argument,
    revision_option,
    sampling_options,
    scheduler_options,
    tokenizer_option,
)
from pare.cli.run_command import ImageCommand, Run, load_pipeline, sampling, warn_of_size
from pare.cli.terminal import progress
from pare.errors import SettingError

WORDS = ("scheduler",)  # settings whose values are words
WHOLE = ("steps", "start")
NUMBERS = ("guidance", "rescale", "strength")


def parse_over(text: str) -> tuple[str, list[float | int | str]]:
    """`guidance=1,3,7.5` as ("guidance", [1.0, 3.0, 7.5])."""
    name, equals, values = text.partition("=")
    name = name.strip()
    if not equals or name not in (*NUMBERS, *WHOLE, *WORDS):
        raise SettingError(
            f"--over is {text!r}",
            expected="SETTING=VALUE,VALUE,… with a setting of "
            f"{', '.join((*NUMBERS, *WHOLE, *WORDS))}",
        )
    listed = [value.strip() for value in values.split(",")]
    if name in WORDS:
        return name, list(listed)
    try:
        return name, [int(v) if name in WHOLE else float(v) for v in listed]
    except ValueError as error:
        kind = "whole numbers" if name in WHOLE else "numbers"
        raise SettingError(
            f"{name} is to be {values!r}", expected=f"{kind}, as in 1,2,3"
        ) from error


def check_over(texts: Sequence[str]) -> tuple[str, ...]:
    """Sweeps as they were written, which is what a recipe keeps."""
    names = [parse_over(text)[0] for text in texts]
    if len(set(names)) < len(names):
        raise SettingError("a setting is swept twice", fix="give all its values together")
    return tuple(texts)


sweep_options = options(
    click.option("--over", "over", multiple=True, required=True, metavar="SETTING=VALUE,…",
                 callback=checked(check_over),
                 help="The setting that changes and its values: guidance, rescale, steps, "
                      "scheduler; with --image also strength, or start, the step at which the run "
                      "begins. Given twice, all values of the one meet all of the other."),
    click.option("--image", type=InputFile(), metavar="FILE",
                 help="An image to start from, as `pare img2img` does."),
    click.option("--strength", type=click.FloatRange(0, 1, min_open=True), metavar="SHARE",
                 help="With --image, where it is not swept: how much of the run is run; 0.8 if "
                      "not given."),
)  # fmt: skip

EXAMPLES = examples(
    'pare sweep "a snowy road with a red car" --over guidance=1,7.5,15 --out guidance.png',
    'pare sweep "a road at night" --over scheduler=ddim,dpm++2m --over steps=2,6',
    'pare sweep "a snowy road" --image photo.jpg --over start=0,1 --out start.png',
)


@click.command(cls=ImageCommand, epilog=EXAMPLES)
@prompt_argument
@sweep_options
@generate_options
@sampling_options
@scheduler_options
@model_options
@revision_option
@tokenizer_option
@output_options
def sweep(
    prompt: str, over: tuple[str, ...], image: Path | None, size: tuple[int, int] | None,
    strength: float | None, **given: Any,
) -> None:  # fmt: skip
    """Make PROMPT's image again and again while one setting changes, or two.

    Writes one page a seed, with an image for every value, all from the same noise.
    """
    from pare.io.images import fit, load_image, to_tensor
    from pare.study.record.image_grid import gallery
    from pare.study.record.setting_sweep import check_sweep
    from pare.study.record.setting_sweep import sweep as run_sweep

    run = Run.plan()
    axes = dict(map(parse_over, over))
    check_sweep(axes, image is not None)
    if strength is not None and image is None:
        raise SettingError("--strength needs a input_image to start from", fix="give one (--image)")
    input_image = None if image is None else load_image(image)
    pipe = load_pipeline(given)
    width, height = size or (input_image.size if input_image else pipe.trained_size)
    warn_of_size(pipe, (width, height), "take a smaller --size")
    fixed = {name: value for name, value in sampling(given).items() if name not in axes}
    if input_image is not None:
        input_image = fit(input_image, size)[0]
        width, height = input_image.size
        if not {"strength", "start"} & set(axes):
            fixed["strength"] = 0.8 if strength is None else strength
    pages = []
    for seed in run.seeds:
        results = run_sweep(
            pipe, prompt, axes, seed=seed, height=height, width=width,
            image=None if input_image is None else to_tensor(input_image),
            progress=progress("images"), **fixed,
        )  # fmt: skip
        columns = len(list(axes.values())[-1]) if len(axes) > 1 else 8
        pages.append(gallery(results, columns))
    run.write(pipe, pages, over=axes)
