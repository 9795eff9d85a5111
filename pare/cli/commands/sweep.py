"""`pare sweep`: one prompt under many settings, on one page (an X/Y plot)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pare.cli.grouped_help import option, options
from pare.cli.image_run import ImageRun, image_command, load_pipeline
from pare.cli.option_types import InputFile, checked, scheduler_of
from pare.cli.options import optional_image_size_option, prompt_argument, run_options
from pare.cli.terminal import progress
from pare.errors import SettingError
from pare.runtime import validation

if TYPE_CHECKING:
    from PIL import Image

    from pare.pipeline import Pipeline

WORDS = ("scheduler", "replace", "model")  # axes whose values are text
WHOLE = ("steps", "start", "seed")
INJECTION = ("cross_replace", "self_replace")  # of Prompt-to-Prompt, with --to
NUMBERS = ("guidance", "rescale", "strength")
AXES = (*NUMBERS, *WHOLE, *WORDS, *INJECTION)
MOST = 100  # values
LEGIBLE = 192  # pixels: the width below which an image on the page is enlarged


def parse_axis(text: str) -> tuple[str, list[float | int | str]]:
    """`guidance=1,3,7.5` as ("guidance", [1.0, 3.0, 7.5]); `steps=5..8` as 5 to 8."""
    name, equals, values = text.partition("=")
    name = name.strip().replace("-", "_")
    if not equals or name not in AXES:
        raise SettingError(
            f"`over` is {text!r}",
            expected=f"AXIS=VALUE,VALUE,… with an axis of {', '.join(AXES)}",
        )
    listed = [value.strip() for value in values.split(",")]
    if name == "scheduler":
        return name, [scheduler_of(value)[0] for value in listed]
    if name in WORDS:
        return name, list(listed)
    spread = [number for value in listed for number in numbers_of(value)]
    try:
        return name, [int(v) if name in WHOLE else float(v) for v in spread]
    except ValueError as error:
        kind = "whole numbers" if name in WHOLE else "numbers"
        raise SettingError(
            f"the values of {name} are {values!r}", expected=f"{kind}, as in 1,2,3 or 1..5"
        ) from error


def numbers_of(text: str) -> list[str]:
    """`1..5` as the whole numbers from 1 to 5; anything else as it is."""
    first, dots, last = text.partition("..")
    if not dots:
        return [text]
    low, high = (int(end) if end.isdecimal() else -1 for end in (first, last))
    if low < 0 or not 0 <= high - low < MOST:
        raise SettingError(f"the range {text!r} is empty or too long", expected="as in 1..5")
    return [str(value) for value in range(low, high + 1)]


def check_axes(texts: Sequence[str]) -> tuple[str, ...]:
    """The axes as they were typed, which is what a recipe keeps."""
    names = [parse_axis(text)[0] for text in texts]
    if len(set(names)) < len(names):
        raise SettingError("an axis is given twice", fix="give all its values together")
    return tuple(texts)


sweep_options = options(
    "Sweep",
    option("--over", "--vary", "over", multiple=True, required=True, metavar="AXIS=VALUE,…",
           callback=checked(check_axes), usual=True,
           help="What changes, and its values: guidance, rescale, steps, seed, scheduler, model, "
                "or replace=OLD,NEW,… (each NEW in place of OLD in PROMPT); with --image also "
                "strength, or start, the step at which the run begins; with --to cross_replace or "
                "self_replace, as in `pare p2p`. 1..5 is 1,2,3,4,5. Given twice, all values of "
                "the one meet all of the other."),
    option("--to", "target", metavar="PROMPT", callback=checked(validation.check_prompt),
           help="Edit PROMPT's image into that of this prompt by Prompt-to-Prompt, and show the "
                "edited one."),
    option("--image", type=InputFile(), metavar="FILE", usual=True,
           help="An image to start from, as in `pare img2img`."),
    option("--strength", type=click.FloatRange(0, 1, min_open=True), metavar="SHARE",
           help="With --image: how much of the schedule runs. Default: 0.8."),
    option("--cell", type=click.IntRange(0, 2048), metavar="PIXELS",
           help="Width of each image on the page; 0: its own. Default: its own, at least 192."),
)  # fmt: skip

EXAMPLES = (
    'pare sweep "a snowy road with a red car" --over guidance=1,7.5,15 --out guidance.png',
    'pare sweep "a road at night" --over scheduler=ddim,dpm++2m --over steps=2,6',
    'pare sweep "a sunny road" --over replace=sunny,snowy,rainy --over seed=1..3 --out seasons.png',
    'pare sweep "a snowy road" --image photo.jpg --over start=0,1 --out start.png',
    'pare sweep "a sunny road" --to "a snowy road" --over cross_replace=0,0.2,1 --out figure.png',
)


@image_command(section="study", examples=EXAMPLES)
@prompt_argument
@sweep_options
@optional_image_size_option
@run_options
def sweep(
    prompt: str, over: tuple[str, ...], target: str | None, image: Path | None,
    strength: float | None, cell: int | None, **given: Any,
) -> None:  # fmt: skip
    """Compare settings: generate PROMPT under each value of one setting or two, on one page.

    Writes one page a seed, all of its images from the same initial noise.
    """
    from pare.io.images import fit, load_image, to_tensor
    from pare.study.record.image_grid import gallery
    from pare.study.record.setting_sweep import check_sweep
    from pare.study.record.setting_sweep import sweep as run_sweep

    run = ImageRun.start()
    axes = dict(map(parse_axis, over))
    if target is None:
        if missing := set(INJECTION) & set(axes):
            raise SettingError(f"{missing.pop()} needs a prompt to edit to", fix="pass `target`")
        check_sweep(axes, prompt, image is not None)
    else:
        check_injection_sweep(axes, image)
    if strength is not None and image is None:
        raise SettingError("`strength` needs an image to start from", fix="pass `image`")
    input_image = None if image is None else fit(load_image(image), given["size"])[0]
    pipe = run.load_pipeline(None if target is None else preferred_scheduler())
    width, height = run.size(pipe, None if input_image is None else input_image.size)
    fixed = {name: value for name, value in run.sampling.items() if name not in axes}
    if input_image is not None and not {"strength", "start"} & set(axes):
        fixed["strength"] = 0.8 if strength is None else strength
    pages = []
    for seed in run.seeds:
        if target is not None:
            fixed |= {"seed": seed, "height": height, "width": width}
            results = sweep_edits(pipe, prompt, target, axes, fixed)
        else:
            results = run_sweep(
                pipe, prompt, axes, seed=seed, height=height, width=width,
                image=None if input_image is None else to_tensor(input_image),
                load=lambda model: load_pipeline({**given, "model": model}),
                progress=progress("images"), **fixed,
            )  # fmt: skip
        columns = len(list(axes.values())[-1]) if len(axes) > 1 else 8
        pages.append(gallery(enlarged(results, cell), columns))
    run.write(pipe, pages, over=axes)


def preferred_scheduler() -> Mapping[str, object]:
    """That of `pare p2p`."""
    from techniques.prompt_to_prompt import PREFERRED_SCHEDULER

    return PREFERRED_SCHEDULER


def check_injection_sweep(axes: Mapping[str, Sequence[Any]], image: Path | None) -> None:
    """
    Raises:
        SettingError: an image beside the target, an axis that Prompt-to-Prompt does not have, or
            a fraction that is none.
    """
    if image is not None:
        raise SettingError("`image` and `target` exclude each other", fix="use `pare edit`")
    known = (*INJECTION, "guidance", "rescale", "steps", "seed")
    for name, values in axes.items():
        if name not in known:
            raise SettingError(f"{name!r} cannot be swept with `target`", expected=", ".join(known))
        for value in values:
            if name in INJECTION:
                validation.check_number(name, value, 0.0, 1.0)


def sweep_edits(
    pipe: Pipeline, source: str, target: str, axes: Mapping[str, Sequence[Any]],
    fixed: Mapping[str, Any],
) -> dict[str, Image.Image]:  # fmt: skip
    """The target's image of Prompt-to-Prompt under each setting."""
    from pare.study.record.setting_sweep import sweep_function
    from techniques.prompt_to_prompt import Edit, prompt_to_prompt

    def make(**swept: Any) -> Image.Image:
        chosen = {**fixed, **swept}
        injection = {name: chosen.pop(name) for name in INJECTION if name in chosen}
        seed = chosen.pop("seed")
        return prompt_to_prompt(pipe, source, [Edit(target, **injection)], seed, **chosen)[1]

    return sweep_function(make, axes, progress=progress("images"))


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
