"""`pare erase`: an image without what nobody asked for."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pare.cli.examples import examples
from pare.cli.options import (
    InputFile,
    aside,
    checked,
    each,
    memory_options,
    model_options,
    noted,
    options,
    output_options,
    prompt_argument,
    revision_option,
    sampling_options,
    scheduler_options,
    tokenizer_option,
)
from pare.cli.run_command import (
    ImageCommand,
    Run,
    load_pipeline,
    output_paths,
    sampling,
    warn_of_size,
)
from pare.cli.terminal import progress
from pare.errors import PromptError
from pare.io.whole_files import check_output, write_whole
from pare.runtime import validation

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from techniques.erasure import Concept, Erased, Gates

# techniques.erasure imports torch, so its presets' names stand here too; a test holds them
# together.
PRESETS = ("ungated", "safe-medium", "safe-strong", "safe-max", "sega", "ledits++")
IMAGE_NAMES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")


def at_most_one(context: click.Context, parameter: click.Parameter, value: Any) -> Path | None:
    """Of click's several words before PROMPT the only one, or none: it knows no other way of
    leaving out the first argument."""
    if len(value) > 1:
        raise click.UsageError(f"Got unexpected extra argument ({value[1]}).", context)
    return value[0] if value else None


def parse_concept(text: str) -> tuple[str, float | None]:
    """`the moon=5` as ("the moon", 5.0), `the moon` as ("the moon", None)."""
    if "=" not in text:
        return text, None
    words, weight = validation.parse_pair("concept", text, "WORDS or WORDS=WEIGHT")
    return words, validation.parse_number("concept", weight, text, "WORDS or WORDS=WEIGHT")


def bounded(name: str, low: float, high: float) -> Any:
    return checked(lambda value: validation.check_number(name, value, low, high))


def check_concept(text: str) -> str:
    """What was typed: a recipe holds it as it is, now that it is known to be good."""
    words, _ = parse_concept(validation.check_prompt(text))
    if not words.strip():
        raise PromptError("a concept is empty", expected="words, for example 'streetlights'")
    return text


concept_options = options(
    click.option("--concept", "concepts", multiple=True, required=True,
                 metavar="WORDS[=WEIGHT]", callback=each(check_concept),
                 help="What is to be pushed away, and how hard; pulled, below 0. Several if "
                      "repeated."),
    click.option("--weight", type=float, callback=bounded("weight", -1000.0, 1000.0),
                 help="Of the concepts without their own; what the preset's source takes if not "
                      "given: 10 ungated, 5 for sega and ledits++, the guidance for safe-*."),
    click.option("--preset", type=click.Choice(PRESETS), default="sega", show_default=True,
                 help="Where and when a push acts: published settings of the gates below."),
    click.option("--warm-up", type=click.IntRange(0, 1000), help="Steps before the first push."),
    click.option("--quantile", type=float, callback=bounded("quantile", 0.0, 1.0),
                 help="Push where a channel's push is above this quantile of its places."),
    click.option("--attention", type=float, callback=bounded("attention", 0.0, 1.0),
                 help="Push where the concept's words are looked at more than at this quantile of "
                      "all places; with --quantile, where both let it."),
    click.option("--push-threshold", "threshold", type=float,
                 callback=bounded("push-threshold", -1000.0, 1000.0),
                 help="Push where PROMPT does not lead away from the concept by this much."),
    click.option("--sensitivity", type=float, callback=bounded("sensitivity", 0.0, 1e6),
                 help="Weigh each push by so many times how far PROMPT and concept are apart, up "
                      "to 1."),
    click.option("--momentum", type=float, callback=bounded("momentum", 0.0, 1.0),
                 help="How much of earlier pushes is added."),
    click.option("--momentum-memory", "memory", type=float,
                 callback=bounded("momentum-memory", 0.0, 1.0),
                 help="How much of them stays from step to step."),
    click.option("--cap", type=float, callback=bounded("cap", 0.0, 1000.0),
                 help="All pushes together are at most so many times as long as PROMPT's pull."),
)  # fmt: skip

place_options = options(
    click.option("--strength", type=float, callback=checked(validation.check_strength),
                 help="How much of the timestep schedule is run on IMAGE; 0.3 if not given."),
    click.option("--size", metavar="WxH", callback=checked(validation.parse_size),
                 help="Work at this size (multiples of 8); IMAGE's own, or the one that the model "
                      "was trained at, if not given."),
    click.option("--maps", type=click.Path(path_type=Path), metavar="PATH", expose_value=False,
                 callback=aside("maps"),
                 help="Draw where each concept was pushed, step by step: NAME.png, or a folder; "
                      "the numbers go beside it, as NAME.safetensors."),
)  # fmt: skip


EXAMPLES = examples(
    'pare erase "a road in the city at night" --concept streetlights --out dark.png',
    'pare erase "a road at night" --concept "the moon=8" --concept clouds=-2 --preset ledits++',
    'pare erase photo.jpg "a road" --concept "a car" --strength 0.5 --maps maps.png --out gone.png',
)


@click.command(cls=ImageCommand, epilog=EXAMPLES)
@click.argument("image", metavar="[IMAGE]", nargs=-1, type=InputFile(), callback=at_most_one)
@prompt_argument
@concept_options
@place_options
@sampling_options
@memory_options
@scheduler_options
@model_options
@revision_option
@tokenizer_option
@output_options
def erase(image: Path | None, prompt: str, concepts: Sequence[str], **given: Any) -> None:
    """Make an image of PROMPT, or IMAGE over, pushing away from what it should not show.

    Unlike --negative, which replaces what guidance starts from, each concept has its own weight,
    and gates choose where and when it acts. The scheduler is dpm++2m with Karras sigmas if none
    is given.
    """
    from pare.io.images import load_image

    check_arguments(image, prompt, given)
    run = Run.plan()
    maps = plan_maps(run)
    input_image = None if image is None else load_image(image)

    from pare.schedulers import start_index
    from techniques import erasure

    gates = gates_of(given)
    listed = [
        erasure.Concept(words.strip(), usual(weight, given))
        for words, weight in map(parse_concept, concepts)
    ]
    erasure.check_concepts(listed)
    pipe = load_pipeline(given, erasure.PREFERRED_SCHEDULER)
    shape = working_size(pipe, input_image, given["size"])
    warn_of_size(pipe, shape, "--size works smaller")
    width, height = (None, None) if input_image and given["size"] is None else shape
    strength = erasure.STRENGTH if given["strength"] is None else given["strength"]
    made = erasure.erase(
        pipe, prompt, listed, run.seeds, image=input_image, strength=strength, gates=gates,
        width=width, height=height, batch=given["batch"], tile=given["tile"], progress=progress(),
        **sampling(given),
    )  # fmt: skip
    run = run.noting(batch=made.plan.batch, tile=made.plan.tile)
    report = [
        [pushed(concept, made.term_norms[:, k, row]) for k, concept in enumerate(listed)]
        for row in range(len(run.seeds))
    ]
    run.write(pipe, made.images, pushed=report, maps=[str(path) for path in maps])
    for path, rows in zip(run.paths, report, strict=True):
        for row in rows:
            run.say(f"{path}: {in_words(row)}")
    if run.again is None:
        write_maps(
            maps, made, listed, start_index(given["steps"], strength) if input_image else 0, run
        )


def check_arguments(image: Path | None, prompt: str, given: Mapping[str, Any]) -> None:
    """Raise a UsageError for what belongs to an IMAGE where there is none."""
    if image is not None:
        return
    if given["strength"] is not None:
        raise click.UsageError("--strength needs an IMAGE.")
    if prompt.lower().endswith(IMAGE_NAMES) and len(prompt) < 256 and Path(prompt).is_file():
        raise click.UsageError(f"Missing argument 'PROMPT': {prompt} is an image.")


def gates_of(given: Mapping[str, Any]) -> Gates:
    """The preset's gates, with those that are given in their places."""
    from techniques.erasure import PRESETS, Gates

    names = [field.name for field in dataclasses.fields(Gates)]
    chosen = {name: given[name] for name in names if given[name] is not None}
    return dataclasses.replace(PRESETS[given["preset"]], **chosen)


def usual(weight: float | None, given: Mapping[str, Any]) -> float:
    """A concept's own weight, or that of all without, or the preset's."""
    from techniques.erasure import usual_weight

    if weight is not None:
        return weight
    if given["weight"] is not None:
        return float(given["weight"])
    return usual_weight(given["preset"], given["guidance"])


def working_size(
    pipe: Any, image: Image.Image | None, size: tuple[int, int] | None
) -> tuple[int, int]:
    """Width and height of what goes through the model."""
    from pare.io.images import fit_to_multiple

    if size is not None:
        return size
    if image is None:
        trained: tuple[int, int] = pipe.trained_size
        return trained
    return fit_to_multiple(image, pipe.vae.config.factor)[0].size


# --- what was pushed ----------------------------------------------------------------------


def pushed(concept: Concept, pushes: Tensor) -> dict[str, Any]:
    """How much of an image, and how hard, `pushes` (steps, h, w) pushed a concept."""
    acted = pushes > 0
    return {
        "concept": concept.prompt,
        "weight": concept.weight,
        "steps": int(acted.flatten(1).any(1).sum()),
        "places": round(float(acted.float().mean()), 4),
        "strength": round(float(pushes[acted].mean()) if acted.any() else 0.0, 4),
    }


def in_words(row: Mapping[str, Any]) -> str:
    away = "away" if row["weight"] >= 0 else "towards"
    if not row["steps"]:
        return f"{row['concept']!r} was never pushed"
    return (
        f"{row['concept']!r} was pushed {away} in {row['steps']} steps, at {row['places']:.0%} of "
        f"all places and steps, by {row['strength']:.2f} there"
    )


def plan_maps(run: Run) -> list[Path]:
    """The pages to draw, one an image, checked; none if none are asked for.

    Raises:
        OutputError: one of them, or its numbers' file, cannot or must not be written.
    """
    out = noted("maps")
    if out is None or run.again is not None:
        return []
    pages = output_paths(out, "erase-maps", run.seeds, option="--maps")
    for path in (*pages, *(page.with_suffix(".safetensors") for page in pages)):
        if path in run.paths:
            raise click.UsageError(f"--maps and --out both name {path}.")
        check_output(path, force=run.force)
    return pages


def write_maps(
    pages: Sequence[Path], made: Erased, concepts: Sequence[Concept], first: int, run: Run
) -> None:
    """Draw each image's pushes, and keep their numbers beside the page.

    Args:
        first: the step at which the run began, on an IMAGE.
    """
    from techniques.erasure.erasure_maps import save_term_norms, term_sheet

    for row, page in enumerate(pages):
        pushes, numbers = made.term_norms[:, :, row], page.with_suffix(".safetensors")
        sheet = term_sheet(made.images[row], pushes, concepts, first)
        write_whole(page, functools.partial(sheet.save, format="PNG"), force=run.force)
        save_term_norms(numbers, pushes, concepts, first=first, force=run.force)
        run.say(f"{page}, {numbers}: where it was pushed")
