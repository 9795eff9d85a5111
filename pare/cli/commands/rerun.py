"""`pare rerun`: an image made again from its recipe; recipes shown and compared."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pare.cli import terminal
from pare.cli.commands.sweep import NAME as SWEEP_OF
from pare.cli.commands.sweep import sweep_of
from pare.cli.grouped_help import command as pare_command
from pare.cli.grouped_help import option, options
from pare.cli.image_run import ImageCommand, Rerun, with_files
from pare.cli.json_output import plain
from pare.cli.option_types import DTYPE_NAMES
from pare.cli.options import force_option, json_option
from pare.cli.output_files import output_paths
from pare.cli.terminal import one_line
from pare.cli.time_limit import TimedRun, follow_in, limit_of, nobody_watches, time_limit_option
from pare.errors import RecipeError
from pare.io.whole_files import sha256, write_whole

if TYPE_CHECKING:
    from PIL import Image

    from pare.recipes.rebuild import Change, PixelDifference
    from pare.recipes.recipe import Recipe


LARGE = 50 * 768 * 768  # pixels x steps x images: more is said before the run


def named_paths(
    context: click.Context, parameter: click.Parameter, value: tuple[str, ...]
) -> dict[str, Path]:
    """NAME=PATH, several times, as a mapping."""
    pairs = [text.partition("=") for text in value]
    for name, equals, path in pairs:
        if not name or not equals or not path:
            raise click.BadParameter(f"{name + equals + path!r} is not NAME=PATH")
    return {name: Path(path) for name, _, path in pairs}


look_options = options(
    "Looking",
    option("--show", is_flag=True, usual=True,
           help="Print the recipe, and a command line to copy; run nothing."),
    option("--compare", type=click.Path(path_type=Path), metavar="OTHER", usual=True,
           help="Print where the recipes and pixels of IMAGE and OTHER differ; run nothing."),
    option("--check", is_flag=True, usual=True, help="Run and compare, but write nothing."),
    option("--alone", is_flag=True, usual=True,
           help="Run without the other images of its batch: quicker, but rounding may differ."),
    time_limit_option("if stderr is not a terminal"),
)  # fmt: skip

instead_options = options(
    "Files and machine",
    option("--input", "inputs", multiple=True, metavar="NAME=PATH", callback=named_paths,
           usual=True, help="The file of an input (image, mask), or another one to take."),
    option("--inputs", "folders", multiple=True, metavar="FOLDER", usual=True,
           type=click.Path(path_type=Path, exists=True, file_okay=False),
           help="Look for inputs and models here, too. Default: beside IMAGE, and here."),
    option("--model", "-m", usual=True, help="The model, or another one to take."),
    option("--revision", metavar="NAME", help="With --model: branch, tag or commit on the Hub."),
    option("--tokenizer", type=click.Path(path_type=Path), metavar="FOLDER",
           help="The tokenizer of a single file."),
    option("--device", help="Default: as recorded, if this machine has it."),
    option("--dtype", type=click.Choice(DTYPE_NAMES), help="Default: as recorded."),
    option("--threads", type=click.IntRange(1, 1024),
           help="Default: as recorded, if this machine has as many processors."),
)  # fmt: skip

output_options = options(
    "Output",
    option("--out", "-o", type=click.Path(path_type=Path), usual=True,
           help="NAME.png, .jpg, .webp or .avif, or a folder; never what the recipe says. Default: "
                "a new rerun-SEED.png in the folder `outputs`, if there is one, or here."),
    force_option,
    json_option,
)  # fmt: skip

EXAMPLES = (
    "pare rerun road.png --check",
    "pare rerun road.png --show",
)


@pare_command(section="check", examples=EXAMPLES)
@click.argument("image", type=click.Path(path_type=Path))
@look_options
@instead_options
@output_options
def rerun(image: Path, **given: Any) -> None:
    """Make IMAGE again from the recipe in it, and compare the two.

    Exit code 0 if they are the same to the pixel, 1 if not. Files and models that the recipe names
    must be unchanged, and nothing is downloaded for it; what you name instead is taken as it is.
    """
    from pare.recipes.recipe import read_recipe

    looks = [name for name in ("show", "compare", "check") if given[name]]
    if len(looks) > 1:
        raise click.UsageError(f"--{looks[0]} and --{looks[1]} exclude each other.")
    recipe = read_recipe(image)
    if given["show"]:
        show(image, recipe, given["as_json"])
    elif given["compare"]:
        compare(image, recipe, given["compare"], given["as_json"])
    else:
        make_again(image, recipe, given)


# --- looking ------------------------------------------------------------------------------


def show(image: Path, recipe: Recipe, as_json: bool) -> None:
    """Print the recipe, and the command line that does the same."""
    from pare.cli.recipe_arguments import check_recipe, for_a_shell

    command = command_of(recipe, image)
    arguments = check_recipe(command, recipe, str(image))
    revision = recipe.model.get("revision")
    if revision is not None and arguments.get("model") == recipe.model.get("name"):
        arguments["revision"] = revision
    line = for_a_shell(command, arguments)
    content = json.loads(recipe.to_json())
    if as_json:
        click.echo(json.dumps({**content, "command_line": line}, indent=2))
        return
    rows: dict[str, Any] = {"command": recipe.command}
    rows |= {key: value for key, value in arguments.items() if value not in (None, False, "", [])}
    rows["seed"] = recipe.seed
    if len(recipe.seeds) > 1:
        rows["seed"] = f"{recipe.seed}, image {recipe.index + 1} of {len(recipe.seeds)}"
    if recipe.parts:
        rows["seed"] = f"{recipe.seed}, number {recipe.index + 1} of {len(recipe.seeds)}"
        rows["part"] = f"{recipe.part}, of {', '.join(recipe.parts)}"
    for name, recorded in recipe.inputs.items():
        rows[name] = f"{recorded['name']}, SHA-256 {recorded['sha256']}"
    for key in ("device", "dtype", "threads", "model", "scheduler", "versions"):
        rows[key] = content[key]
    print_rows(rows)
    click.echo(f"\n{line}")


def print_rows(values: Mapping[str, Any], indent: str = "") -> None:
    """One fact a line; what is inside another, indented below it."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            click.echo(one_line_at(indent, f"{name}:"))
            print_rows(value, indent + "  ")
        else:
            click.echo(one_line_at(indent, f"{name}: {'none' if value is None else value}"))


def one_line_at(indent: str, text: str) -> str:
    return indent + one_line(text)


def compare(image: Path, recipe: Recipe, other: Path, as_json: bool) -> None:
    """Print where two images and their recipes differ."""
    from pare.io.images import load_image
    from pare.recipes.rebuild import compare_pixels, compare_recipes, short
    from pare.recipes.recipe import read_recipe

    changes = compare_recipes(recipe, read_recipe(other))
    pixels = compare_pixels(load_image(image), load_image(other))
    if as_json:
        click.echo(json.dumps(report(pixels, changes), indent=2))
        return
    if changes:
        print_table(
            ["", str(image), str(other)],
            *([change.name, short(change.one), short(change.other)] for change in changes),
        )
    else:
        click.echo("recipes: nothing that decides a pixel differs")
    click.echo(f"pixels: {pixels.in_words()}")


def print_table(*rows: list[str]) -> None:
    """Rows of three columns, one below the other."""
    safe = [[one_line(text) for text in row] for row in rows]
    first, second = (max(len(row[column]) for row in safe) for column in (0, 1))
    for row in safe:
        click.echo(f"{row[0]:{first}}  {row[1]:{second}}  {row[2]}")


def report(pixels: PixelDifference, changes: list[Change]) -> dict[str, Any]:
    return {
        "same": pixels.same,
        "pixels": dataclasses.asdict(pixels),
        "recipe": [dataclasses.asdict(change) for change in changes],
    }


# --- running ------------------------------------------------------------------------------


def make_again(path: Path, recipe: Recipe, given: Mapping[str, Any]) -> None:
    """Run the recipe's command, write the image, say how the two differ."""
    from pare.io.images import load_image
    from pare.recipes.rebuild import compare_pixels, compare_recipes
    from pare.recipes.recipe import as_stored, save_image

    out = None
    if not given["check"]:
        part = [recipe.part] if recipe.part else []
        (out,) = output_paths(given["out"], "rerun", [recipe.seed], part, force=given["force"])
    original = load_image(path)
    image, remade, notes = run_again(path, recipe, given)
    if out is not None:
        write = functools.partial(save_image, image, remade, out.suffix)
        write_whole(out, write, force=given["force"])
    image = as_stored(image, path)
    pixels, changes = compare_pixels(original, image), compare_recipes(recipe, remade)
    if given["as_json"]:
        place = {"image": str(path), "path": None if out is None else str(out)}
        result = {"command": "rerun", **place, **report(pixels, changes), "notes": notes}
        terminal.result(json.dumps(result, indent=2))
    else:
        if out is not None:
            terminal.result(out)
        for line in (
            f"{path}, made again, is {pixels.in_words()}",
            *differences_in_words(pixels, changes),
        ):
            (terminal.result if out is None else said)(one_line(line))
    if not pixels.same:
        click.get_current_context().exit(1)


def said(words: str) -> None:
    terminal.note(words, prefix="")


def announce(recipe: Recipe) -> None:
    """Say what a large run costs before it starts: a stranger may have asked for it."""
    size, steps = recipe.arguments.get("size"), recipe.arguments.get("steps") or 50
    images = len(recipe.seeds) * max(1, len(recipe.parts))
    width, height = size if isinstance(size, list) and len(size) == 2 else (0, 0)
    if steps * images * max(width * height, 64 * 64) > LARGE:
        sized = f" of {width} x {height}" if width else ""
        terminal.note(
            f"the recipe asks for {images} image{'s' if images > 1 else ''}{sized} in {steps} "
            "steps, which may take minutes; Ctrl-C ends it"
        )


def differences_in_words(pixels: PixelDifference, changes: list[Change]) -> list[str]:
    """What differs between then and now, one sentence each."""
    if changes or pixels.same:
        return [change.in_words() for change in changes]
    return ["nothing that a recipe holds differs: perhaps the processor, or its libraries"]


def run_again(
    path: Path, recipe: Recipe, given: Mapping[str, Any]
) -> tuple[Image.Image, Recipe, list[str]]:
    """The image and its recipe, as its command makes them now; and what is to be said."""
    from pare.cli.recipe_arguments import check_recipe, parse
    from pare.recipes.rebuild import (
        batch_of,
        find_machine,
        find_model,
        find_scheduler,
        find_tokenizer,
    )

    command = command_of(recipe, path)
    arguments = check_recipe(command, recipe, str(path))
    scheduler = find_scheduler(recipe.scheduler)
    paths, notes = find_inputs(path, recipe, given["inputs"], given["folders"])
    machine = find_machine(recipe, given["device"], given["dtype"], given["threads"])
    notes += machine.notes
    arguments = with_files(command, arguments, paths)
    arguments |= {"device": machine.device, "dtype": machine.dtype, "threads": machine.threads}
    arguments |= given.get("otherwise", {})
    arguments["tokenizer"] = plain(
        given["tokenizer"] or find_tokenizer(recipe, [path.parent, *given["folders"]])
    )
    if given["model"] is not None:
        same = given["model"] == recipe.arguments.get("model")
        commit = given["revision"] or (recipe.model.get("revision") if same else None)
        arguments |= {"model": given["model"], "revision": commit}
        found = None
    elif given["revision"] is not None:
        raise click.UsageError("--revision needs --model.")
    else:
        found = find_model(recipe, machine.dtype, [path.parent, *given["folders"]])
    announce(recipe)
    seeds = [recipe.seed] if given["alone"] else batch_of(recipe)
    if seeds != list(recipe.seeds):
        arguments |= {"seed": seeds, "count": 1}
    for note in notes:
        terminal.note(one_line(note))

    again = Rerun(scheduler, found, watch=given.get("watch"))
    seconds = limit_of(given["time_limit"], unattended=given.get("unattended", nobody_watches()))
    timed = TimedRun(seconds)
    with timed.limited(), parse(command, arguments, str(path), again) as context:
        follow_in(context, timed)
        command.invoke(context)
    place = recipe.seed, recipe.part
    image, remade = next(made for made in again.made if (made[1].seed, made[1].part) == place)
    return image, remade, notes


def command_of(recipe: Recipe, image: Path) -> click.Command:
    """The command that makes such images.

    Raises:
        RecipeError: this pare has none.
    """
    group = click.get_current_context().find_root().command
    assert isinstance(group, click.Group)
    command = group.get_command(click.get_current_context(), recipe.command)
    if recipe.command.startswith(SWEEP_OF):
        command = sweep_of(click.get_current_context(), recipe.command.removeprefix(SWEEP_OF))
    if not isinstance(command, ImageCommand):
        raise RecipeError(
            f"{image} was made by {recipe.command[:40]!r} of pare "
            f"{recipe.versions.get('pare', '?')[:20]}, which is no command for images here"
        )
    return command


def find_inputs(
    image: Path, recipe: Recipe, given: Mapping[str, Path], folders: Sequence[Path]
) -> tuple[dict[str, str], list[str]]:
    """Input -> the path to read it from; and a sentence for each that has changed."""
    from pare.recipes.rebuild import find_input

    for name in given:
        if name not in recipe.inputs:
            named = ", ".join(recipe.inputs) or "none"
            raise click.UsageError(f"{image} has no input {name!r}; its inputs: {named}.")
    paths, notes = {}, []
    for name, recorded in recipe.inputs.items():
        path = given.get(name) or find_input(name, recorded, image, folders)
        if sha256(path) != recorded["sha256"]:
            notes.append(f"{path} is not the {name} that {image} was made from")
        paths[name] = str(path)
    return paths, notes
