"""`pare edit`: a real image, edited by a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pare.cli.commands.blend import background_options, difference_in_words
from pare.cli.commands.erase import PRESETS, check_concept, parse_concept
from pare.cli.commands.invert import METHODS, likeness_in_words
from pare.cli.commands.p2p import (
    explain,
    load_edit_mask,
    local_blend,
    local_blend_options,
    pair,
    pairing_options,
    schedule_options,
    sites,
    weights_of,
)
from pare.cli.grouped_help import option, options
from pare.cli.image_run import ImageRun, image_command
from pare.cli.option_types import InputFile, as_typed, checked, noted
from pare.cli.options import (
    image_argument,
    inversion_scheduler_options,
    model_options,
    output_options,
)
from pare.cli.terminal import progress
from pare.errors import SettingError
from pare.runtime import validation

if TYPE_CHECKING:
    from techniques.erasure import Concept
    from techniques.inversion import Edited, Inverted, Method
    from techniques.prompt_to_prompt import Edit

KINDS = ("p2p", "resample", "blend", "erase")


edit_options = options(
    "Editing",
    option("--from", "source", metavar="SOURCE", callback=checked(validation.check_prompt),
           usual=True, help="A prompt that describes IMAGE, as completely as you can."),
    option("--to", "target", metavar="TARGET", callback=checked(validation.check_prompt),
           usual=True, help="The prompt of the result. Default, for erase: SOURCE."),
    option("--edit", "kind", type=click.Choice(KINDS), default="p2p", show_default=True, usual=True,
           help="Prompt-to-Prompt (p2p); sample TARGET from IMAGE's latents (resample); only in "
                "the --mask (blend); guided away from every --concept (erase)."),
    option("--method", type=click.Choice(METHODS), usual=True,
           help="The inversion. Default: what suits the edit; docs/edits.md compares them."),
    option("--inversion", type=InputFile(),
           help="A file that `pare invert` wrote for IMAGE; nothing is inverted again."),
    option("--steps", type=int, callback=checked(validation.check_steps), usual=True,
           aliases=("--num-inference-steps",), help="Steps each way, 1 to 1000. Default: 50."),
    option("--guidance", type=float, callback=checked(validation.check_guidance), usual=True,
           aliases=("--cfg", "--cfg-scale", "--guidance-scale"),
           help="Guidance scale. Default: the method's."),
    option("--strength", type=float, callback=checked(validation.check_strength), usual=True,
           aliases=("--denoising-strength",),
           help="The part of the schedule that is sampled anew. Default: 1; less for "
                "edit-friendly."),
    option("--reconstruction/--no-reconstruction", "reconstruct", default=True, show_default=True,
           help="Also reconstruct IMAGE from SOURCE, and say how near the result is."),
)  # fmt: skip

concept_options = options(
    "Erasing",
    option("--concept", multiple=True, metavar="WORDS[=WEIGHT]", callback=as_typed(check_concept),
           usual=True, help="What to guide away from, and with which weight, as in `pare erase`."),
    option("--gates", "preset", type=click.Choice(PRESETS), default="sega", show_default=True,
           help="Where and when a concept acts, as in `pare erase`."),
)  # fmt: skip

# Parameters that only one kind of edit uses.
OF_P2P = (
    "mode", "word_map", "weight", "normalised", "cross_replace", "cross_replace_word",
    "self_replace", "self_grid", "self_blocks", "cross_grid", "cross_blocks", "blend", "subtract",
    "threshold", "blend_start", "blend_level", "blend_blocks",
)  # fmt: skip
OF_ERASE = ("concept", "preset")
OF_A_MASK = ("invert_mask", "background", "feather", "decoder_steps", "cover")

EXAMPLES = (
    'pare edit photo.jpg --from "a sunny road" --to "a snowy road" --out snowy.png',
    'pare edit photo.jpg --from "a road" --to "a red car" --edit blend --mask mask.png',
    'pare edit photo.jpg --from "a road at night" --edit erase --concept streetlights=5',
)


@image_command(section="edit", examples=EXAMPLES)
@image_argument
@edit_options
@pairing_options
@schedule_options
@local_blend_options
@background_options
@concept_options
@inversion_scheduler_options
@model_options
@output_options
def edit(image: Path, **given: Any) -> None:
    """Edit a real image by a prompt: invert IMAGE, described by SOURCE, and sample TARGET.

    Also says how well the inversion reconstructs IMAGE: what it loses, the edit loses, too. Only
    edit-friendly draws noise (--seed). Options about words and attention belong to p2p, --concept
    and --gates to erase.
    """
    check_use(given)
    if noted("explain"):
        explain(required(given, "source"), [required(given, "target")], given)
        return
    run = ImageRun.start()

    from pare.io.images import load_image
    from techniques import inversion as technique
    from techniques.blended import prepare_mask

    input_image, mask = load_image(image), load_edit_mask(given)
    if mask is not None:
        mask = prepare_mask(mask, input_image.size)

    inverted = load_inversion(given)
    method = technique.check_kind(given["kind"], given["method"], inverted)
    if method != "edit-friendly" and len(run.seeds) > 1:
        raise SettingError(
            f"{len(run.seeds)} seeds are given, and {method} draws no noise: all results would be "
            "equal",
            fix="give one seed, or pass `method=edit-friendly`",
        )
    source, words, concepts = asked_for(given, method, inverted)
    target: str | Edit = words
    of_kind: dict[str, Any] = {"concepts": concepts}
    if given["kind"] == "p2p":
        (target,), tables = pair(source, [words], given)
        of_kind |= {"cross_sites": sites("cross", given), "self_sites": sites("self", given)}
        of_kind |= {"tables": tables}
    if given["kind"] == "erase":
        from techniques import erasure

        of_kind |= {"gates": erasure.PRESETS[given["preset"]]}

    pipe = run.load_pipeline(technique.PREFERRED_SCHEDULER)
    run.size(pipe, input_image.size)
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
    unwanted = [concept.prompt for concept in concepts if concept.weight > 0]
    unwanted += [word for word, weight in weights_of(given).items() if weight <= 0]
    run.write(
        pipe,
        [result[0] for result in results],
        [
            run.judge(pipe, result[0], before=input_image, prompt=words, unwanted=unwanted)
            for result in results
        ],
        edit=given["kind"],
        method=method,
        report=[result.report() for result in results],
    )
    for path, result in zip(run.paths, results, strict=True):
        run.say(f"{path}: {edit_in_words(result)}")


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


def edit_in_words(result: Edited) -> str:
    parts = []
    if result.outside is not None:
        parts.append(f"outside the mask: {difference_in_words(result.outside)}")
    if result.reconstructed is not None:
        parts.append(
            f"the {result.inverted.method} inversion by itself gives IMAGE back at "
            f"{likeness_in_words(result.reconstructed)}"
        )
    parts.append(f"the VAE alone at {likeness_in_words(result.vae_alone)}")
    return "; ".join(parts)
