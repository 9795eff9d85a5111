"""A prompt's tokens and their embeddings, and which outputs of the text encoder an edit changes.

for row in token_rows(pipe, "a snowy road"):
    print(row.index, row.id, row.text, row.token_norm, row.nearest[0].token)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pare.runtime.validation import check_prompt
from pare.text.embedding_edits import (
    NO_EDITS,
    Layout,
    Near,
    changed,
    encode_edited,
    nearest_tokens,
    require_words,
)
from pare.text.text_encoder import warn_of_unknown_words

if TYPE_CHECKING:
    from pare.pipeline import Pipeline


@dataclass(frozen=True)
class TokenRow:
    """One of the prompt's 77 tokens."""

    index: int
    id: int
    """From the vocabulary's size on: an embedding of the run's own, learned or mixed."""
    text: str
    """As in the prompt, or `<start>`, `<end>`, `<padding>`."""
    token_norm: float
    """The norm of the token's embedding (C,), a row of the embedding table."""
    position_norm: float
    """The norm of the position embedding that is added to it."""
    nearest: tuple[Near, ...]
    """The tokens of the vocabulary with the most similar embeddings, itself left out."""
    output_norm: float
    """The norm of the text encoder's output, which the UNet's cross-attention reads."""
    moved: float | None
    """The relative change of that output by the edits; None without edits."""


@torch.no_grad()
def token_rows(pipe: Pipeline, prompt: str, near: int = 3) -> list[TokenRow]:
    """The tokens of a prompt under the pipeline's text edits.

    Warns:
        PromptTruncated, UnknownWords: as `Pipeline.encode_prompts`.

    Raises:
        PromptError: as `Pipeline.encode_prompts`.
    """
    edits, encoder = pipe.text_edits, pipe.text_encoder
    check_prompt(prompt)
    if pipe.words is not None:
        texts = [edits.without_learned(text) for text in (prompt, *edits.outside_prompts)]
        warn_of_unknown_words(texts, pipe.words, pipe.source.name)
    require_words(pipe.tokenizer, encoder, [prompt], edits)
    layout = Layout(pipe.tokenizer, encoder, edits)
    edited = layout.read(prompt)
    ids: list[int] = edited.ids[0].tolist()
    vectors = layout.vectors(ids)
    positions = position_table(pipe)
    if edits:
        after = pipe.encode_prompts(prompt).cond
        plain = Layout(pipe.tokenizer, encoder, NO_EDITS).read(prompt)
        moved: list[float | None] = list(changed(encode_edited(encoder, plain), after))
    else:
        after = encode_edited(encoder, edited)
        moved = [None] * len(ids)
    # One more, as a token of the vocabulary is most similar to itself.
    likes = nearest_tokens(pipe.tokenizer, encoder, vectors, near + 1)
    return [
        TokenRow(
            index=index,
            id=number,
            text=text,
            token_norm=round(float(vectors[index].norm()), 4),
            position_norm=round(float(positions[index].norm()), 4),
            nearest=tuple(one for one in likes[index] if one.id != number)[:near],
            output_norm=round(float(after[0, index].float().norm()), 4),
            moved=moved[index],
        )
        for index, (number, text) in enumerate(zip(ids, edited.words.names, strict=True))
    ]


def position_table(pipe: Pipeline) -> Tensor:
    """The embeddings of the 77 positions, (77, C), float32."""
    weights = pipe.text_encoder.named_parameters()
    return next(w for name, w in weights if name.endswith("position_embedding.weight")).float()
