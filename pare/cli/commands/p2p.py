"""`pare p2p`: Prompt-to-Prompt editing by attention control."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pare.cli import terminal
from pare.cli.grouped_help import option, options
from pare.cli.image_run import ImageRun, image_command, load_words
from pare.cli.option_types import (
    InputFile,
    as_typed,
    checked,
    each,
    not_in_recipe,
    noted,
    number,
)
from pare.cli.options import edit_run_options, memory_options, size_option
from pare.cli.terminal import progress
from pare.errors import PromptError, SettingError
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
        raise SettingError(f"`{name}` is {text!r}", expected=f"some of {','.join(BLOCKS)}")
    return blocks


def span(name: str) -> Any:
    return as_typed(functools.partial(validation.parse_span, name))


def blocks(name: str) -> Any:
    return as_typed(functools.partial(parse_blocks, name))


def parse_word_span(text: str) -> tuple[str, tuple[float, float]]:
    """`car=0.4` as ("car", (0, 0.4))."""
    word, share = validation.parse_pair("cross_replace_word", text, "WORD=SHARE")
    return word, validation.parse_span("cross_replace_word", share)


pairing_options = options(
    "Pairing the words",
    option("--explain", is_flag=True, usual=True, **not_in_recipe("explain"),
           help="Print which token of SOURCE feeds which of each TARGET; run nothing."),
    option("--mode", type=click.Choice(["replace", "refine", "own"]), usual=True,
           help="Pair the prompts word by word (replace), by what they share (refine), or only as "
                "--map says (own). Default: replace if they have as many words, else refine."),
    option("--map", "word_map", multiple=True, metavar="OLD=NEW", usual=True,
           callback=as_typed(lambda text: validation.parse_pair("word_map", text, "OLD=NEW")),
           help="Give NEW, a word of a TARGET, the attention maps of OLD, a word of SOURCE."),
    option("--weight", multiple=True, metavar="WORD=NUMBER", usual=True,
           callback=as_typed(lambda text: validation.parse_weight("weight", text)),
           help="Scale the attention to a word of a TARGET: 2, 0.5, or -1 (away from it)."),
    option("--normalised", is_flag=True,
           help="Where a word of several tokens becomes one of fewer, keep the sum of its "
                "attention weights."),
)  # fmt: skip

schedule_options = options(
    "Attention control",
    option("--cross-replace", default="0.8", show_default=True, metavar="SHARE", usual=True,
           callback=span("cross_replace"),
           help="Steps in which cross-attention maps are SOURCE's: the first 0.8, or 0.2:0.8."),
    option("--self-replace", default="0.4", show_default=True, metavar="SHARE", usual=True,
           callback=span("self_replace"),
           help="Steps in which self-attention maps are SOURCE's: more keeps more of the shapes."),
    option("--cross-replace-word", multiple=True, metavar="WORD=SHARE",
           callback=as_typed(parse_word_span), help="--cross-replace for one word of a TARGET."),
    option("--self-grid", default="0.5", show_default=True, metavar="SHARE",
           callback=span("self_grid"),
           help="Resolution limit of --self-replace: layers whose grid is at most this share of "
                "the latents' side; 0.25:0.5 sets a lower limit, too."),
    option("--self-blocks", default="down,mid,up", show_default=True, metavar="NAMES",
           callback=blocks("self_blocks"), help="Blocks of the UNet in which it acts."),
    option("--cross-grid", default="1", show_default=True, metavar="SHARE",
           callback=span("cross_grid"), help="As --self-grid, for cross-attention."),
    option("--cross-blocks", default="down,mid,up", show_default=True, metavar="NAMES",
           callback=blocks("cross_blocks"), help="Blocks of the UNet in which it acts."),
)  # fmt: skip

local_blend_options = options(
    "Local blend",
    option("--blend", multiple=True, metavar="WORD", usual=True,
           help="Change only where the pixels attend to one of these words."),
    option("--subtract", multiple=True, metavar="WORD",
           help="Change nothing where the pixels attend to one of these words."),
    option("--mask", type=InputFile(),
           help="Change only where this image is white; of the image's shape, in any size."),
    option("--invert-mask", is_flag=True, help="Change only where --mask is black."),
    option("--threshold", type=float, default=0.3, show_default=True,
           callback=number("threshold", 0.0, 1.0),
           help="Attention that counts, relative to the maximum of the word's map."),
    option("--blend-start", type=float, default=0.2, show_default=True,
           callback=number("blend_start", 0.0, 1.0),
           help="Share of the steps before the first blend."),
    option("--blend-level", type=click.IntRange(0, 16),
           help="Resolution stage whose attention decides: 0 is the latents' grid, each further "
                "stage halves it. Default: a quarter of the grid, at least 8 x 8."),
    option("--blend-blocks", default="down,mid,up", show_default=True, metavar="NAMES",
           callback=blocks("blend_blocks"), help="Blocks of the UNet whose attention decides."),
)  # fmt: skip

separately_option = option(
    "--separately", is_flag=True,
    help="Run SOURCE and each TARGET one after the other, as --batch 1: the least memory.",
)  # fmt: skip


def parts(given: Mapping[str, Any]) -> list[str]:
    """The names of the images of one seed."""
    count = len(given["targets"])
    return ["source", *(["target"] if count == 1 else [f"target-{k + 1}" for k in range(count)])]


EXAMPLES = (
    'pare p2p "a sunny mountain road with a red car" "a sunny mountain road with a blue car"',
    'pare p2p "a sunny mountain road with a red car" "a snowy mountain road with a red car"',
    'pare p2p "a sunny road with a red car" "a sunny road with a blue car" --blend car',
    'pare p2p "a sunny road with clouds" "a sunny road with clouds" --weight clouds=0',
    'pare p2p "a sunny road in the forest" "a snowy road in the forest" --explain',
)


@image_command(section="edit", parts=parts, examples=EXAMPLES)
@click.argument("source", callback=checked(validation.check_prompt))
@click.argument("targets", metavar="TARGET...", nargs=-1, required=True,
                callback=each(validation.check_prompt))  # fmt: skip
@pairing_options
@schedule_options
@local_blend_options
@separately_option
@size_option
@edit_run_options
@memory_options
def p2p(source: str, targets: Sequence[str], **given: Any) -> None:
    """Prompt-to-Prompt: generate SOURCE, and edit it into each TARGET by attention control.

    Where a TARGET's words correspond to SOURCE's, they keep SOURCE's attention maps
    (arXiv:2208.01626): the composition stays and the content changes. Every seed makes several
    images: NAME-source.png and NAME-target.png, or NAME-target-1.png, …

    `road#2` is the second road of a prompt; options about words apply to every TARGET that has
    them.
    """
    check_options(given)
    if noted("explain"):
        explain(source, targets, given)
        return
    run = ImageRun.start()
    mask = load_edit_mask(given)
    edits, tables = pair(source, targets, given)

    from techniques import prompt_to_prompt as technique

    pipe = run.load_pipeline(technique.PREFERRED_SCHEDULER)
    width, height = run.size(pipe)
    common: dict[str, Any] = {
        "height": height, "width": width, "progress": progress(), **run.sampling,
    }  # fmt: skip
    for table in tables:
        run.say(table_in_words(table))
    given["batch"] = 1 if given["separately"] else given["batch"]
    made = technique.prompt_to_prompt(
        pipe, source, edits, run.seeds, tables=tables, cross_sites=sites("cross", given),
        self_sites=sites("self", given), blend=local_blend(given, mask), mask=mask,
        batch=given["batch"], tile=given["tile"], **common,
    )  # fmt: skip
    run.note(batch=made.plan.batch, tile=made.plan.tile)
    report = differences(made)
    unwanted = [word for word, weight in weights_of(given).items() if weight <= 0]
    judged = [
        None if target is None
        else run.judge(pipe, image, before=source_image, prompt=target, unwanted=unwanted)
        for source_image, row in zip(made.sources, made.targets, strict=True)
        for target, image in zip([None, *targets], [source_image, *row], strict=True)
    ]  # fmt: skip
    run.write(pipe, made.images, judged, targets=report)
    for path, row in zip(target_paths(run), report, strict=True):
        run.say(f"{path}: {row_in_words(row)}")


def check_options(given: Mapping[str, Any]) -> None:
    """Raise a UsageError for options that contradict each other."""
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
    weights = weights_of(given)
    spans = dict_of("cross_replace_word", [parse_word_span(t) for t in given["cross_replace_word"]])
    replaced = [validation.parse_pair("word_map", text, "OLD=NEW") for text in given["word_map"]]
    for word in (*weights, *spans, *(new for _, new in replaced)):
        require_word(word, after)
    for old, _ in replaced:
        before.find(old)
    edits = [
        Edit(
            prompt=words.prompt,
            mode=given["mode"],
            words=dict_of("word_map", [(old, new) for old, new in replaced if words.has(new)]),
            weights={word: weight for word, weight in weights.items() if words.has(word)},
            normalised=given["normalised"],
            cross_replace=validation.parse_span("cross_replace", given["cross_replace"]),
            cross_replace_words={word: share for word, share in spans.items() if words.has(word)},
            self_replace=validation.parse_span("self_replace", given["self_replace"]),
        )
        for words in after
    ]
    tables = [edit.table(before, words) for edit, words in zip(edits, after, strict=True)]
    return edits, tables


def weights_of(given: Mapping[str, Any]) -> dict[str, float]:
    """Word -> its weight."""
    return dict_of("weight", [validation.parse_weight("weight", t) for t in given["weight"]])


def dict_of(name: str, pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs as a mapping; a word that comes twice would be decided in silence."""
    words = [word for word, _ in pairs]
    for word in words:
        if words.count(word) > 1:
            raise PromptError(f"`{name}` names {word!r} {words.count(word)} times", expected="once")
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
        terminal.result(json.dumps({"command": "p2p", "tables": rows}, indent=2))
        return
    texts = [f"{mode}: {table}" for mode, table in zip(modes, tables, strict=True)]
    terminal.result("\n\n".join(texts))


def table_in_words(table: TokenMap) -> str:
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

    coarsest, finest = validation.parse_span(f"{kind}_grid", given[f"{kind}_grid"])
    named = parse_blocks(f"{kind}_blocks", given[f"{kind}_blocks"])
    return Sites(named, coarsest=coarsest, finest=finest)


def load_edit_mask(given: Mapping[str, Any]) -> Image.Image | None:
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
        blocks=parse_blocks("blend_blocks", given["blend_blocks"]),
    )


# --- what came of it ----------------------------------------------------------------------


def differences(made: SourceAndTargets) -> list[dict[str, Any]]:
    """For each target of each seed the structure distance from its source, and the share of its
    latents that local blend let differ."""
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
    words = f"structure distance {row['structure']:.3f} from the source (0: the same edges)"
    if row["may_differ"] is not None:
        words += f"; {row['may_differ']:.0%} of the latents could differ from it"
    return words


def target_paths(run: ImageRun) -> list[Path]:
    return [path for path, (_, part) in zip(run.paths, run.places, strict=True) if part != "source"]
