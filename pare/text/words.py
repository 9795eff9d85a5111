"""The words of a prompt, and the positions of each word's tokens among the 77.

    read(tokenizer, "A sunny road, at night").find("Sunny")  ->  (2,)

Token 0 is the start token; after the last word come the end token and padding up to 77.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pare.errors import PromptError
from pare.runtime.short_repr import short_repr
from pare.runtime.validation import check_prompt
from pare.text.text_encoder import tokens_of

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

# Letters and digits with their accents and inner apostrophes, or a run of punctuation.
PIECE = re.compile(r"(?:[^\W_]|[\u0300-\u036f])+(?:['’][^\W_]+)*|(?:[^\w\s]|_)+")
START, END, PADDING = "<start>", "<end>", "<padding>"


@dataclass(frozen=True)
class Word:
    """A word of a prompt, or a run of punctuation."""

    text: str
    tokens: tuple[int, ...]
    """Their positions among the 77, in order; none if the word was cut off."""

    @property
    def key(self) -> str:
        """The word in normal form, without case: equal for two spellings of one word."""
        return unicodedata.normalize("NFC", self.text).casefold()


@dataclass(frozen=True)
class Words:
    """A prompt, word by word and token by token."""

    prompt: str
    words: tuple[Word, ...]
    ids: tuple[int, ...]
    """Token ids of start, words and end; the rest of the 77 is padding."""
    names: tuple[str, ...]
    """Readable names of all 77 tokens."""

    __repr__ = short_repr

    @property
    def length(self) -> int:
        """The number of tokens, padding included: 77."""
        return len(self.names)

    def find(self, wanted: str) -> tuple[int, ...]:
        """The positions of a word's tokens, of all its occurrences; `road#2` is the second alone.

        Raises:
            PromptError: no such word; the message names those of the prompt.
        """
        return tuple(place for places in self.occurrences(wanted) for place in places)

    def occurrences(self, wanted: str) -> list[tuple[int, ...]]:
        """For each occurrence of a word, or of several in a row, the places of its tokens.

        Case, and punctuation around the word, do not matter.  `wanted` may end in `#k`: the
        k-th occurrence alone, from 1.

        Raises:
            PromptError: no such word, not so many of it, or cut off after the 77th token.
        """
        text, number = numbered(wanted)
        key = [word.key for word in split(text)]
        there = [word.key for word in self.words]
        starts = [i for i in range(len(there)) if key and there[i : i + len(key)] == key]
        if not starts:
            raise PromptError(
                f"{text!r} is not in the prompt {self.prompt!r}",
                expected=f"of its words: {', '.join(dict.fromkeys(self.spoken())) or 'none'}",
            )
        if number is not None:
            if not 1 <= number <= len(starts):
                raise PromptError(
                    f"{wanted!r} asks for occurrence {number} of {text!r}",
                    expected=f"1 to {len(starts)}, as often as {self.prompt!r} has it",
                )
            starts = starts[number - 1 : number]
        found = [
            tuple(t for word in self.words[i : i + len(key)] for t in word.tokens) for i in starts
        ]
        if not all(found):
            raise PromptError(
                f"{wanted!r} stands behind the {self.length} tokens that the text encoder reads",
                fix="shorten the prompt",
            )
        return found

    def has(self, wanted: str) -> bool:
        """Whether `find` would find it."""
        try:
            return bool(self.occurrences(wanted))
        except PromptError:
            return False

    def spoken(self) -> Iterator[str]:
        """The words without the punctuation."""
        return (word.text for word in self.words if word.text[0].isalnum())


def read(tokenizer: CLIPTokenizer, prompt: str, length: int = 77) -> Words:
    """Split a prompt into words, and find each word's tokens.

    Warns:
        PromptTruncated: a prompt that has more tokens than there is room for.

    Raises:
        PromptError: a prompt that is no text, or far too long.
    """
    ids, offsets = tokens_of(tokenizer, check_prompt(prompt), length - 2)

    # A token belongs to the last word that starts at or before it.
    pieces = list(PIECE.finditer(prompt))
    places: list[list[int]] = [[] for _ in pieces]
    # A prompt of control characters alone has tokens and no word.
    for k, (start, _) in enumerate(offsets if pieces else ()):
        owner = sum(piece.start() <= start for piece in pieces) - 1
        places[max(owner, 0)].append(1 + k)

    names = [START, *(prompt[a:b] for a, b in offsets), END]
    return Words(
        prompt=prompt,
        words=tuple(
            Word(piece[0], tuple(tokens)) for piece, tokens in zip(pieces, places, strict=True)
        ),
        ids=(tokenizer.bos_token_id, *ids, tokenizer.eos_token_id),
        names=tuple(names + [PADDING] * (length - len(names))),
    )


def numbered(wanted: str) -> tuple[str, int | None]:
    """`road#2` -> ("road", 2); `road` -> ("road", None)"""
    match = re.fullmatch(r"(.*\S)\s*#\s*([0-9]{1,4})\s*", wanted, re.DOTALL)
    return (match[1], int(match[2])) if match else (wanted.strip(), None)


def split(text: str) -> list[Word]:
    """The words of a text, without the punctuation around them, if there are any words."""
    words = [Word(piece[0], ()) for piece in PIECE.finditer(text)]
    spoken = [i for i, word in enumerate(words) if word.text[0].isalnum()]
    return words[spoken[0] : spoken[-1] + 1] if spoken else words
