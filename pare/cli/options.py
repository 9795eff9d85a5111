"""Options and arguments that several commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from pare.cli.commands.completion import offer, offer_models
from pare.runtime import validation

# pare.schedulers imports torch, so its names stand here too; a test holds them together.
SCHEDULER_NAMES = ("ddim", "dpm++2m", "lms", "pndm", "euler", "euler-ancestral")
DTYPE_NAMES = ("auto", "float32", "float16", "bfloat16")

Command = TypeVar("Command", bound=Callable[..., None])


def checked(check: Callable[[Any], Any]) -> Callable[..., Any]:
    """An option's callback that applies a check of `validation` unless the option is absent."""

    def callback(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
        return None if value is None else check(value)

    return callback


def each(check: Callable[[Any], Any]) -> Callable[..., Any]:
    """The same for something that may be given several times."""
    return checked(lambda values: tuple(check(value) for value in values))


def aside(name: str) -> Callable[..., None]:
    """The callback of an option that changes no image, and so is no argument of a run: with
    `expose_value=False`, for `noted`."""

    def callback(context: click.Context, parameter: click.Parameter, value: Any) -> None:
        context.meta[f"pare.{name}"] = value

    return callback


def noted(name: str) -> Any:
    """What `aside` has kept of the command that runs."""
    return click.get_current_context().meta.get(f"pare.{name}")


FIND_NAN = "pare.find_nan"
"""Where a context's `meta` keeps whether `--find-nan` is given: it changes no image, and so
is no argument of a run."""


def note_find_nan(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    context.meta[FIND_NAN] = value


def options(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator, in the order in which --help lists them."""

    def decorate(command: Command) -> Command:
        return functools.reduce(lambda inner, add: add(inner), reversed(decorators), command)

    return decorate


json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")

model_options = options(
    click.option("--model", default="roads", show_default=True, shell_complete=offer_models,
                 help="`roads` (built in), a model's folder in the Hub's layout, a single file, or "
                      "OWNER/NAME on the Hub."),
    click.option("--device", default="auto", show_default=True,
                 shell_complete=offer("auto", "cpu", "cuda", "mps"),
                 help="auto, cpu, cuda, cuda:1, mps."),
    click.option("--dtype", default="auto", show_default=True, type=click.Choice(DTYPE_NAMES),
                 help="The number type of the weights; auto: float16 on a GPU, else float32."),
    click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads."),
)  # fmt: skip

tokenizer_option = click.option(
    "--tokenizer", type=click.Path(path_type=Path), metavar="FOLDER",
    help="For a single file that has not CLIP's own tokens.",
)  # fmt: skip

revision_option = click.option(
    "--revision", metavar="NAME",
    help="A branch, a tag or a commit's hash of a model on the Hub; the main branch if not given.",
)  # fmt: skip

scheduler_options = options(
    click.option("--scheduler", type=click.Choice(SCHEDULER_NAMES),
                 help="The solver; the model's own if not given."),
    click.option("--karras/--no-karras", default=None, help="Karras sigmas, where they apply."),
    click.option("--eta", type=float, callback=checked(validation.check_eta),
                 help="DDIM's share of fresh noise, 0 to 1."),
)  # fmt: skip

sampling_options = options(
    click.option("--steps", type=int, default=25, show_default=True,
                 callback=checked(validation.check_steps), help="Sampling steps, 1 to 1000."),
    click.option("--guidance", type=float, default=7.5, show_default=True,
                 callback=checked(validation.check_guidance),
                 help="Scale of classifier-free guidance; 1: none."),
    click.option("--rescale", type=float, default=0.0, show_default=True,
                 callback=checked(validation.check_rescale),
                 help="Draw the guided contrast back, 0 to 1."),
    click.option("--negative", default="", callback=checked(validation.check_prompt),
                 help="What the image should not show."),
    click.option("--find-nan", is_flag=True, expose_value=False, callback=note_find_nan,
                 help="If a number goes wrong (NaN), run once more and name the layer."),
)  # fmt: skip

memory_options = options(
    click.option("--batch", type=click.IntRange(1, validation.MAX_IMAGES),
                 help="Images that go through the model together; as many as fit into memory "
                      "if not given."),
    click.option("--tile", type=click.IntRange(8), metavar="PIXELS",
                 help="Let the VAE work in tiles of this side, a multiple of 8; on whole images "
                      "if not given and they fit into memory."),
)  # fmt: skip

output_options = options(
    click.option("--seed", type=int, multiple=True, default=(0,),
                 help="The noise to start from (0); give it several times for several images."),
    click.option("--count", type=int, default=1, show_default=True,
                 help="So many images, with consecutive seeds."),
    click.option("--out", type=click.Path(path_type=Path), default=Path(),
                 help="NAME.png (NAME-SEED.png for several seeds) or a folder (COMMAND-SEED.png "
                      "in it); the current folder if not given."),
    click.option("--force", is_flag=True, help="Overwrite existing files."),
    json_option,
)  # fmt: skip


class InputFile(click.Path):
    """The name of a file that an image is made from: the recipe keeps its SHA-256."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def file(self, value: Any) -> Path:
        """The file in an option's value, which may say more."""
        return Path(value)

    def with_file(self, value: Any, path: str) -> Any:
        """The value with another file."""
        return path


prompt_argument = click.argument("prompt", callback=checked(validation.check_prompt))
image_argument = click.argument("image", type=InputFile())
