"""`pare inspect`: what a model is, layer by layer, and what is wrong with it."""

from __future__ import annotations

import json

import click

from pare.cli.examples import examples
from pare.cli.options import DTYPE_NAMES, checked, json_option, options, revision_option
from pare.cli.printing import say_on_terminal
from pare.errors import ModelError
from pare.runtime import validation

inspect_options = options(
    click.option("--model", metavar="MODEL", help="As the first argument."),
    click.option("--size", metavar="WxH", callback=checked(validation.parse_size),
                 help="Of the images; the size that the model was trained at if not given."),
    click.option("--batch", type=click.IntRange(1, 1024), default=1, show_default=True,
                 help="So many images at once; under guidance the UNet sees each twice."),
    click.option("--dtype", default="float32", show_default=True,
                 type=click.Choice(DTYPE_NAMES[1:]), help="What the weights would be cast to."),
    click.option("--depth", type=click.IntRange(1, 100), metavar="N",
                 help="How deep into the layers; as deep as fits on a screen if not given."),
    click.option("--values", is_flag=True,
                 help="Read the weights: range, mean, spread, NaN and Inf of every tensor."),
)  # fmt: skip

EXAMPLES = examples(
    "pare inspect",
    "pare inspect sd1 --batch 2",
    "pare inspect unet.down_blocks.1.attentions.0",
    "pare inspect sd21 'unet.*.attn2' --size 768x512",
    "pare inspect model.safetensors --values",
)


@click.command(epilog=EXAMPLES)
@click.argument("names", nargs=-1, metavar="[MODEL] [LAYER]")
@inspect_options
@revision_option
@json_option
def inspect(
    names: tuple[str, ...], model: str | None, revision: str | None, as_json: bool,
    size: tuple[int, int] | None, batch: int, dtype: str, depth: int | None, values: bool,
) -> None:  # fmt: skip
    """Say what MODEL is: parts, parameters, shapes, cost, code; and what is wrong with it.

    MODEL is what --model takes elsewhere, or sd1 or sd21 for these architectures without
    weights; roads if not given. LAYER opens one layer (unet.mid_block), or lists all that a
    glob matches. No weights are read without --values. Exit code 2 if the model is broken.
    """
    from pare.study.inspect.inspection import Settings, inspect_model, split_names

    name, layer = split_names(names, model)
    wanted = Settings(size, batch, dtype, depth, values)
    found = inspect_model(name, layer, wanted, revision=revision, progress=say_on_terminal())
    click.echo(json.dumps(found.json, indent=2) if as_json else found.page)
    if found.problem:
        raise ModelError(found.problem)
