"""Textual-inversion embeddings (arXiv:2208.01618): a placeholder word and its vectors.

One or several vectors are trained on a few images of an object or a style, and replace the
placeholder's token embedding in the text encoder.  `pare.loading.embedding_file` reads them
from files.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pare.errors import EmbeddingError, PromptError
from pare.runtime.short_repr import short_repr
from pare.runtime.validation import check_prompt

MOST_VECTORS = 75  # tokens of a prompt without its start and end
MODELS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 1280: "Stable Diffusion XL"}


@dataclass(frozen=True, eq=False)
class LearnedWord:
    """A word, and the vectors that the text encoder reads in its place."""

    word: str
    vectors: Tensor
    """(n, C): one a token, C the text encoder's width."""

    __repr__ = short_repr

    def __post_init__(self) -> None:
        check_word(self.word)
        if self.vectors.ndim != 2 or not self.vectors.is_floating_point():
            raise EmbeddingError(
                f"{self.word!r} is a tensor of shape {tuple(self.vectors.shape)}",
                expected="floating-point vectors (n, C), one a token",
            )
        if not 1 <= len(self.vectors) <= MOST_VECTORS:
            raise EmbeddingError(
                f"{self.word!r} has {len(self.vectors)} vectors",
                expected=f"1 to {MOST_VECTORS}, as many as a prompt has tokens",
            )
        if not self.vectors.isfinite().all():
            raise EmbeddingError(
                f"the vectors of {self.word!r} hold NaN or infinities", fix="train it again"
            )


def check_word(word: str) -> str:
    """A word that can be found in a prompt: not empty, and without spaces."""
    check_prompt(word)
    if not word or any(letter.isspace() for letter in word):
        raise PromptError(
            f"a learned word is called {word!r}", expected="a word without spaces, as <cat-toy>"
        )
    return word


def check_width(learned: LearnedWord, width: int, model: str) -> None:
    """Raise unless the vectors are as wide as those of the model's table.

    Raises:
        EmbeddingError: they are for another model.
    """
    got = learned.vectors.shape[1]
    if got != width:
        named = f", as {MODELS[got]} has" if got in MODELS else ""
        raise EmbeddingError(
            f"{learned.word!r} has vectors of {got} numbers{named}",
            expected=f"{width}, the width of {model}'s text encoder",
        )
