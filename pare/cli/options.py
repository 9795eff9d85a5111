"""Options and arguments that several commands share, in the groups in which --help shows them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from pare.cli.grouped_help import Function, option, options, together
from pare.cli.lora_options import lora_option
from pare.cli.option_types import (
    DTYPE_NAMES,
    SCHEDULER_NAMES,
    InputFile,
    OneNumber,
    SchedulerName,
    SeedRange,
    checked,
    flat_seeds,
    karras_of_name,
    not_in_recipe,
    offer,
    offer_models,
)
from pare.runtime import validation

prompt_argument = click.argument("prompt", callback=checked(validation.check_prompt))
image_argument = click.argument("image", type=InputFile())

json_option = option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
force_option = option("--force", is_flag=True, usual=True, help="Overwrite existing files.")


def size_option_with(default: str) -> Callable[[Function], Function]:
    return option(
        "--size", metavar="WxH", callback=checked(validation.parse_size), usual=True,
        help=f"Width and height in pixels, multiples of 8 (512 is 512x512). Default: {default}.",
    )  # fmt: skip


size_option = size_option_with("what the model was trained at")
image_size_option = size_option_with("IMAGE's")
optional_image_size_option = size_option_with("IMAGE's, or what the model was trained at")

preview_option = option(
    "--preview", is_flag=True, **not_in_recipe("preview"),
    help="Show the predicted x0 while the model samples: in terminals that draw images (kitty, "
         "iTerm2, sixel), else as NAME-preview.png, which is there until the run ends.",
)  # fmt: skip

MACHINE = (
    option("--model", "-m", default="roads", show_default=True, shell_complete=offer_models,
           usual=True,
           help="`roads` (built in), a folder, a single file, or OWNER/NAME on "
                "the Hub."),
    option("--device", default="auto", show_default=True,
           shell_complete=offer("auto", "cpu", "cuda", "mps"),
           help="auto, cpu, cuda, cuda:1, mps."),
    option("--dtype", default="auto", show_default=True, type=click.Choice(DTYPE_NAMES),
           help="Number type of the weights; auto: float16 on a GPU, else float32."),
    option("--threads", type=click.IntRange(1, 1024), help="CPU threads."),
    option("--revision", metavar="NAME",
           help="Branch, tag or commit of a model on the Hub. Default: main."),
)  # fmt: skip
strict_option = option(
    "--strict", is_flag=True, **not_in_recipe("strict"),
    help="Refuse a model whose config files hold keys that do not describe it, or name a solver "
         "that pare does not have. Default: leave them out, or take the nearest, with a warning.",
)  # fmt: skip
tokenizer_option = option(
    "--tokenizer", type=click.Path(path_type=Path), metavar="FOLDER",
    help="Tokenizer of a single file whose model does not use CLIP's own.",
)  # fmt: skip
no_hash_option = option(
    "--no-hash", is_flag=True, **not_in_recipe("no_hash"),
    help="Do not compare downloaded weights with the SHA-256 that the server announces.",
)  # fmt: skip
model_options = options(
    "Model and machine", *MACHINE, tokenizer_option, strict_option, no_hash_option, lora_option
)
model_options_without_tokenizer = options("Model and machine", *MACHINE)


def scheduler_options_with(default: str) -> Callable[[Function], Function]:
    return options(
        "Scheduler",
        option("--scheduler", type=SchedulerName(), usual=True, aliases=("--sampler",),
               metavar="NAME",
               help=f"The solver, one of {len(SCHEDULER_NAMES)}: ddim, dpm++2m, euler, lms, unipc, "
                    f"… (docs/schedulers.md). Default: {default}."),
        option("--karras/--no-karras", default=None, callback=karras_of_name,
               help="Karras noise levels (arXiv:2206.00364), for the schedulers that have them."),
        option("--eta", type=float, callback=checked(validation.check_eta),
               help="DDIM: how much fresh noise each step adds, from 0 (none) to 1 (as DDPM)."),
    )  # fmt: skip


scheduler_options = scheduler_options_with("the model's own")
edit_scheduler_options = scheduler_options_with("dpm++2m with Karras noise levels")
inversion_scheduler_options = scheduler_options_with("ddim, which can be inverted")

sampling_options = options(
    "Sampling",
    option("--steps", type=OneNumber(click.INT), default=25, show_default=True, usual=True,
           aliases=("--num-inference-steps",), callback=checked(validation.check_steps),
           help="Sampling steps, 1 to 1000."),
    option("--guidance", type=OneNumber(click.FLOAT), default=7.5, show_default=True, usual=True,
           aliases=("--cfg", "--cfg-scale", "--guidance-scale"),
           callback=checked(validation.check_guidance),
           help="Scale of classifier-free guidance; 1: none."),
    option("--negative", default="", usual=True, aliases=("--negative-prompt",),
           callback=checked(validation.check_prompt),
           help="Negative prompt: what the image should not show."),
    option("--rescale", type=OneNumber(click.FLOAT), default=0.0, show_default=True,
           aliases=("--guidance-rescale",), callback=checked(validation.check_rescale),
           help="Guidance rescale (arXiv:2305.08891), 0 to 1: restores the contrast that a high "
                "guidance scale exaggerates."),
    option("--find-nan", is_flag=True, **not_in_recipe("find_nan"),
           help="If a NaN appears, run once more and name the layer in which it begins."),
)  # fmt: skip

memory_options = options(
    "Memory",
    option("--batch", type=click.IntRange(1, validation.MAX_IMAGES), aliases=("--batch-size",),
           help="Images that go through the UNet together. Default: as many as fit into memory."),
    option("--tile", type=click.IntRange(8), metavar="PIXELS",
           help="Encode and decode in tiles of this side, a multiple of 8. Default: whole images, "
                "where they fit into memory."),
)  # fmt: skip

output_options = options(
    "Seeds and files",
    option("--seed", "-s", type=SeedRange(), multiple=True, callback=flat_seeds, usual=True,
           metavar="SEED", help="Seed of the initial noise; several: 1-4 or 3,5; random: -1. "
                                "Default: 0."),
    option("--count", "-n", type=int, default=1, show_default=True, usual=True,
           aliases=("--num-images-per-prompt",), help="Number of images, with consecutive seeds."),
    option("--out", "-o", type=click.Path(path_type=Path), usual=True,
           help="NAME.png, .jpg, .webp or .avif (NAME-SEED.png for several seeds), or a folder. "
                "Default: COMMAND-SEED.png, in the folder `outputs` if there is one."),
    force_option,
    option("--grid", is_flag=True, **not_in_recipe("grid"),
           help="Of several images also write a contact sheet, NAME-grid.png."),
    option("--keep-paths", is_flag=True, **not_in_recipe("keep_paths"),
           help="Write full paths into the recipe. Default: names and SHA-256 sums alone."),
    json_option,
)  # fmt: skip

run_options = together(sampling_options, scheduler_options, model_options, output_options)
edit_run_options = together(sampling_options, edit_scheduler_options, model_options, output_options)
