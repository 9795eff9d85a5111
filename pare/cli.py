"""`pare …`: parsing and printing only.

Every command reads in the same order: check everything that a user can get wrong, the
output's name included; load the model; run; write.  torch is imported only when a
command runs, so that `pare --help` answers at once.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

import pare
from pare import settings
from pare.console import on_terminal, run_in_words
from pare.errors import OutputError
from pare.files import check_output, sha256, write_whole

if TYPE_CHECKING:
    from PIL import Image

    from pare.pipeline import Pipeline

# pare.schedulers imports torch, so its names stand here too; a test holds them together.
SCHEDULER_NAMES = ("ddim", "dpmpp_2m", "euler", "euler_ancestral", "lms", "pndm")
DTYPE_NAMES = ("auto", "float32", "float16", "bfloat16")

Command = TypeVar("Command", bound=Callable[..., None])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `pare` with the given arguments (default: the process's); the exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)

    def body() -> int:
        with cli.make_context("pare", given) as context:
            cli.invoke(context)
        return 0

    return run_in_words(body)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(pare.__version__, prog_name="pare", message="%(prog)s %(version)s")
def cli() -> None:
    """Stable Diffusion with nothing hidden: make pictures, edit them, check the model.

    Results go to stdout, everything else to stderr.
    """


# --- options that commands share ---------------------------------------------------------


def checked(check: Callable[[Any], Any]) -> Callable[..., Any]:
    """An option's callback that applies a check of `pare.settings` unless the option is absent."""

    def callback(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
        return None if value is None else check(value)

    return callback


def options(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator, in the order in which --help lists them."""

    def decorate(command: Command) -> Command:
        return functools.reduce(lambda inner, add: add(inner), reversed(decorators), command)

    return decorate


model_options = options(
    click.option("--model", default="roads", show_default=True,
                 help="`roads` (built in), a repository on the Hub, a folder or a file."),
    click.option("--device", default="auto", show_default=True,
                 help="auto, cpu, cuda, cuda:1, mps."),
    click.option("--dtype", default="auto", show_default=True, type=click.Choice(DTYPE_NAMES),
                 help="The number type of the weights; auto: float16 on a GPU, else float32."),
    click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads."),
)  # fmt: skip

scheduler_options = options(
    click.option("--scheduler", type=click.Choice(SCHEDULER_NAMES),
                 help="The solver; the model's own if not given."),
    click.option("--karras/--no-karras", default=None, help="Karras sigmas, where they apply."),
    click.option("--eta", type=float, callback=checked(settings.check_eta),
                 help="DDIM's share of fresh noise, 0 to 1."),
)  # fmt: skip

sampling_options = options(
    click.option("--steps", type=int, default=25, show_default=True,
                 callback=checked(settings.check_steps), help="Sampling steps, 1 to 1000."),
    click.option("--guidance", type=float, default=7.5, show_default=True,
                 callback=checked(settings.check_guidance),
                 help="Scale of classifier-free guidance; 1: none."),
    click.option("--rescale", type=float, default=0.0, show_default=True,
                 callback=checked(settings.check_rescale),
                 help="Draw the guided contrast back, 0 to 1."),
    click.option("--negative", default="", callback=checked(settings.check_prompt),
                 help="What the picture should not show."),
)  # fmt: skip

output_options = options(
    click.option("--seed", type=int, multiple=True, default=(0,), show_default="0",
                 help="The noise to start from; several make several pictures."),
    click.option("--count", type=int, default=1, show_default=True,
                 help="So many pictures, with consecutive seeds."),
    click.option("--out", type=click.Path(path_type=Path), default=Path(),
                 help="NAME.png (NAME-SEED.png for several seeds) or a folder (COMMAND-SEED.png "
                      "in it); the current folder if not given."),
    click.option("--force", is_flag=True, help="Overwrite existing files."),
    click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
)  # fmt: skip

prompt_argument = click.argument("prompt", callback=checked(settings.check_prompt))
image_argument = click.argument("image", type=click.Path(path_type=Path))


# --- commands ----------------------------------------------------------------------------


@cli.command()
@prompt_argument
@click.option("--size", metavar="WxH", callback=checked(settings.parse_size),
              help="Multiples of 8; the size that the model was trained at if not given.")  # fmt: skip
@sampling_options
@scheduler_options
@model_options
@output_options
def generate(prompt: str, size: tuple[int, int] | None, **given: Any) -> None:
    """Make pictures from PROMPT."""
    started = time.perf_counter()
    seeds = settings.consecutive_seeds(given["seed"], given["count"])
    paths = output_paths(given["out"], "generate", seeds, given["force"])
    pipe = load_pipeline(given)
    width, height = size or (None, None)
    images = pipe.generate(
        [prompt] * len(seeds), seeds, width=width, height=height, **sampling(given)
    )
    write_pictures(pipe, to_pictures(images), seeds, paths, {}, started)


# --- what the commands share -------------------------------------------------------------


def output_paths(out: Path, command: str, seeds: Sequence[int], force: bool) -> list[Path]:
    """One file name a seed, each of them free (or to be overwritten) and writable."""
    if out.is_dir():
        paths = [out / f"{command}-{seed}.png" for seed in seeds]
    elif out.suffix.lower() != ".png":
        raise OutputError(
            f"--out is {out}",
            expected="a name that ends in .png (the format that keeps the recipe) or a folder "
            "that exists",
        )
    elif len(seeds) == 1:
        paths = [out]
    else:
        paths = [out.with_name(f"{out.stem}-{seed}{out.suffix}") for seed in seeds]
    for path in paths:
        check_output(path, force=force)
    return paths


def load_pipeline(given: Mapping[str, Any]) -> Pipeline:
    """The model and scheduler that the options name."""
    import torch

    from pare.pipeline import Pipeline

    if given["threads"] is not None:
        torch.set_num_threads(given["threads"])
    chosen = {name: given[name] for name in ("karras", "eta") if given[name] is not None}
    return Pipeline.from_pretrained(
        given["model"],
        device=given["device"],
        dtype=given["dtype"],
        scheduler=given["scheduler"],
        **chosen,
    )


def sampling(given: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling settings by the names that the pipeline gives them."""
    return {name: given[name] for name in ("steps", "guidance", "rescale", "negative")}
