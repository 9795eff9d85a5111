"""`pare tokens`: a prompt's tokens and embeddings."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from pare.cli import terminal
from pare.cli.embedding_options import embedding_options, read_edits, with_edits
from pare.cli.grouped_help import command, option
from pare.cli.image_run import load_pipeline
from pare.cli.options import json_option, model_options, prompt_argument
from pare.cli.terminal import one_line

if TYPE_CHECKING:
    from pare.study.record.token_table import TokenRow

EXAMPLES = (
    'pare tokens "a snowy road in the forest"',
    'pare tokens "a sunny road in the forest" --replace sunny=rainy',
    'pare tokens "a road in the forest" --mix forest=desert=0.3 --json',
)


@command(section="study", examples=EXAMPLES)
@prompt_argument
@option("--near", type=click.IntRange(0, 20), default=3, show_default=True, usual=True,
        help="How many of the vocabulary's nearest tokens to list for each.")  # fmt: skip
@embedding_options
@model_options
@json_option
def tokens(prompt: str, near: int, as_json: bool, **given: Any) -> None:
    """Show the tokens of PROMPT, their embeddings, and the text encoder's output for each.

    For each token: its id, the norms of its token and position embeddings, the nearest tokens
    (cosine), and the norm of the encoder's output. With an edit also how far the output moves:
    attention is causal, so that nothing before the edited word changes.
    """
    edits = read_edits(given)
    terminal.busy(f"loading {given['model']}")

    from pare.study.record.token_table import token_rows

    pipe = load_pipeline({"scheduler": None, "karras": None, "eta": None, **given})
    rows = token_rows(with_edits(pipe, edits, [prompt]) if edits else pipe, prompt, near)
    vocabulary = len(pipe.tokenizer)
    if as_json:
        listed = [dataclasses.asdict(row) for row in rows]
        terminal.result(json.dumps({"prompt": prompt, "vocabulary": vocabulary, "tokens": listed}))
        return
    for line in table(rows, vocabulary):
        terminal.result(line)
    if edits:
        terminal.result(f"\n{reach_in_words(rows)}")


def table(rows: Sequence[TokenRow], vocabulary: int) -> Iterator[str]:
    """A line a token; padding, which is always the same token, in one."""
    edited = rows[0].moved is not None
    shown = [row for row in rows if row.text != "<padding>"]
    padding = rows[len(shown) :]
    names = [one_line(row.text) for row in shown]
    width = max(7, *map(len, names)) + 2
    lengths = "  |token|    |pos| |output|" + ("    moved" if edited else "")
    yield f"{'':>5}{'id':>7}  {'token':{width}}{lengths}  nearest"
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
