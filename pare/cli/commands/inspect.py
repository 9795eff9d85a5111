"""`pare inspect`: a model layer by layer."""

from __future__ import annotations

import json

import click

from pare.cli import terminal
from pare.cli.grouped_help import command, option, options
from pare.cli.option_types import DTYPE_NAMES, checked
from pare.cli.options import json_option
from pare.errors import ModelError
from pare.runtime import validation

inspect_options = options(
    "Inspection",
    option("--model", "-m", metavar="MODEL", help="As the first argument."),
    option("--size", metavar="WxH", callback=checked(validation.parse_size),
           help="Of the images. Default: the size that the model was trained at."),
    option("--batch", type=click.IntRange(1, 1024), default=1, show_default=True,
           help="Images at once; under guidance the UNet evaluates each twice."),
    option("--dtype", default="float32", show_default=True, type=click.Choice(DTYPE_NAMES[1:]),
           help="Number type to which the weights would be cast."),
    option("--depth", type=click.IntRange(1, 100), metavar="N",
           help="Levels of nested layers to list. Default: what fits on a screen."),
    option("--values", is_flag=True,
           help="Read the weights: range, mean, deviation, NaN and Inf of every tensor."),
    option("--revision", metavar="NAME",
           help="Branch, tag or commit of a model on the Hub. Default: main."),
    json_option,
)  # fmt: skip

EXAMPLES = (
    "pare inspect",
    "pare inspect sd1 --batch 2",
    "pare inspect unet.down_blocks.1.attentions.0",
    "pare inspect sd21 'unet.*.attn2' --size 768x512",
    "pare inspect model.safetensors --values",
)


@command(section="study", examples=EXAMPLES)
@click.argument("names", nargs=-1, metavar="[MODEL] [LAYER]")
@inspect_options
def inspect(
    names: tuple[str, ...], model: str | None, revision: str | None, as_json: bool,
    size: tuple[int, int] | None, batch: int, dtype: str, depth: int | None, values: bool,
) -> None:  # fmt: skip
    """Describe MODEL layer by layer: parameters, shapes, cost, code; and what is wrong with it.

    MODEL is as for --model elsewhere, or sd1 or sd21 for these architectures without weights;
    roads by default. LAYER opens one layer (unet.mid_block), or lists all that a glob matches. No
    weights are read without --values. Exit code 2 if the model is broken.
    """
    from pare.study.inspect.inspection import Settings, inspect_model, split_names

    name, layer = split_names(names, model)
    wanted = Settings(size, batch, dtype, depth, values)
    found = inspect_model(
        name, layer, wanted, revision=revision, progress=terminal.note_on_terminal()
    )
    terminal.result(json.dumps(found.json, indent=2) if as_json else found.page)
    if found.problem:
        raise ModelError(found.problem)
