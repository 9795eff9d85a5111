"""`pare tokens`: a prompt as the text encoder sees it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from pare.cli.examples import examples
from pare.cli.options import (
    json_option,
    model_options,
    options,
    prompt_argument,
    revision_option,
    tokenizer_option,
)
from pare.cli.run_command import use_threads
from pare.cli.terminal import one_line
from pare.cli.text_options import read_edits, text_options, under_edits

if TYPE_CHECKING:
    from pare.study.record.token_table import TokenRow

tokens_options = options(
    click.option("--near", type=click.IntRange(0, 20), default=3, show_default=True,
                 help="So many of the vocabulary's tokens that are most like each."),
)  # fmt: skip

EXAMPLES = examples(
    'pare tokens "a snowy road in the forest"',
    'pare tokens "a sunny road in the forest" --replace sunny=rainy',
    'pare tokens "a road in the forest" --mix forest=desert=0.3 --json',
)


@click.command(epilog=EXAMPLES)
@prompt_argument
@tokens_options
@text_options
@model_options
@revision_option
@tokenizer_option
@json_option
def tokens(prompt: str, near: int, as_json: bool, **given: Any) -> None:
    """Show what the text encoder sees of PROMPT: its tokens and their embeddings.

    For each its id, the lengths of its embedding and of its position's, the tokens that are
    most like it, and the length of what the encoder makes of it. With an edit also how far
    that has moved: nothing before the edited word changes, and everything behind it does.
    """
    edits = read_edits(given)

    from pare.pipeline import Pipeline
    from pare.study.record.token_table import token_rows

    use_threads(given)
    pipe = Pipeline.from_pretrained(
        given["model"], device=given["device"], dtype=given["dtype"],
        revision=given["revision"], tokenizer=given["tokenizer"],
    )  # fmt: skip
    rows = token_rows(under_edits(pipe, edits, [prompt]), prompt, near)
    vocabulary = len(pipe.tokenizer)
    if as_json:
        listed = [dataclasses.asdict(row) for row in rows]
        click.echo(json.dumps({"prompt": prompt, "vocabulary": vocabulary, "tokens": listed}))
        return
    for line in table(rows, vocabulary):
        click.echo(line)
    if edits:
        click.echo(f"\n{reach_in_words(rows)}")


def table(rows: Sequence[TokenRow], vocabulary: int) -> Iterator[str]:
    """A line a token; padding, which is always the same token, in one."""
    edited = rows[0].moved is not None
    shown = [row for row in rows if row.text != "<padding>"]
    padding = rows[len(shown) :]
    names = [one_line(row.text) for row in shown]
    width = max(7, *map(len, names)) + 2
    lengths = "  |token|  |place| |output|" + ("    moved" if edited else "")
    yield f"{'':>5}{'id':>7}  {'token':{width}}{lengths}  like"
    for row, name in zip(shown, names, strict=True):
        yield numbers(f"{row.index:5d}", row, name, width, vocabulary)
    if padding:
        first, last = padding[0], padding[-1]
        yield numbers(f"{first.index:2d}-{last.index}", first, "padding", width, vocabulary)


def numbers(place: str, row: TokenRow, name: str, width: int, vocabulary: int) -> str:
    number = str(row.id) if row.id < vocabulary else "own"
    moved = "" if row.moved is None else f"{'-' if row.moved == 0 else f'{row.moved:.3f}':>9}"
    like = ", ".join(f"{one_line(near.token)} {near.cosine:.2f}" for near in row.nearest)
    lengths = f"{row.token_norm:9.3f}{row.position_norm:9.3f}{row.output_norm:9.3f}"
    return f"{place}{number:>7}  {name:{width}}{lengths}{moved}  {like}".rstrip()


def reach_in_words(rows: Sequence[TokenRow]) -> str:
    """Which of the outputs the edits have changed."""
    moved = [row.moved or 0.0 for row in rows]
    first = next((i for i, far in enumerate(moved) if far), None)
    if first is None:
        return f"the edits change none of the {len(moved)} outputs"
    behind = moved[first:]
    before = "" if first == 0 else f"outputs 0 to {first - 1} are the same to the bit; "
    return (
        f"{before}{first} to {len(moved) - 1} move, by {min(behind):.3f} to {max(behind):.3f} "
        "of their length"
    )
