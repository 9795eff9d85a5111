"""`pare edit`: a real image, edited by a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pare.cli.commands.erase import PRESETS, check_concept, parse_concept
from pare.cli.commands.invert import METHODS
from pare.cli.commands.p2p import (
    blend_options,
    explain,
    load_shape,
    local_blend,
    pair,
    pairing_options,
    schedule_options,
    sites,
)
from pare.cli.examples import examples
from pare.cli.options import (
    InputFile,
    checked,
    each,
    image_argument,
    model_options,
    noted,
    options,
    output_options,
    revision_option,
    scheduler_options,
    tokenizer_option,
)
from pare.cli.run_command import ImageCommand, Run, load_pipeline, warn_of_size
from pare.cli.terminal import progress
from pare.errors import SettingError
from pare.runtime import validation

if TYPE_CHECKING:
    from techniques.erasure import Concept
    from techniques.inversion import Edited, Inverted, Method
    from techniques.inversion.report_card import Likeness
    from techniques.prompt_to_prompt import Edit

KINDS = ("p2p", "resample", "blend", "erase")


edit_options = options(
    click.option("--from", "source", metavar="SOURCE", callback=checked(validation.check_prompt),
                 help="What IMAGE shows, as well as can be said."),
    click.option("--to", "target", metavar="TARGET", callback=checked(validation.check_prompt),
                 help="What it is to show; SOURCE again if not given, for erase."),
    click.option("--edit", "kind", type=click.Choice(KINDS), default="p2p", show_default=True,
                 help="With SOURCE's attention (p2p); by TARGET's words alone (resample); only in "
                      "the --mask (blend); pushed away from every --concept (erase)."),
    click.option("--method", type=click.Choice(METHODS),
                 help="The inversion; what suits the edit if not given: docs/edits.md compares "
                      "them."),
    click.option("--inversion", type=InputFile(),
                 help="What `pare invert` wrote for IMAGE: nothing is inverted again."),
    click.option("--steps", type=int, callback=checked(validation.check_steps),
                 help="Steps each way, 1 to 1000; 50 if not given."),
    click.option("--guidance", type=float, callback=checked(validation.check_guidance),
                 help="Of the edit; the method's usual if not given."),
    click.option("--strength", type=float, callback=checked(validation.check_strength),
                 help="How much of the way back is walked anew: less keeps more. 1 if not given, "
                      "less with edit-friendly."),
    click.option("--reconstruction/--no-reconstruction", "reconstruct", default=True,
                 show_default=True,
                 help="Also make IMAGE again from SOURCE, and say how near that is."),
)  # fmt: skip

concept_options = options(
    click.option("--concept", multiple=True, metavar="WORDS[=WEIGHT]", callback=each(check_concept),
                 help="What is to be pushed away, and how hard, as for `pare erase`."),
    click.option("--preset", type=click.Choice(PRESETS), default="sega", show_default=True,
                 help="Where and when a push acts, as for `pare erase`."),
)  # fmt: skip

background_options = options(
    click.option("--background", type=click.Choice(["paste", "poisson", "decoder", "latent"]),
                 default="paste", show_default=True,
                 help="What stands outside the mask in the end, as for `pare blend`."),
    click.option("--feather", type=float, default=4.0, show_default=True,
                 callback=checked(lambda x: validation.check_number("feather", x, 0.0, 1000.0)),
                 help="Width in pixels of the soft seam of paste, inside the mask."),
    click.option("--decoder-steps", type=click.IntRange(0, 10_000), default=75, show_default=True,
                 help="How long decoder is trained for the image."),
    click.option("--cover", is_flag=True,
                 help="Every latent that the mask touches may change."),
)  # fmt: skip

# What only one kind of edit has a use for, by the options' names here.
OF_P2P = (
    "mode", "word_map", "weight", "normalised", "cross_replace", "cross_replace_word",
    "self_replace", "self_grid", "self_blocks", "cross_grid", "cross_blocks", "blend", "subtract",
    "threshold", "blend_start", "blend_level", "blend_blocks",
)  # fmt: skip
OF_ERASE = ("concept", "preset")
OF_A_MASK = ("invert_mask", "background", "feather", "decoder_steps", "cover")

EXAMPLES = examples(
    'pare edit photo.jpg --from "a sunny road" --to "a snowy road" --out snowy.png',
    'pare edit photo.jpg --from "a road" --to "a red car" --edit blend --mask mask.png',
    'pare edit photo.jpg --from "a road at night" --edit erase --concept streetlights=5',
)


@click.command(cls=ImageCommand, epilog=EXAMPLES)
@image_argument
@edit_options
@pairing_options
@schedule_options
@blend_options
@background_options
@concept_options
@scheduler_options
@model_options
@revision_option
@tokenizer_option
@output_options
def edit(image: Path, **given: Any) -> None:
    """Invert IMAGE, which shows SOURCE, and come back to TARGET.

    Says how near IMAGE the inversion comes by itself: what that loses, the edit loses, too.
    Options about words and attention belong to p2p, --concept and --preset to erase. Of the
    methods edit-friendly alone draws noise (--seed). The scheduler is ddim, which can be
    inverted.
    """
    check_use(given)
    if noted("explain"):
        explain(required(given, "source"), [required(given, "target")], given)
        return
    run = Run.plan()

    from pare.io.images import load_image
    from techniques import inversion as technique
    from techniques.blended import prepare_mask

    input_image, mask = load_image(image), load_shape(given)
    if mask is not None:
        mask = prepare_mask(mask, input_image.size)

    inverted = load_inversion(given)
    method = technique.check_kind(given["kind"], given["method"], inverted)
    if method != "edit-friendly" and len(run.seeds) > 1:
        raise SettingError(
            f"{len(run.seeds)} seeds are given, and {method} draws no noise: its results would "
            "all be one",
            fix="give one seed, or take edit-friendly",
        )
    source, words, concepts = asked_for(given, method, inverted)
    target: str | Edit = words
    of_kind: dict[str, Any] = {"concepts": concepts}
    if given["kind"] == "p2p":
        (target,), _ = pair(source, [words], given)
        of_kind |= {"cross_sites": sites("cross", given), "self_sites": sites("self", given)}
    if given["kind"] == "erase":
        from techniques import erasure

        of_kind |= {"gates": erasure.PRESETS[given["preset"]]}

    pipe = load_pipeline(given, technique.PREFERRED_SCHEDULER)
    warn_of_size(pipe, input_image.size, "scale it down first")
    if given["kind"] == "p2p":
        of_kind |= {"local_blend": local_blend(given, None)}
    names = ("kind", "guidance", "strength", "background", "feather", "decoder_steps", "cover",
             "reconstruct")  # fmt: skip
    results = [
        technique.edit(
            pipe, input_image, source, target, method=given["method"], inverted=inverted, seed=seed,
            steps=given["steps"] or 50, mask=mask, progress=progress(), **of_kind,
            **{name: given[name] for name in names},
        )
        for seed in run.seeds
    ]  # fmt: skip
    run.write(
        pipe,
        [result[0] for result in results],
        edit=given["kind"],
        method=method,
        report=[result.report() for result in results],
    )
    for path, result in zip(run.paths, results, strict=True):
        run.say(f"{path}: {in_words(result)}")


# --- what was given -----------------------------------------------------------------------


def check_use(given: Mapping[str, Any]) -> None:
    """Raise a UsageError for an option that would be passed over."""
    context = click.get_current_context()
    kind = given["kind"]
    idle: dict[str, str] = {}
    if kind != "p2p":
        idle |= dict.fromkeys(OF_P2P, f"has no effect with --edit {kind}")
    if kind != "erase":
        idle |= dict.fromkeys(OF_ERASE, f"has no effect with --edit {kind}")
    if given["mask"] is None:
        idle |= dict.fromkeys(OF_A_MASK, "needs --mask")
    if given["inversion"] is not None:
        idle |= dict.fromkeys(("method", "steps"), "is that of --inversion: leave it out")
    by_default = (None, click.core.ParameterSource.DEFAULT)
    for parameter in context.command.params:
        name = str(parameter.name)
        if name not in idle or context.get_parameter_source(name) in by_default:
            continue
        # A rerun names every option, with the values that they have anyway.
        if given.get(name) != parameter.get_default(context):
            raise click.UsageError(f"{parameter.opts[0]} {idle[name]}.")


def required(given: Mapping[str, Any], name: str) -> str:
    option, what = {
        "source": ("--from", "what IMAGE shows"),
        "target": ("--to", "what it is to show"),
    }[name]
    if given[name] is None:
        raise click.UsageError(f"Missing option '{option}': {what}.")
    return str(given[name])


def load_inversion(given: Mapping[str, Any]) -> Inverted | None:
    from techniques.inversion import load

    return None if given["inversion"] is None else load(given["inversion"])


def asked_for(
    given: Mapping[str, Any], method: Method, inverted: Inverted | None
) -> tuple[str, str, list[Concept]]:
    """The two prompts, and what is to be erased."""
    from techniques.erasure import Concept, usual_weight
    from techniques.inversion import usual_guidance

    source = given["source"]
    if source is None:
        source = inverted.prompt if inverted else required(given, "source")
    target = given["target"]
    if target is None:
        target = source if given["kind"] == "erase" else required(given, "target")
    guidance = given["guidance"]
    guidance = usual_guidance(method, inverted) if guidance is None else guidance
    usual = usual_weight(given["preset"], guidance)
    concepts = [
        Concept(words.strip(), usual if weight is None else weight)
        for words, weight in map(parse_concept, given["concept"])
    ]
    return source, target, concepts


# --- what came of it ----------------------------------------------------------------------


def in_words(result: Edited) -> str:
    parts = []
    if result.outside is not None:
        from pare.cli.commands.blend import difference_in_words

        parts.append(f"outside the mask: {difference_in_words(result.outside)}")
    if result.reconstructed is not None:
        parts.append(
            f"the {result.inverted.method} inversion by itself gives IMAGE back at "
            f"{decibels(result.reconstructed)}"
        )
    parts.append(f"the VAE alone at {decibels(result.vae_alone)}")
    return "; ".join(parts)


def decibels(found: Likeness) -> str:
    return f"{found.psnr:.1f} dB, SSIM {found.ssim:.3f}"
