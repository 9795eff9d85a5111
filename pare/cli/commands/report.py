"""`pare report`: one run as a page for a browser."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pare.cli import terminal
from pare.cli.commands.rerun import command_of, run_again
from pare.cli.grouped_help import command, option, options
from pare.cli.image_run import load_pipeline, recipe_arguments, sampling, warn_of_size
from pare.cli.option_types import SeedRange, flat_seeds
from pare.cli.options import (
    json_option,
    model_options,
    sampling_options,
    scheduler_options,
    size_option,
)
from pare.cli.output_files import output_paths
from pare.cli.recipe_arguments import check_recipe, for_a_shell
from pare.cli.terminal import one_line, progress
from pare.cli.time_limit import time_limit_option
from pare.errors import RecipeError, SettingError
from pare.runtime import validation

if TYPE_CHECKING:
    from PIL import Image

    from pare.pipeline import Pipeline
    from pare.recipes.recipe import Recipe
    from pare.study.record.html_report import RunReport
    from pare.text.words import Words

REPORTED = (
    "generate", "img2img", "trace", "guide", "blend", "erase", "p2p", "edit", "invert",
)  # fmt: skip
"""The commands whose images can be reported on; `attention` and `sweep` make pages of them."""

report_options = options(
    "Report",
    option("--seed", "-s", type=SeedRange(), multiple=True, callback=flat_seeds, usual=True,
           metavar="SEED", help="Seed of the initial noise. Default: 0."),
    option("--out", "-o", type=click.Path(path_type=Path), usual=True,
           help="NAME.html, or a folder. Default: a new report-SEED.html, or one of IMAGE's name, "
                "in the folder `outputs`, if there is one, or here."),
    option("--inputs", "folders", multiple=True, metavar="FOLDER", usual=True,
           type=click.Path(path_type=Path, exists=True, file_okay=False),
           help="Look for IMAGE's inputs and model here, too. Default: beside it, and here."),
    time_limit_option("for an IMAGE"),
    option("--force", is_flag=True, usual=True, help="Overwrite an existing file."),
    json_option,
)  # fmt: skip

EXAMPLES = (
    'pare report "a red car on a snowy road" --seed 7 --steps 30 --out car.html',
    "pare report road.png",
)


@command(section="study", examples=EXAMPLES)
@click.argument("prompt", metavar="PROMPT|IMAGE")
@report_options
@size_option
@sampling_options
@scheduler_options
@model_options
def report(prompt: str, **given: Any) -> None:
    """Explain a run on one page for a browser: generate PROMPT, or run the recipe of IMAGE again.

    For an IMAGE that pare made only --inputs, --time-limit, --out and --force count. Of an edit
    the page shows the sampling from the inverted latents; of p2p the prompts of this image, with
    the attention after the edit. It is one file and needs no network: attention maps of every
    word, x_t and x0 step by step, the effect of guidance, and every layer of the UNet with its
    shape, cost, code and output.
    """
    path = Path(prompt)
    from_image = path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp", ".avif")
    if len(given["seed"]) > 1:
        raise SettingError(f"{len(given['seed'])} seeds are given", expected="one a report")
    seed = given["seed"][0]
    name, seeds = (path.stem, []) if from_image else ("report", [seed])
    (out,) = output_paths(given["out"], name, seeds, endings=[".html", ".htm"],
                          force=given["force"])  # fmt: skip
    if from_image:
        reported, image, about = from_recipe(path, given)
    else:
        reported, image, about = from_prompt(validation.check_prompt(prompt), seed, given)
    size = reported.write(out, image, about, force=given["force"])
    started = click.get_current_context().meta[terminal.STARTED]
    seconds = time.perf_counter() - started
    if given["as_json"]:
        result = {"command": "report", "path": str(out), "bytes": size}
        terminal.result(json.dumps(result | {"seconds": round(seconds, 3)}, indent=2))
    else:
        terminal.result(out)
    terminal.summary(f"{out}: {seconds:.1f} s")


def from_prompt(
    prompt: str, seed: int, given: dict[str, Any]
) -> tuple[RunReport, Image.Image, dict[str, Any]]:
    """The run that the options ask for."""
    from pare.recipes.recipe import current_versions
    from pare.study.record.html_report import RunReport

    pipe = load_pipeline(given)
    width, height = given["size"] or pipe.trained_size
    warn_of_size(pipe, (width, height), given)
    texts = [words_of(pipe, prompt)]
    reported = RunReport(pipe, texts, steps=given["steps"], size=(width, height))
    announce(reported, given["steps"], given["guidance"])
    with reported as watched:
        images = watched.generate(
            prompt, [seed], width=width, height=height, batch=1, progress=progress(),
            **sampling(given),
        )  # fmt: skip
    context = click.get_current_context()
    arguments = recipe_arguments(context.command, context.params)
    about = {
        "command": for_a_shell(context.command, arguments),
        **{name: value for name, value in arguments.items() if value is not None},
        "model": pipe.source.name,
        "scheduler": pipe.scheduler.name,
        "device": str(pipe.device),
        "dtype": str(pipe.dtype).removeprefix("torch."),
        "versions": current_versions(str(pipe.device)),
    }
    return reported, images[0], about


def from_recipe(
    path: Path, given: Mapping[str, Any]
) -> tuple[RunReport, Image.Image, dict[str, Any]]:
    """An image's own run, once more.

    Raises:
        RecipeError: no recipe, or one of a command that there is no report on.
        OSError: no such file.
    """
    from pare.recipes.recipe import read_recipe
    from pare.study.record.html_report import RunReport

    recipe, folders = read_recipe(path), given["folders"]
    require_followed(path, recipe)
    texts, which = prompts_of(recipe)
    steps = steps_of(path, recipe, folders)
    found: list[RunReport] = []
    with ExitStack() as stack:

        def watch(pipe: Pipeline) -> Pipeline:
            """The pipeline that the path's command gets instead of its own."""
            size = recipe.arguments.get("size") or fitted(path, pipe.vae.config.factor)
            words = [words_of(pipe, text) for text in texts]
            found.append(RunReport(pipe, words, steps=steps, size=(size[0], size[1]), image=which))
            announce(found[0], steps, float(recipe.arguments.get("guidance") or 7.5))
            return stack.enter_context(found[0])

        instead = dict.fromkeys(("device", "dtype", "threads", "model", "revision", "tokenizer"))
        how: dict[str, Any] = {
            **instead,
            "inputs": {},
            "folders": folders,
            "alone": True,
            "watch": watch,
            "time_limit": given["time_limit"],
            "unattended": True,
        }
        if recipe.command == "edit":  # or its last sampling were the reconstruction's
            how["otherwise"] = {"reconstruct": False}
        image, remade, _ = run_again(path, recipe, how)
    if found[0].recording.repeated:
        raise not_followed(path, "its run evaluates the model several times a step")
    arguments = check_recipe(command_of(recipe, path), recipe, str(path))
    about = {
        "prompt": texts[which],
        "image": path.name,
        "command": for_a_shell(command_of(recipe, path), arguments),
        **{name: value for name, value in arguments.items() if value is not None},
        "seed": remade.seed,
        "model": remade.model.get("name"),
        "scheduler": remade.scheduler["name"],
        "device": remade.device,
        "dtype": remade.dtype,
        "versions": remade.versions,
    }
    return found[0], image, about


def require_followed(image: Path, recipe: Recipe) -> None:
    """Raise a RecipeError for a run that is not one forward pass of the model a step."""
    if recipe.command not in REPORTED:
        raise RecipeError(
            f"{image} was made by `pare {one_line(recipe.command[:40])}`",
            expected=f"an image of {', '.join(REPORTED)}",
        )
    given = recipe.arguments
    if given.get("method") == "replay":
        raise not_followed(image, "its source and target ran one after the other (replay)")
    if given.get("method") == "edict":
        raise not_followed(image, "EDICT samples two coupled latents")
    if given.get("separately") or (given.get("batch") == 1 and recipe.command == "p2p"):
        raise not_followed(image, "its prompts ran one after the other (--separately)")


def not_followed(image: Path, why: str) -> RecipeError:
    return RecipeError(
        f"{image} cannot be reported on: {why}",
        expected="one forward pass of the model at each step",
    )


def prompts_of(recipe: Recipe) -> tuple[list[str], int]:
    """What each row of the run is to show, and which of them the image is."""
    given = recipe.arguments
    if recipe.command == "p2p":
        return [given["source"], *given["targets"]], recipe.parts.index(recipe.part or "")
    if recipe.command == "edit":
        source, target = given["source"] or "", given["target"] or given["source"] or ""
        return ([source, target], 1) if given["kind"] == "p2p" else ([target], 0)
    return [str(given["prompt"])], 0


def steps_of(image: Path, recipe: Recipe, folders: Sequence[Path]) -> int:
    """How many steps the whole way has."""
    if recipe.inputs.get("inversion") is not None:
        from pare.recipes.rebuild import find_input
        from techniques.inversion import load

        path = find_input("inversion", recipe.inputs["inversion"], image, folders)
        return load(path).trace.steps
    return int(recipe.arguments["steps"] or 50)


def words_of(pipe: Pipeline, prompt: str) -> Words:
    from pare.text import words

    return words.read(pipe.tokenizer, prompt, int(pipe.text_encoder.config.max_position_embeddings))


def fitted(image: Path, factor: int) -> tuple[int, int]:
    """The size that the model worked at for an image of the file's size."""
    from pare.io.images import load_image

    width, height = (-(-side // factor) * factor for side in load_image(image).size)
    return width, height


def announce(reported: RunReport, steps: int, guidance: float) -> None:
    """Say how much memory recording takes; refuse what does not fit."""
    from pare.study.inspect.text_tables import size

    need = reported.check_memory(steps, guidance)
    terminal.note(f"recording takes {size(need)} of memory")
