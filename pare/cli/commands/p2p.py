"""`pare p2p`: Prompt-to-Prompt, what other prompts make of the image of a prompt."""

from __future__ import annotations

import json
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
    revision_option,
    sampling_options,
    scheduler_options,
    tokenizer_option,
)
from pare.cli.run_command import (
    ImageCommand,
    Run,
    load_pipeline,
    load_words,
    sampling,
    warn_of_size,
)
from pare.cli.terminal import progress
from pare.errors import PromptError
from pare.runtime import validation

if TYPE_CHECKING:
    from PIL import Image

    from pare.text.words import Words
    from techniques.prompt_to_prompt import Edit, LocalBlend, SourceAndTargets, TokenMap

BLOCKS = ("down", "mid", "up")


def parse_blocks(name: str, text: str) -> tuple[str, ...]:
    """`down,up` as ("down", "up")."""
    blocks = tuple(part.strip() for part in text.split(","))
    if not set(blocks) <= set(BLOCKS):
        raise click.BadParameter(f"{name} is {text!r}; expected some of {','.join(BLOCKS)}")
    return blocks


def span(name: str) -> Any:
    return checked(lambda text: kept(text, validation.parse_span(name, text)))


def blocks(name: str) -> Any:
    return checked(lambda text: kept(text, parse_blocks(name, text)))


def kept(text: str, _parsed: object) -> str:
    """What was typed: a recipe holds it as it is, now that it is known to be good."""
    return text


def parse_word_span(text: str) -> tuple[str, tuple[float, float]]:
    """`car=0.4` as ("car", (0, 0.4))."""
    word, share = validation.parse_pair("cross-replace-word", text, "WORD=SHARE")
    return word, validation.parse_span(f"cross-replace of {word!r}", share)


pairing_options = options(
    click.option("--explain", is_flag=True, expose_value=False, callback=aside("explain"),
                 help="Print which word of SOURCE feeds which of each TARGET; run nothing."),
    click.option("--mode", type=click.Choice(["replace", "refine", "own"]),
                 help="Pair the prompts word for word (replace), or what they share, leaving new "
                      "words to themselves (refine), or nothing but what --map says (own); "
                      "replace if they have as many words, else refine, if not given."),
    click.option("--map", "word_map", multiple=True, metavar="OLD=NEW",
                 callback=each(lambda t: kept(t, validation.parse_pair("map", t, "OLD=NEW"))),
                 help="Let a word of SOURCE feed this one of a TARGET, whatever fed it before."),
    click.option("--weight", multiple=True, metavar="WORD=NUMBER",
                 callback=each(lambda t: kept(t, validation.parse_weight("weight", t))),
                 help="Turn a word of a TARGET up or down: 2, 0.5, or -1, away from it."),
    click.option("--normalised", is_flag=True,
                 help="Lose no attention where a word of several tokens becomes one of fewer."),
)  # fmt: skip

schedule_options = options(
    click.option("--cross-replace", default="0.8", show_default=True, metavar="SHARE",
                 callback=span("cross-replace"),
                 help="The share of the steps in which words look where SOURCE's did: the first "
                      "0.8, or from 0.2:0.8."),
    click.option("--cross-replace-word", multiple=True, metavar="WORD=SHARE",
                 callback=each(lambda text: kept(text, parse_word_span(text))),
                 help="Another share for a word of a TARGET."),
    click.option("--self-replace", default="0.4", show_default=True, metavar="SHARE",
                 callback=span("self-replace"),
                 help="The share of the steps in which self-attention is SOURCE's: it keeps "
                      "shapes."),
    click.option("--self-grid", default="0.5", show_default=True, metavar="SHARE",
                 callback=span("self-grid"),
                 help="The finest layers in which it is, their grid as a share of the latents': "
                      "the resolution limit. 0.25:0.5 has a coarsest, too."),
    click.option("--self-blocks", default="down,mid,up", show_default=True, metavar="NAMES",
                 callback=blocks("self-blocks"), help="On which sides of the U."),
    click.option("--cross-grid", default="1", show_default=True, metavar="SHARE",
                 callback=span("cross-grid"), help="The same for the words' attention."),
    click.option("--cross-blocks", default="down,mid,up", show_default=True, metavar="NAMES",
                 callback=blocks("cross-blocks"), help="On which sides of the U."),
)  # fmt: skip

blend_options = options(
    click.option("--blend", multiple=True, metavar="WORD",
                 help="Keep to SOURCE wherever none of these words is looked at."),
    click.option("--subtract", multiple=True, metavar="WORD",
                 help="Keep to SOURCE where one of these is looked at."),
    click.option("--mask", type=InputFile(),
                 help="Keep to SOURCE where this is black; of the image's shape."),
    click.option("--invert-mask", is_flag=True, help="Where it is white."),
    click.option("--threshold", type=float, default=0.3, show_default=True,
                 callback=checked(lambda x: validation.check_number("threshold", x, 0.0, 1.0)),
                 help="Looked at is what gets this share of the most looked-at place."),
    click.option("--blend-start", type=float, default=0.2, show_default=True,
                 callback=checked(lambda x: validation.check_number("blend-start", x, 0.0, 1.0)),
                 help="The share of the steps before the first blend."),
    click.option("--blend-level", type=click.IntRange(0, 16),
                 help="Whose attention: 0 works on the whole latent grid, each further level on "
                      "half of it; a quarter of the grid, or 8 cells a side, if not given."),
    click.option("--blend-blocks", default="down,mid,up", show_default=True, metavar="NAMES",
                 callback=blocks("blend-blocks"), help="On which sides of the U."),
)  # fmt: skip

run_options = options(
    click.option("--separately", is_flag=True,
                 help="Look at SOURCE and each TARGET one after the other, as --batch 1: the "
                      "least memory."),
    click.option("--size", metavar="WxH", callback=checked(validation.parse_size),
                 help="Multiples of 8; the size that the model was trained at if not given."),
)  # fmt: skip


def parts(given: Mapping[str, Any]) -> list[str]:
    """The names of the images of one seed."""
    count = len(given["targets"])
    return ["source", *(["target"] if count == 1 else [f"target-{k + 1}" for k in range(count)])]


EXAMPLES = examples(
    'pare p2p "a sunny road in the forest" "a snowy road in the forest" --explain',
    'pare p2p "a sunny road" "a snowy road" "a rainy road" --self-replace 0.6 --out roads.png',
    'pare p2p "a road with a car" "a road with a car" --weight car=-1 --seed 3 --out less.png',
    'pare p2p "a road in the forest" "a road in the city" --blend forest --blend city',
)


@click.command(cls=ImageCommand, parts=parts, epilog=EXAMPLES)
@click.argument("source", callback=checked(validation.check_prompt))
@click.argument("targets", metavar="TARGET...", nargs=-1, required=True,
                callback=each(validation.check_prompt))  # fmt: skip
@pairing_options
@schedule_options
@blend_options
@run_options
@sampling_options
@memory_options
@scheduler_options
@model_options
@revision_option
@tokenizer_option
@output_options
def p2p(source: str, targets: Sequence[str], **given: Any) -> None:
    """Make the image of SOURCE, and beside it what each TARGET makes of the same image.

    Words that stand in SOURCE's places look where SOURCE's words looked (Prompt-to-Prompt), so
    that the layout stays and what the words are about changes. Every seed makes several
    images: NAME-source.png and NAME-target.png, or NAME-target-1.png, …

    A word is named as it is written, `road#2` is the second road; options about words count for
    every TARGET that has them. The scheduler is dpm++2m with Karras sigmas if none is given.
    """
    check_options(given)
    if noted("explain"):
        explain(source, targets, given)
        return
    run = Run.plan()
    mask = load_shape(given)
    edits, tables = pair(source, targets, given)

    from techniques import prompt_to_prompt as technique

    pipe = load_pipeline(given, technique.PREFERRED_SCHEDULER)
    width, height = given["size"] or pipe.trained_size
    warn_of_size(pipe, (width, height), "take a smaller --size")
    common: dict[str, Any] = {
        "height": height, "width": width, "progress": progress(), **sampling(given),
    }  # fmt: skip
    for table in tables:
        run.say(in_words(table))
    given["batch"] = 1 if given["separately"] else given["batch"]
    made = technique.prompt_to_prompt(
        pipe, source, edits, run.seeds, tables=tables, cross_sites=sites("cross", given),
        self_sites=sites("self", given), blend=local_blend(given, mask), mask=mask,
        batch=given["batch"], tile=given["tile"], **common,
    )  # fmt: skip
    run = run.noting(batch=made.plan.batch, tile=made.plan.tile)
    report = differences(made)
    run.write(pipe, made.images, targets=report)
    for path, row in zip(target_paths(run), report, strict=True):
        run.say(f"{path}: {row_in_words(row)}")


def check_options(given: Mapping[str, Any]) -> None:
    """Raise a UsageError for options that contradict."""
    if given["separately"] and given["batch"] not in (None, 1):
        raise click.UsageError(f"--separately and --batch {given['batch']} exclude each other.")
    if given["invert_mask"] and given["mask"] is None:
        raise click.UsageError("--invert-mask needs --mask.")


# --- words --------------------------------------------------------------------------------


def pair(
    source: str, targets: Sequence[str], given: Mapping[str, Any]
) -> tuple[list[Edit], list[TokenMap]]:
    """The edit that each target is, and which of its words is fed by which; no weights are read.

    Raises:
        PromptError: a word that is in no prompt where it should be.
        SettingError: prompts that cannot be paired; a word that is named twice.
    """
    from pare.text.words import read
    from techniques.prompt_to_prompt import Edit

    tokenizer, length = load_words(given)
    before = read(tokenizer, source, length)
    after = [read(tokenizer, target, length) for target in targets]
    weights = dict_of("weight", [validation.parse_weight("weight", t) for t in given["weight"]])
    spans = dict_of("cross-replace-word", [parse_word_span(t) for t in given["cross_replace_word"]])
    replaced = [validation.parse_pair("map", text, "OLD=NEW") for text in given["word_map"]]
    for word in (*weights, *spans, *(new for _, new in replaced)):
        require_word(word, after)
    for old, _ in replaced:
        before.find(old)
    edits = [
        Edit(
            prompt=words.prompt,
            mode=given["mode"],
            words=dict_of("map", [(old, new) for old, new in replaced if words.has(new)]),
            weights={word: weight for word, weight in weights.items() if words.has(word)},
            normalised=given["normalised"],
            cross_replace=validation.parse_span("cross-replace", given["cross_replace"]),
            cross_replace_words={word: share for word, share in spans.items() if words.has(word)},
            self_replace=validation.parse_span("self-replace", given["self_replace"]),
        )
        for words in after
    ]
    tables = [edit.table(before, words) for edit, words in zip(edits, after, strict=True)]
    return edits, tables


def dict_of(name: str, pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs as a mapping; a word that comes twice would be decided in silence."""
    words = [word for word, _ in pairs]
    for word in words:
        if words.count(word) > 1:
            raise PromptError(f"--{name} names {word!r} {words.count(word)} times", expected="once")
    return dict(pairs)


def require_word(word: str, prompts: Sequence[Words]) -> None:
    """Raise a PromptError unless one of the prompts has the word."""
    if len(prompts) == 1:
        prompts[0].find(word)  # whose sentence says more
    elif not any(prompt.has(word) for prompt in prompts):
        listed = dict.fromkeys(spoken for prompt in prompts for spoken in prompt.spoken())
        raise PromptError(f"{word!r} is in none of the targets", expected=", ".join(listed))


def explain(source: str, targets: Sequence[str], given: Mapping[str, Any]) -> None:
    """Print the tables, as text or as JSON."""
    from techniques.prompt_to_prompt import usual_mode

    _, tables = pair(source, targets, given)
    modes = [given["mode"] or usual_mode(table.source, table.target) for table in tables]
    if given["as_json"]:
        rows = [{"mode": mode, **table.report()} for mode, table in zip(modes, tables, strict=True)]
        click.echo(json.dumps({"command": "p2p", "tables": rows}, indent=2))
        return
    texts = [f"{mode}: {table}" for mode, table in zip(modes, tables, strict=True)]
    click.echo("\n\n".join(texts))


def in_words(table: TokenMap) -> str:
    """What the table changes, on a line: the tokens that are not fed by their like alone."""
    from pare.recipes.rebuild import short

    target, new = table.target, []
    for j in range(1, len(target.ids) - 1):
        feeds = table.feeds(j, places=False)
        if feeds != target.names[j]:
            new.append(f"{target.names[j]} <- {feeds}")
    return f"{short(repr(target.prompt))}: {'; '.join(new) or 'every token is fed by its like'}"


# --- layers and blending ------------------------------------------------------------------


def sites(kind: str, given: Mapping[str, Any]) -> Any:
    """The layers whose attention of this kind is edited."""
    from techniques.prompt_to_prompt import Sites

    coarsest, finest = validation.parse_span(f"{kind}-grid", given[f"{kind}_grid"])
    named = parse_blocks(f"{kind}-blocks", given[f"{kind}_blocks"])
    return Sites(named, coarsest=coarsest, finest=finest)


def load_shape(given: Mapping[str, Any]) -> Image.Image | None:
    """The user's mask, if there is one."""
    from pare.io.images import load_mask

    if given["mask"] is None:
        return None
    return load_mask(given["mask"], given["invert_mask"])


def local_blend(given: Mapping[str, Any], mask: Image.Image | None) -> LocalBlend | None:
    """What keeps the targets to the source; None if nothing was asked for."""
    from techniques.prompt_to_prompt import LocalBlend

    if mask is None and not given["blend"] and not given["subtract"]:
        return None
    return LocalBlend(
        words=tuple(given["blend"]),
        subtract=tuple(given["subtract"]),
        threshold=given["threshold"],
        start=given["blend_start"],
        stage=given["blend_level"],
        blocks=parse_blocks("blend-blocks", given["blend_blocks"]),
    )


# --- what came of it ----------------------------------------------------------------------


def differences(made: SourceAndTargets) -> list[dict[str, Any]]:
    """For each target of each seed how far its drawing is from its source's, and the share of
    its latents that local blend let differ."""
    import numpy as np

    from pare.io.metrics import structure_distance

    rows: list[dict[str, Any]] = []
    for seed, (source, targets) in enumerate(zip(made.sources, made.targets, strict=True)):
        for k, target in enumerate(targets):
            apart = structure_distance(np.asarray(source), np.asarray(target))
            free = None if made.masks is None else round(float(made.masks[seed, k].mean()), 4)
            rows.append({"structure": round(apart, 4), "may_differ": free})
    return rows


def row_in_words(row: Mapping[str, Any]) -> str:
    words = f"structure {row['structure']:.3f} from the source's"
    if row["may_differ"] is not None:
        words += f"; {row['may_differ']:.0%} of the latents could differ from it"
    return words


def target_paths(run: Run) -> list[Path]:
    return [path for path, (_, part) in zip(run.paths, run.places, strict=True) if part != "source"]
