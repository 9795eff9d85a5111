"""Prompts to embeddings: tokens (`pare.text.tokenizer`) through CLIP's encoder (`pare.text.clip`).

The UNet gets 77 vectors a prompt, one a token: the keys and values of its cross-attention
(`pare.attention`).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pare.errors import SettingError
from pare.runtime.calls import warn_caller
from pare.runtime.forked import check_forked
from pare.runtime.numerics import check_finite
from pare.runtime.short_repr import short_repr
from pare.runtime.validation import check_prompt, prompt_list
from pare.text.clip import TextEncoder

if TYPE_CHECKING:
    from transformers import CLIPTokenizer


class PromptTruncated(UserWarning):
    """A prompt was longer than the text encoder's 77 tokens: its end has no effect."""


class UnknownWords(UserWarning):
    """A prompt has words that do not occur in the captions that the model was trained on."""


WORDS_FILE = "tokenizer/words.txt"  # one a line, in a model's folder
MOST_WORDS = 1_000_000  # bytes of that file
WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
WEIGHT = re.compile(r"\(([^():]*):[0-9.]+\)")  # as web interfaces write it: (car:1.3)


@dataclass(frozen=True)
class PromptEmbeddings:
    """Text embeddings of the prompts, and of the negative prompts for guidance."""

    cond: Tensor
    """(B, 77, C)"""
    uncond: Tensor
    """(B, 77, C): the negative prompts, "" where there is none."""

    __repr__ = short_repr

    def __len__(self) -> int:
        return self.cond.shape[0]

    def __getitem__(self, rows: slice) -> PromptEmbeddings:
        return PromptEmbeddings(self.cond[rows], self.uncond[rows])


@torch.no_grad()
def encode(tokenizer: CLIPTokenizer, text_encoder: TextEncoder, prompts: Sequence[str]) -> Tensor:
    """Prompts -> embeddings (B, 77, C): the encoder's last hidden state, normed.

    Warns:
        PromptTruncated: a prompt does not fit; the warning shows what was cut.

    Raises:
        PromptError: a prompt that is no text, or far too long.
        NonFiniteError: the embeddings hold NaN or infinities.
    """
    check_forked()
    length = text_encoder.config.max_position_embeddings
    ids = tokenize(tokenizer, [check_prompt(prompt) for prompt in prompts], length)
    ids = ids.to(text_encoder.device)
    embeddings: Tensor = text_encoder(ids).last_hidden_state
    check_finite(
        "the text encoder's embeddings", embeddings, text_encoder, {}, lambda: text_encoder(ids)
    )
    return embeddings


def tokenize(tokenizer: CLIPTokenizer, prompts: Sequence[str], length: int = 77) -> Tensor:
    """Prompts -> token ids (B, length): start, the words, end, and padding to `length`.

    Start, end and padding are added here: a tokenizer that is asked to pad or truncate changes
    its own settings, which two runs in two threads may share.
    """
    words = {prompt: words_of(tokenizer, prompt, length - 2) for prompt in dict.fromkeys(prompts)}
    rows = []
    for prompt in prompts:
        row = [tokenizer.bos_token_id, *words[prompt], tokenizer.eos_token_id]
        rows.append(row + [tokenizer.pad_token_id] * (length - len(row)))  # SD 1 and 2 differ
    return torch.tensor(rows)


def words_of(tokenizer: CLIPTokenizer, prompt: str, room: int) -> list[int]:
    """The ids of the prompt's tokens, at most `room`; a warning shows what is cut off."""
    return tokens_of(tokenizer, prompt, room)[0]


def tokens_of(
    tokenizer: CLIPTokenizer, prompt: str, room: int
) -> tuple[list[int], list[tuple[int, int]]]:
    """`words_of`, and where in the prompt each token starts and ends."""
    # Not verbose: transformers would warn too, in terms of indexing errors.
    tokens = tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids: list[int] = tokens.input_ids
    offsets: list[tuple[int, int]] = tokens.offset_mapping
    if len(ids) > room:
        warn_caller(cut_off(len(ids), room, prompt[offsets[room][0] :]))
    return ids[:room], offsets[:room]


def cut_off(count: int, room: int, rest: str) -> PromptTruncated:
    """The warning for a prompt of `count` tokens where there is `room` for fewer."""
    cut = rest.strip()
    shown = cut if len(cut) <= 80 else cut[:79] + "…"
    return PromptTruncated(
        f"the prompt has {count} tokens and the text encoder reads {room}: {shown!r} is cut off"
    )


def known_words(folder: Path | str) -> frozenset[str] | None:
    """The words of the captions that a model was trained on, lower case; None if not listed.

    A tokenizer encodes any text and splits an unknown word into smaller pieces, so the words
    are listed in a file of their own, `tokenizer/words.txt`.  The built-in model has one;
    models that were trained on captions from the web have none.

    Args:
        folder: the model's (`pipe.source.path`).
    """
    path = Path(folder) / WORDS_FILE
    if not path.is_file() or path.stat().st_size > MOST_WORDS:
        return None
    return frozenset(path.read_text(encoding="utf-8", errors="replace").lower().split())


def unknown_words(prompt: str, known: frozenset[str]) -> list[str]:
    """The words of the prompt that are not `known`, each once, in the prompt's order."""
    return [word for word in dict.fromkeys(WORD.findall(prompt.lower())) if word not in known]


def warn_of_unknown_words(prompts: Sequence[str], known: frozenset[str], model: str) -> None:
    """Warn about words of the prompts that `model` was not trained on."""
    text = " ".join(prompts)
    weighted = WEIGHT.search(text)
    if weighted:
        warn_caller(
            f"{weighted[0]} is read as words: pare has no weights in prompts; `pare p2p --weight` "
            "scales the attention to a word",
            UnknownWords,
        )
    unknown = unknown_words(WEIGHT.sub(r"\1", text), known)
    if unknown:
        words = ", ".join(map(repr, unknown[:5])) + (", …" if len(unknown) > 5 else "")
        warn_caller(
            f"{model} was not trained on {words}; `pare inspect {shlex.quote(model)}` lists the "
            f"{len(known)} words that it knows",
            UnknownWords,
        )


def paired(prompts: Sequence[str], negative: str | Sequence[str]) -> list[str]:
    """One negative prompt per prompt.

    Raises:
        SettingError: several negative prompts, and not as many as prompts.
        PromptError: a negative prompt that is no text.
    """
    negatives = prompt_list(negative)
    if isinstance(negative, str):
        negatives *= len(prompts)
    if len(negatives) != len(prompts):
        raise SettingError(
            f"{len(negatives)} negative prompts are given for {len(prompts)} prompts",
            expected="one, or one per prompt",
        )
    return negatives
