"""`pare erase`: concept erasure by negative guidance."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pare.cli.grouped_help import option, options
from pare.cli.image_run import ImageRun, image_command
from pare.cli.option_types import (
    InputFile,
    as_typed,
    checked,
    not_in_recipe,
    noted,
    number,
)
from pare.cli.options import (
    edit_run_options,
    memory_options,
    optional_image_size_option,
    prompt_argument,
)
from pare.cli.output_files import output_paths
from pare.cli.terminal import progress
from pare.errors import PromptError
from pare.io.whole_files import write_whole
from pare.runtime import validation

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from pare.pipeline import Pipeline
    from techniques.erasure import Concept, Erased, Gates

# techniques.erasure imports torch, so its presets' names stand here too; a test compares them.
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


def check_concept(text: str) -> None:
    words, _ = parse_concept(validation.check_prompt(text))
    if not words.strip():
        raise PromptError("a concept is empty", expected="words, for example 'streetlights'")


concept_option = option(
    "--concept", "concepts", multiple=True, required=True, metavar="WORDS[=WEIGHT]", usual=True,
    callback=as_typed(check_concept),
    help="What to guide away from, and with which weight; a negative weight guides towards it. "
         "May be repeated.",
)  # fmt: skip

gate_options = options(
    "Weights and gates",
    option("--weight", type=float, callback=number("weight", -1000.0, 1000.0), usual=True,
           help="Of concepts without their own. Default: the preset's, 10 (ungated), 5 (sega, "
                "ledits++) or the guidance scale (safe-*)."),
    option("--gates", "preset", type=click.Choice(PRESETS), default="sega", show_default=True,
           usual=True,
           help="Published settings of the gates, which choose where and when a concept acts."),
    option("--warm-up", type=click.IntRange(0, 1000),
           help="The first steps, in which no concept acts."),
    option("--quantile", type=float, callback=number("quantile", 0.0, 1.0),
           help="Act where the concept's direction, in a channel, exceeds this quantile over the "
                "image (SEGA)."),
    option("--attention", type=float, callback=number("attention", 0.0, 1.0),
           help="Act where the attention to the concept's words exceeds this quantile; with "
                "--quantile, in the intersection (LEDITS++)."),
    option("--threshold", type=float, aliases=("--push-threshold",),
           callback=number("threshold", -1000.0, 1000.0),
           help="Act where PROMPT's prediction minus the concept's is below this (Safe Latent "
                "Diffusion's lambda)."),
    option("--sensitivity", type=float, callback=number("sensitivity", 0.0, 1e6),
           help="Scale each concept's term by this times the distance of PROMPT's and the "
                "concept's predictions, at most 1 (Safe Latent Diffusion's s_S)."),
    option("--momentum", type=float, callback=number("momentum", 0.0, 1.0),
           help="How much of the terms of earlier steps is added."),
    option("--momentum-memory", "memory", type=float, callback=number("memory", 0.0, 1.0),
           help="How slowly the momentum forgets (beta)."),
    option("--cap", type=float, callback=number("cap", 0.0, 1000.0),
           help="Limit of the norm of all terms together, relative to that of PROMPT's guidance."),
)  # fmt: skip

image_options = options(
    "Image",
    option("--strength", type=float, callback=checked(validation.check_strength), usual=True,
           help="With IMAGE: how much of the schedule runs, above 0 to 1. Default: 0.3."),
    option("--maps", type=click.Path(path_type=Path), metavar="PATH", **not_in_recipe("maps"),
           help="Draw where each concept's term was subtracted at each step, and how large it "
                "was: NAME.png or a folder; the numbers are written to NAME.safetensors."),
)  # fmt: skip


EXAMPLES = (
    'pare erase "a road at night" --concept streetlights=5 --gates ungated --seed 4',
    'pare erase "a road at night" --concept "the moon=8" --concept clouds=-2 --gates ledits++',
    'pare erase photo.jpg "a road" --concept "a car" --strength 0.5 --maps maps.png --out gone.png',
)


@image_command(section="edit", examples=EXAMPLES)
@click.argument("image", metavar="[IMAGE]", nargs=-1, type=InputFile(), callback=at_most_one)
@prompt_argument
@concept_option
@gate_options
@image_options
@optional_image_size_option
@edit_run_options
@memory_options
def erase(image: Path | None, prompt: str, concepts: Sequence[str], **given: Any) -> None:
    """Concept erasure: generate PROMPT, or re-generate IMAGE, guided away from each --concept.

    Unlike --negative, which replaces the unconditional prediction, each concept has its own
    weight, and gates choose where and when it acts.
    """
    from pare.io.images import load_image

    check_arguments(image, prompt, given)
    run = ImageRun.start()
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
    pipe = run.load_pipeline(erasure.PREFERRED_SCHEDULER)
    shape = run.size(pipe, fitted_size(pipe, input_image))
    width, height = (None, None) if input_image and given["size"] is None else shape
    strength = erasure.STRENGTH if given["strength"] is None else given["strength"]
    made = erasure.erase(
        pipe, prompt, listed, run.seeds, image=input_image, strength=strength, gates=gates,
        width=width, height=height, batch=given["batch"], tile=given["tile"], progress=progress(),
        **run.sampling,
    )  # fmt: skip
    run.note(batch=made.plan.batch, tile=made.plan.tile)
    report = [
        [term_report(concept, made.term_norms[:, k, row]) for k, concept in enumerate(listed)]
        for row in range(len(run.seeds))
    ]
    unwanted = [concept.prompt for concept in listed if concept.weight > 0]
    judged = [
        run.judge(pipe, one, before=input_image, prompt=prompt, unwanted=unwanted) for one in made
    ]
    run.write(pipe, made.images, judged, terms=report, maps=[str(path) for path in maps])
    for path, rows in zip(run.paths, report, strict=True):
        for row in rows:
            run.say(f"{path}: {term_in_words(row)}")
    if run.rerun is None:
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


def fitted_size(pipe: Pipeline, image: Image.Image | None) -> tuple[int, int] | None:
    """Width and height of IMAGE at the next multiples of the VAE's factor."""
    from pare.io.images import fit_to_multiple

    return None if image is None else fit_to_multiple(image, pipe.vae.config.factor)[0].size


# --- what each concept did ----------------------------------------------------------------


def term_report(concept: Concept, norms: Tensor) -> dict[str, Any]:
    """Where a concept's term acted and how large it was; `norms` are (steps, h, w)."""
    acted = norms > 0
    return {
        "concept": concept.prompt,
        "weight": concept.weight,
        "steps": int(acted.flatten(1).any(1).sum()),
        "fraction": round(float(acted.float().mean()), 4),
        "mean_norm": round(float(norms[acted].mean()) if acted.any() else 0.0, 4),
    }


def term_in_words(row: Mapping[str, Any]) -> str:
    if not row["steps"]:
        return f"{row['concept']!r} had no effect at any step"
    direction = "away from" if row["weight"] >= 0 else "towards"
    return (
        f"guided {direction} {row['concept']!r} in {row['steps']} steps, at {row['fraction']:.0%} "
        f"of all latent pixels and steps, there by {row['mean_norm']:.2f} on average"
    )


def plan_maps(run: ImageRun) -> list[Path]:
    """The pages to draw, one an image, checked; none if none are asked for.

    Raises:
        OutputError: one of them, or its numbers' file, cannot or must not be written.
    """
    out = noted("maps")
    if out is None or run.rerun is not None:
        return []
    pages = output_paths(
        out, "erase-maps", run.seeds, endings=[".png"], beside=[".safetensors"], force=run.force,
        option="--maps",
    )  # fmt: skip
    for page in pages:
        if page in run.paths:
            raise click.UsageError(f"--maps and --out both name {page}.")
    return pages


def write_maps(
    pages: Sequence[Path], made: Erased, concepts: Sequence[Concept], first: int, run: ImageRun
) -> None:
    """Draw the norms of each image's terms, and keep the numbers beside the page.

    Args:
        first: the step at which the run began, on an IMAGE.
    """
    from techniques.erasure.erasure_maps import save_term_norms, term_sheet

    for row, page in enumerate(pages):
        norms, numbers = made.term_norms[:, :, row], page.with_suffix(".safetensors")
        sheet = term_sheet(made.images[row], norms, concepts, first)
        write_whole(page, functools.partial(sheet.save, format="PNG"), force=run.force)
        save_term_norms(numbers, norms, concepts, first=first, force=run.force)
        run.say(f"{page}, {numbers}: where each concept acted")
