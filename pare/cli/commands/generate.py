"""`pare generate`: text-to-image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pare.cli.embedding_options import embedding_options
from pare.cli.grouped_help import option
from pare.cli.image_run import ImageRun, image_command, load_pipeline
from pare.cli.option_types import not_in_recipe, noted
from pare.cli.options import memory_options, preview_option, run_options, size_option
from pare.cli.terminal import progress
from pare.errors import PromptError
from pare.runtime import validation

MOST_PROMPTS = 10_000


def prompt_or_file(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> str | None:
    """PROMPT, which --prompts-from replaces."""
    file = context.meta.get("pare.prompts_from")
    if value is None and file is None:
        raise click.MissingParameter(ctx=context, param=parameter, param_hint="'PROMPT'")
    if value is not None and file is not None:
        raise click.UsageError("PROMPT and --prompts-from exclude each other.", context)
    return None if value is None else validation.check_prompt(value)


EXAMPLES = (
    'pare generate "a sunny road in the mountains with a red car" --seed 7',
    'pare generate "a snowy road with a house" --count 4 --scheduler ddim --out house.png --grid',
)


@image_command(section="make", examples=EXAMPLES)
@click.argument("prompt", required=False, callback=prompt_or_file)
@option("--prompts-from", type=click.Path(path_type=Path), metavar="FILE", usual=True,
        **not_in_recipe("prompts_from"),
        help="Instead of PROMPT: a text file with a prompt on each line; blank lines and lines "
             "that begin with # are skipped.")  # fmt: skip
@size_option
@run_options
@preview_option
@embedding_options
@memory_options
def generate(prompt: str | None, **given: Any) -> None:
    """Text-to-image: generate images from PROMPT."""
    if prompt is not None:
        runs, prompts = [ImageRun.start()], [prompt]
    else:
        prompts = read_prompts(noted("prompts_from"))
        width = len(str(len(prompts)))
        runs = [
            ImageRun.start(number=f"{k:0{width}}", prompt=text)
            for k, text in enumerate(prompts, start=1)
        ]
    model = load_pipeline(given)
    for run, text in zip(runs, prompts, strict=True):
        pipe = run.with_edits(model, [text, given["negative"]])
        width, height = run.size(pipe)
        fitted = run.fit_memory(pipe, width, height)
        with run.preview(pipe) as shown:
            images = shown.generate(
                text, run.seeds, width=width, height=height, progress=progress(), **fitted,
                **run.sampling,
            )  # fmt: skip
        run.write(pipe, images)


def read_prompts(file: Path) -> list[str]:
    """The prompts in a text file, one a line.

    Raises:
        PromptError: no prompts, too many, or a line that is no text.
        OSError: the file cannot be opened.
    """
    lines = file.read_bytes().decode("utf-8", "surrogateescape").splitlines()
    prompts = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not 1 <= len(prompts) <= MOST_PROMPTS:
        raise PromptError(
            f"{file} holds {len(prompts)} prompts", expected=f"1 to {MOST_PROMPTS}, one a line"
        )
    return [validation.check_prompt(text) for text in prompts]
