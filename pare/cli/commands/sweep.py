"""`pare sweep`: a command's images under many settings, on one page (an X/Y plot)."""

from __future__ import annotations

import difflib
import functools
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pare.cli.commands.generate import generate
from pare.cli.commands.img2img import img2img
from pare.cli.grouped_help import PareGroup, option, options
from pare.cli.image_run import ImageCommand, ImageRun, Rerun, image_command
from pare.cli.json_output import plain
from pare.cli.option_types import InputFile, checked
from pare.cli.options import optional_image_size_option, prompt_argument, run_options
from pare.cli.recipe_arguments import words
from pare.cli.terminal import FOLLOW, TYPED, progress
from pare.errors import PromptError, SettingError
from pare.runtime import validation

if TYPE_CHECKING:
    from PIL import Image

MOST = 100  # images on a page
LEGIBLE = 192  # pixels: the width below which an image on the page is enlarged
PROMPTS = ("prompt", "source", "target", "targets")  # in which `replace` replaces
AS_TYPED = "AXIS=VALUE,VALUE,…"
FLAGS = {"true": True, "on": True, "yes": True, "false": False, "off": False, "no": False}
OWN = ("over", "cell")
NAME = "sweep --command "  # of the command that sweeps others, before their names

Axes = dict[str, list[str]]


# --- axes ---------------------------------------------------------------------------------


def parse_axis(text: str) -> tuple[str, list[str]]:
    """`guidance=1,7.5` as ("guidance", ["1", "7.5"]); `steps=5..8` as 5 to 8.

    Values that hold commas are separated by semicolons.
    """
    name, equals, values = text.partition("=")
    name = name.strip().lstrip("-").replace("-", "_")
    if not equals or not name or not values.strip():
        raise SettingError(f"`over` is {text!r}", expected=AS_TYPED)
    listed = [value.strip() for value in values.split(";" if ";" in values else ",")]
    return name, [one for value in listed for one in numbers_of(value)]


def numbers_of(text: str) -> list[str]:
    """`1..5` as the whole numbers from 1 to 5; anything else as it is."""
    if not re.fullmatch(r"[0-9]+\.\.[0-9]+", text):
        return [text]
    low, high = map(int, text.split(".."))
    if not 0 <= high - low < MOST:
        raise SettingError(f"the range {text!r} is empty or too long", expected="as in 1..5")
    return [str(value) for value in range(low, high + 1)]


def check_axes(texts: Sequence[str]) -> tuple[str, ...]:
    """The axes as they were typed, which is what a recipe keeps."""
    names = [parse_axis(text)[0] for text in texts]
    if len(set(names)) < len(names):
        raise SettingError("an axis is given twice", fix="give all its values together")
    return tuple(texts)


def read_axes(commands: Sequence[ImageCommand], over: Sequence[str]) -> Axes:
    """Setting -> its values: the commands themselves where there are several, then --over.

    Raises:
        SettingError: no or more than two settings, one that no command has, too many images.
    """
    axes: Axes = {"command": [str(one.name) for one in commands]} if len(commands) > 1 else {}
    named = {name: str(parameter.name) for one in commands for name, parameter in settings(one)}
    for text in over:
        name, values = parse_axis(text)
        if name != "replace" and name not in named:
            near = difflib.get_close_matches(name, [*named, "replace"], 1)
            called = " and ".join(f"`pare {one.name}`" for one in commands)
            raise SettingError(
                f"`over` is {text!r}",
                expected=f"{AS_TYPED} with replace or an option of {called}"
                + (f" (did you mean {near[0]!r}?)" if near else ""),
            )
        axes[named.get(name, name)] = values
    if not 1 <= len(axes) <= 2:
        raise SettingError(
            f"{len(axes)} settings change ({', '.join(axes) or 'none'})", expected="one, or two"
        )
    count = math.prod(map(len, axes.values()))
    if count > MOST:
        raise SettingError(f"`over` asks for {count} images", expected=f"at most {MOST}")
    return axes


def settings(command: click.Command) -> Iterable[tuple[str, click.Parameter]]:
    """What can be swept, by every name that it has on the command line and in recipes."""
    for parameter in command.params:
        if parameter.expose_value and parameter.name not in ("out", "force", "as_json", "count"):
            yield str(parameter.name), parameter
            yield from ((n.lstrip("-").replace("-", "_"), parameter) for n in parameter.opts)


# --- the command --------------------------------------------------------------------------


class SweepCommand(ImageCommand):
    """Reads `--command NAME` first: the other words on the line are that command's."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:  # fmt: skip
        names, rest = taken_command(args)
        if names is None or parent is None:
            return super().make_context(info_name, args, parent, **extra)
        return sweep_of(parent, names).make_context(info_name, rest, parent, **extra)


def taken_command(args: Sequence[str]) -> tuple[str | None, list[str]]:
    """The value of --command, and the line without it."""
    for k, word in enumerate(args):
        if word == "--":
            break
        if word == "--command" and k + 1 < len(args):
            return args[k + 1], [*args[:k], *args[k + 2 :]]
        if word.startswith("--command="):
            return word.partition("=")[2], [*args[:k], *args[k + 1 :]]
    return None, list(args)


def sweep_of(context: click.Context, names: str) -> ImageCommand:
    """The command that sweeps others, which takes all of their arguments and options.

    Raises:
        UsageError: a name of no command that makes or edits images.
    """
    group = context.find_root().command
    assert isinstance(group, PareGroup)
    known = {
        name: one for name, one in group.all_commands().items()
        if isinstance(one, ImageCommand) and one.section in ("make", "edit")
    }  # fmt: skip
    listed = [name.strip() for name in names.split(",")]
    for name in listed:
        if name not in known or listed.count(name) > 1:
            raise click.UsageError(
                f"--command is {names!r}; expected one of {', '.join(known)}, or several."
            )
    commands = [known[name] for name in listed]
    parameters = {
        str(parameter.name): parameter for one in commands for parameter in one.params
        if parameter.expose_value or parameter.name in ("keep_paths", "no_hash", "strict")
    }  # fmt: skip
    own = [parameter for parameter in sweep.params if parameter.name in OWN]
    return ImageCommand(
        f"{NAME}{','.join(listed)}",
        params=[*parameters.values(), *own],
        callback=functools.partial(sweep_pages, commands),
        help=f"Compare settings of {' and '.join(listed)}, on one page for each seed.",
        section="study",
    )


sweep_options = options(
    "Sweep",
    option("--over", "--vary", "over", multiple=True, metavar="AXIS=VALUE,…",
           callback=checked(check_axes), usual=True,
           help="What changes, and its values: an option of the command without its dashes "
                "(guidance, steps, seed, scheduler, model, …), or replace=OLD,NEW,… (each NEW in "
                "place of OLD in the prompts). 1..5 is 1,2,3,4,5; values that hold commas are "
                "separated by semicolons. Given twice, all values of the one meet all of the "
                "other."),
    option("--command", metavar="NAME[,NAME]", usual=True, expose_value=False,
           help="Sweep another command (edit, p2p, erase, blend, guide, …), whose arguments and "
                "options follow; several commands are an axis. Default: generate; with --image, "
                "img2img."),
    option("--image", type=InputFile(), metavar="FILE", usual=True,
           help="An image to start from, as in `pare img2img`."),
    option("--strength", type=float, metavar="SHARE",
           callback=checked(validation.check_strength),
           help="With --image: how much of the schedule runs. Default: 0.8."),
    option("--cell", type=click.IntRange(0, 2048), metavar="PIXELS",
           help="Width of each image on the page; 0: its own. Default: its own, at least 192."),
)  # fmt: skip

EXAMPLES = (
    'pare sweep "a snowy road with a red car" --over guidance=1,7.5,15 --out guidance.png',
    'pare sweep "a road at night" --over scheduler=ddim,dpm++2m --over steps=2,6',
    'pare sweep "a sunny road" --over replace=sunny,snowy,rainy --over seed=1..3 --out seasons.png',
    'pare sweep "a snowy road" --image photo.jpg --over start=0,1 --out start.png',
    'pare sweep --command p2p "a sunny road" "a snowy road" --over cross-replace=0,0.2,1',
)


@image_command(section="study", examples=EXAMPLES, cls=SweepCommand)
@prompt_argument
@sweep_options
@optional_image_size_option
@run_options
def sweep(image: Path | None, strength: float | None, **given: Any) -> None:
    """Compare settings: generate PROMPT under each value of one setting or two, on one page.

    Writes one page a seed, all of its images from the same initial noise. With --command the
    settings are those of any technique.
    """
    if image is None:
        if strength is not None:
            raise SettingError("`strength` needs an image to start from", fix="pass `image`")
        for name in {"strength", "start"} & {parse_axis(text)[0] for text in given["over"]}:
            raise SettingError(f"{name} needs an image to start from", fix="pass `image`")
    command = generate if image is None else img2img
    sweep_pages([command], image=image, strength=strength, **given)


def sweep_pages(
    commands: Sequence[ImageCommand], over: Sequence[str], cell: int | None, **given: Any
) -> None:
    """Run every combination, and write a page for each seed."""
    from pare.study.record.image_grid import gallery
    from pare.study.record.setting_sweep import label

    run = ImageRun.start()
    axes = read_axes(commands, over)
    combinations = [
        dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())
    ]
    cells = Cells(commands, given, axes, run.rerun)
    # All are parsed first, so that what is wrong is said before anything runs.
    pages_of_runs = [[cells.parsed(one, seed) for one in combinations] for seed in run.seeds]
    pages = []
    for runs in pages_of_runs:
        images = {
            label(combinations[k]): cells.image(runs[k])
            for k in progress("images")(range(len(runs)))
        }
        columns = len(list(axes.values())[-1]) if len(axes) > 1 else 8
        pages.append(gallery(enlarged(images, cell), columns))
    shown = {name: [as_number(value) for value in values] for name, values in axes.items()}
    run.write(cells.first_pipeline(), pages, over=shown)


class Cells:
    """The runs of a sweep, each through its command's own parser; models are loaded once."""

    def __init__(
        self, commands: Sequence[ImageCommand], given: Mapping[str, Any], axes: Axes,
        rerun: Rerun | None,
    ) -> None:  # fmt: skip
        self.commands = {str(one.name): one for one in commands}
        self.given = plain(given)
        self.axes = axes
        self.shared = Rerun(scheduler=None, model=None)
        if rerun is not None:  # what `pare rerun` found of the recipe, where it is not an axis
            fixed = len(commands) == 1 and not {"scheduler", "karras", "eta"} & set(axes)
            self.shared.scheduler = rerun.scheduler if fixed else None
            self.shared.model = None if "model" in axes else rerun.model

    def parsed(self, chosen: Mapping[str, str], seed: int) -> click.Context:
        """The command of a cell, ready to be invoked.

        Raises:
            UsageError, PareError: the command does not take the values.
        """
        first = next(iter(self.commands))
        command = self.commands[chosen.get("command", first)]
        parameters = {str(parameter.name): parameter for parameter in command.params}
        arguments = {name: value for name, value in self.given.items() if name in parameters}
        arguments |= {"seed": [seed], "count": 1, "out": None, "force": False, "as_json": False}
        if "replace" in chosen:
            arguments |= self.replaced(arguments, chosen["replace"])
        for name, value in chosen.items():
            if name in parameters and name != "replace":  # --replace is about embeddings
                arguments[name] = typed(parameters[name], value)
        again = Rerun(self.shared.scheduler, self.shared.model, loaded=self.shared.loaded)
        try:
            return command.make_context(str(command.name), words(command, arguments), obj=again)
        except click.UsageError as error:
            raise click.UsageError(error.format_message(), click.get_current_context()) from error

    def replaced(self, arguments: Mapping[str, Any], new: str) -> dict[str, Any]:
        """The prompts with `new` in the place of the first value of `replace`."""
        old = self.axes["replace"][0]
        prompts = {name: arguments[name] for name in PROMPTS if arguments.get(name)}
        if old not in str(list(prompts.values())):
            raise PromptError(
                f"{old!r} is not in the prompt {next(iter(prompts.values()), '')!r}",
                expected="the first value of replace to be what stands in the prompt",
            )
        return {
            name: [one.replace(old, new) for one in value]
            if isinstance(value, list) else value.replace(old, new)
            for name, value in prompts.items()
        }  # fmt: skip

    def image(self, context: click.Context) -> Image.Image:
        """The image that a command makes; of a source and its edits the last edit."""
        outer = click.get_current_context()
        noted = {name: value for name, value in outer.meta.items() if name != FOLLOW}
        context.meta.update({**noted, TYPED: outer})  # the images are timed, not their steps
        with context:
            context.command.invoke(context)
        again = context.find_object(Rerun)
        assert again is not None
        return again.made[-1][0]

    def first_pipeline(self) -> Any:
        return next(iter(self.shared.loaded.values()))


def typed(parameter: click.Parameter, value: str) -> Any:
    """A value of an axis as a recipe has it; a flag's is true or false."""
    if isinstance(parameter, click.Option) and parameter.is_flag:
        if value.lower() not in FLAGS:
            raise SettingError(f"`{parameter.name}` is {value!r}", expected="true or false")
        return FLAGS[value.lower()]
    return [value] if parameter.multiple or parameter.nargs == -1 else value


def as_number(text: str) -> str | float:
    """For JSON: a number where it is one."""
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError:
        return text


def enlarged(images: dict[str, Image.Image], cell: int | None) -> dict[str, Image.Image]:
    """The images at the width of a cell; small ones at a whole multiple of their size."""
    from PIL import Image as Pillow

    def fitted(image: Image.Image) -> Image.Image:
        if cell == 0:
            return image
        if cell is None:
            times = max(1, -(-LEGIBLE // image.width))
            size = image.width * times, image.height * times
            return image.resize(size, Pillow.Resampling.NEAREST)
        size = cell, max(1, round(image.height * cell / image.width))
        return image.resize(size, Pillow.Resampling.LANCZOS)

    return {label: fitted(image) for label, image in images.items()}
