"""Edits of token embeddings: replace or mix words' embeddings, add textual-inversion words.

The text encoder reads 77 token ids a prompt.  Each id selects a row of the token embedding
table; the position embedding is added, and the sum goes through the encoder's layers
(`pare.text.text_encoder.encode`).  An edit lets ids select other rows:

    TextEdits(words=[Replace("cat", "dog")])            the dog's embedding where the cat's was
    TextEdits(words=[Mix("cat", "dog", share=0.3)])     0.7 of the cat's and 0.3 of the dog's
    TextEdits(learned=[LearnedWord("<cat-toy>", v)])    a textual-inversion embedding

Mixtures and learned words are extra `rows` that a run appends to the table, with the ids that
follow the vocabulary's; `with_rows` makes an encoder that reads both.  The loaded model is not
changed, so that runs with other edits, in other threads, can share it.

`MixPrompts` mixes the encoder's outputs for two whole prompts.

    edited = pipe.with_text_edits(TextEdits(words=[Mix("cat", "dog")]))
    images = edited("a photo of a cat", seeds=7)
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pare.errors import PromptError
from pare.runtime.calls import warn_caller
from pare.runtime.module_copies import with_layers
from pare.runtime.numerics import check_finite
from pare.runtime.short_repr import short_repr
from pare.runtime.validation import check_number, check_prompt
from pare.text.clip import TextEncoder
from pare.text.text_encoder import PromptEmbeddings, cut_off
from pare.text.textual_inversion import LearnedWord, check_width
from pare.text.words import END, PADDING, PIECE, START, Word, Words, numbered

if TYPE_CHECKING:
    from transformers import CLIPTokenizer


# --- the edits -----------------------------------------------------------------------------

TOKEN_ID = re.compile(r"\s*#([0-9]{1,6})\s*")
"""A token of the vocabulary by its id: `#2368`."""


class TokenIdWarning(UserWarning):
    """A bare number as a replacement is read as text; a token's id is written `#2368`."""


@dataclass(frozen=True)
class Replace:
    """The token embeddings of `by` in place of those of `word`.

    With two words of the vocabulary this equals writing the other word in the prompt; `by` may
    be a learned word, or a token by its id: `#2368`.
    """

    word: str
    """In the prompt, as people write it; `road#2` is the second alone."""
    by: str


@dataclass(frozen=True)
class Mix:
    """In place of the embeddings of `word`: (1 - share) * word + share * by.

    Token by token, so both words must have the same number of tokens.
    """

    word: str
    by: str
    share: float = 0.5
    """0 keeps the word, 1 replaces it; values outside [0, 1] extrapolate."""


@dataclass(frozen=True)
class MixPrompts:
    """(1 - share) times the prompt's text embeddings plus `share` times those of another one."""

    prompt: str
    share: float = 0.5


@dataclass(frozen=True)
class TextEdits:
    """All edits of a run's prompts; in the negative prompt only the learned words apply."""

    learned: Sequence[LearnedWord] = ()
    words: Sequence[Replace | Mix] = ()
    prompts: Sequence[MixPrompts] = ()

    def __bool__(self) -> bool:
        return bool(self.learned or self.words or self.prompts)

    def check(self, width: int, model: str) -> None:
        """Raise unless the edits make sense for a model of that width.

        Raises:
            EmbeddingError: a learned word's vectors are for another model.
            PromptError: two words of one name, or nothing where a word is expected.
            SettingError: a share out of range.
        """
        keys = [learned.word.casefold() for learned in self.learned]
        for learned in self.learned:
            check_width(learned, width, model)
            if keys.count(learned.word.casefold()) > 1:
                raise PromptError(
                    f"two learned words are called {learned.word!r}",
                    fix="call one of them otherwise: FILE=WORD",
                )
        for edit in (*self.words, *self.prompts):
            if isinstance(edit, Mix | MixPrompts):
                check_number("share", edit.share, -10.0, 10.0)
            if isinstance(edit, MixPrompts):
                check_prompt(edit.prompt)
            else:
                for side in (edit.word, edit.by):
                    if not check_prompt(side).strip():
                        raise PromptError("an edit's word is empty", expected="WORD=OTHER")

    @property
    def outside_prompts(self) -> list[str]:
        """The texts that edits bring in."""
        texts = [edit.by for edit in self.words if not TOKEN_ID.fullmatch(edit.by)]
        return texts + [edit.prompt for edit in self.prompts]

    def without_learned(self, text: str) -> str:
        """The text without its learned words, which are not in the model's vocabulary."""
        pattern = self.pattern
        return text if pattern is None else pattern.sub(" ", text)

    @functools.cached_property
    def pattern(self) -> re.Pattern[str] | None:
        """Finds learned words in a text, in any case, and not inside of longer words."""
        if not self.learned:
            return None
        longest_first = sorted((learned.word for learned in self.learned), key=len, reverse=True)
        return re.compile("|".join(map(whole_word, longest_first)), re.IGNORECASE)

    def uses(self, learned: LearnedWord, texts: Iterable[str]) -> bool:
        """Whether a learned word stands in any of the texts, or in what replaces a word."""
        pattern = re.compile(whole_word(learned.word), re.IGNORECASE)
        return any(pattern.search(text) for text in (*texts, *self.outside_prompts))


NO_EDITS = TextEdits()


def whole_word(word: str) -> str:
    """A pattern for `word` where it is not a part of a longer one."""
    before = r"(?<!\w)" if re.match(r"\w", word) else ""
    behind = r"(?!\w)" if re.search(r"\w$", word) else ""
    return before + re.escape(word) + behind


# --- a prompt, token by token --------------------------------------------------------------


@dataclass(frozen=True)
class Token:
    """One of a prompt's tokens, before start, end and padding are put around them."""

    id: int
    start: int
    """Where it begins in the text."""
    text: str


@dataclass(frozen=True, eq=False)
class EditedPrompt:
    """A prompt's 77 ids, some of which may refer to rows appended to the table, and its words."""

    words: Words
    """Its `ids` are without padding."""
    ids: Tensor
    """(1, 77)"""
    rows: Tensor
    """(k, C): row j is the embedding of the id `vocabulary + j`."""

    __repr__ = short_repr


class Layout:
    """Tokenizes prompts under some edits, and collects the extra rows that they need."""

    def __init__(
        self, tokenizer: CLIPTokenizer, text_encoder: TextEncoder, edits: TextEdits
    ) -> None:
        self.tokenizer, self.edits = tokenizer, edits
        self.table: Tensor = text_encoder.get_input_embeddings().weight
        self.length: int = text_encoder.config.max_position_embeddings
        self.rows: list[Tensor] = []
        # The ids of each learned word's vectors, by its spelling in lower case.
        self.learned = {
            learned.word.casefold(): self.new_ids(learned.vectors) for learned in edits.learned
        }

    def new_ids(self, vectors: Tensor) -> list[int]:
        """Append vectors (n, C) as extra rows; returns their ids."""
        first = len(self.table) + len(self.rows)
        self.rows += vectors.to(self.table).unbind()
        return list(range(first, first + len(vectors)))

    def vectors(self, ids: Sequence[int]) -> Tensor:
        """The embeddings of ids, (n, C), in float32."""
        known = len(self.table)
        each = [self.table[i] if i < known else self.rows[i - known] for i in ids]
        return torch.stack(each).float()

    def tokens(self, text: str) -> tuple[list[Token], list[re.Match[str]]]:
        """The tokens of a text, and where learned words stand in it."""
        pattern = self.edits.pattern
        matches = list(pattern.finditer(text)) if pattern else []
        tokens: list[Token] = []
        done = 0
        for match in matches:
            tokens += self.known_tokens(text, done, match.start())
            ids = self.learned[match[0].casefold()]
            tokens += [Token(number, match.start(), match[0]) for number in ids]
            done = match.end()
        return tokens + self.known_tokens(text, done, len(text)), matches

    def known_tokens(self, text: str, start: int, end: int) -> list[Token]:
        """The vocabulary's tokens for `text[start:end]`."""
        found = self.tokenizer(
            text[start:end], add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        return [
            Token(number, start + a, text[start + a : start + b])
            for number, (a, b) in zip(found.input_ids, found.offset_mapping, strict=True)
        ]

    def read(self, prompt: str, *, change_words: bool = True) -> EditedPrompt:
        """The prompt's ids, with the edits of words that it has or with learned words alone.

        Warns:
            PromptTruncated: there are more tokens than the text encoder reads.

        Raises:
            PromptError: a mixture of words of unlike lengths, or two edits of one word.
        """
        tokens, matches = self.tokens(check_prompt(prompt))
        words = self.words_of(prompt, tokens, matches)
        edits = [e for e in self.edits.words if change_words and self.places(words, e.word)]
        for places, edit in self.in_order(words, edits):
            old = tokens[places[0] - 1 : places[-1]]  # token 0 is the start
            tokens = [*tokens[: places[0] - 1], *self.instead(edit, old), *tokens[places[-1] :]]
        room = self.length - 2
        if len(tokens) > room:
            cut = cut_off(len(tokens), room, prompt[tokens[room].start :])
            warn_caller(cut)
        if edits:
            words = self.words_of(prompt, tokens, matches)
        padding = [self.tokenizer.pad_token_id] * (self.length - len(words.ids))
        rows = torch.stack(self.rows) if self.rows else self.table[:0]
        return EditedPrompt(words, torch.tensor([[*words.ids, *padding]]), rows)

    def places(self, words: Words, wanted: str) -> list[tuple[int, ...]]:
        """Where a word, known or learned, stands in a prompt; nothing where it does not."""
        text, number = numbered(wanted)
        if text.casefold() not in self.learned:
            return words.occurrences(wanted) if words.has(wanted) else []
        found = [word.tokens for word in words.words if word.text.casefold() == text.casefold()]
        return [p for p in found[number - 1 : number] if p] if number else [p for p in found if p]

    def in_order(
        self, words: Words, edits: Sequence[Replace | Mix]
    ) -> list[tuple[tuple[int, ...], Replace | Mix]]:
        """Every place of every edit, the last first, so that none moves those to come."""
        found = [(places, edit) for edit in edits for places in self.places(words, edit.word)]
        found.sort(key=lambda pair: pair[0], reverse=True)
        for (places, edit), (earlier, other) in zip(found, found[1:], strict=False):
            if earlier[-1] >= places[0]:
                raise PromptError(
                    f"{edit.word!r} and {other.word!r} are one place in {words.prompt!r}",
                    fix="edit it once",
                )
        return found

    def instead(self, edit: Replace | Mix, old: Sequence[Token]) -> list[Token]:
        """The tokens that stand for a word's under an edit."""
        other = self.named_tokens(edit.by)
        if not other:
            raise PromptError(f"{edit.by!r} is no word", expected="WORD=OTHER")
        if isinstance(edit, Replace):
            return [Token(token.id, old[0].start, token.text) for token in other]
        if len(other) != len(old):
            raise PromptError(
                f"{edit.word!r} is {in_tokens(old)} and {edit.by!r} {in_tokens(other)}",
                expected="words of as many tokens, which are mixed one by one",
                fix="`pare tokens` shows them",
            )
        ours, theirs = (self.vectors([token.id for token in some]) for some in (old, other))
        ids = self.new_ids((1 - edit.share) * ours + edit.share * theirs)
        names = [f"{a.text}+{b.text}" for a, b in zip(old, other, strict=True)]
        return [Token(i, old[0].start, name) for i, name in zip(ids, names, strict=True)]

    def named_tokens(self, name: str) -> list[Token]:
        """The tokens of an edit's other word, or the one of an id: `#2368`.

        Warns:
            TokenIdWarning: a bare number, which is taken as text.

        Raises:
            PromptError: an id that the vocabulary does not have.
        """
        match = TOKEN_ID.fullmatch(name)
        if match is None:
            if name.strip().isdecimal():
                warn_caller(
                    f"{name!r} is taken as text; if a token's id is meant write '#{name.strip()}'",
                    TokenIdWarning,
                )
            return self.tokens(name)[0]
        number, count = int(match[1]), len(self.tokenizer)
        if number >= count:
            raise PromptError(
                f"there is no token {name.strip()}", expected=f"an id from #0 to #{count - 1}"
            )
        return [Token(number, 0, token_name(self.tokenizer, number))]

    def words_of(
        self, prompt: str, tokens: Sequence[Token], matches: Sequence[re.Match[str]]
    ) -> Words:
        """The prompt's words: as `pare.text.words.read` finds them, and the learned ones whole."""
        pieces = [(match.start(), match[0]) for match in matches]
        for piece in PIECE.finditer(prompt):
            if not any(m.start() < piece.end() and piece.start() < m.end() for m in matches):
                pieces.append((piece.start(), piece[0]))
        pieces.sort()
        places: list[list[int]] = [[] for _ in pieces]
        for k, token in enumerate(tokens[: self.length - 2]):
            owner = sum(start <= token.start for start, _ in pieces) - 1
            if pieces:
                places[max(owner, 0)].append(1 + k)
        room = self.length - 2
        names = [START, *(token.text for token in tokens[:room]), END]
        return Words(
            prompt=prompt,
            words=tuple(
                Word(text, tuple(own)) for (_, text), own in zip(pieces, places, strict=True)
            ),
            ids=(
                self.tokenizer.bos_token_id,
                *(token.id for token in tokens[:room]),
                self.tokenizer.eos_token_id,
            ),
            names=tuple(names + [PADDING] * (self.length - len(names))),
        )


def in_tokens(tokens: Sequence[Token]) -> str:
    return "1 token" if len(tokens) == 1 else f"{len(tokens)} tokens"


# --- through the text encoder --------------------------------------------------------------


class MoreRows(nn.Module):
    """A token embedding table with extra rows after its end."""

    def __init__(self, table: nn.Embedding, rows: Tensor) -> None:
        """`rows` (k, C), k at least 1, on the table's device and in its type."""
        super().__init__()
        self.table, self.rows = table, rows

    def forward(self, ids: Tensor) -> Tensor:
        """ids (B, n) -> (B, n, C)"""
        known = self.table.num_embeddings
        inside = (ids < known)[..., None]
        ours = F.embedding((ids - known).clamp(min=0), self.rows)
        return torch.where(inside, self.table(ids.clamp(max=known - 1)), ours)


def with_rows(text_encoder: TextEncoder, rows: Tensor) -> TextEncoder:
    """A text encoder whose embedding table has `rows` after its end; the given one is unchanged.

    The modules on the path to the table are new objects; all weights are shared, not copied.
    """
    if not len(rows):
        return text_encoder
    table = text_encoder.get_input_embeddings()
    path = next(name for name, module in text_encoder.named_modules() if module is table)
    return with_layers(text_encoder, {path: MoreRows(table, rows)})


@torch.no_grad()
def encode_edited(text_encoder: TextEncoder, edited: EditedPrompt) -> Tensor:
    """The text embeddings of an edited prompt, (1, 77, C).

    Raises:
        NonFiniteError: the embeddings hold NaN or infinities.
    """
    encoder = with_rows(text_encoder, edited.rows)
    ids = edited.ids.to(text_encoder.device)
    embeddings: Tensor = encoder(ids).last_hidden_state
    check_finite("the text encoder's embeddings", embeddings, encoder, {}, lambda: encoder(ids))
    return embeddings


def encode_prompts_edited(
    tokenizer: CLIPTokenizer,
    text_encoder: TextEncoder,
    prompts: Sequence[str],
    negatives: Sequence[str],
    edits: TextEdits,
) -> PromptEmbeddings:
    """Prompts and as many negative prompts under edits, (B, 77, C) each.

    An edit of a word is done in every prompt that has the word.

    Raises:
        PromptError: no prompt has the word of an edit.
    """

    def encode(text: str, *, change_words: bool) -> Tensor:
        layout = Layout(tokenizer, text_encoder, edits)
        return encode_edited(text_encoder, layout.read(text, change_words=change_words))

    require_words(tokenizer, text_encoder, prompts, edits)
    cond = {prompt: encode(prompt, change_words=True) for prompt in dict.fromkeys(prompts)}
    uncond = {text: encode(text, change_words=False) for text in dict.fromkeys(negatives)}
    others = [encode(edit.prompt, change_words=False) for edit in edits.prompts]
    own = 1 - sum(edit.share for edit in edits.prompts)
    for prompt, embeddings in cond.items() if others else ():
        shares = [edit.share * other for edit, other in zip(edits.prompts, others, strict=True)]
        cond[prompt] = own * embeddings + torch.stack(shares).sum(0)
    return PromptEmbeddings(
        cond=torch.cat([cond[prompt] for prompt in prompts]),
        uncond=torch.cat([uncond[text] for text in negatives]),
    )


def require_words(
    tokenizer: CLIPTokenizer,
    text_encoder: TextEncoder,
    prompts: Sequence[str],
    edits: TextEdits,
) -> None:
    """Raise a PromptError for an edit of a word that no prompt has."""
    if not edits.words:
        return
    layout = Layout(tokenizer, text_encoder, edits)
    there = []
    for prompt in dict.fromkeys(prompts):
        there.append(layout.words_of(prompt, *layout.tokens(check_prompt(prompt))))
    for edit in edits.words:
        if not any(layout.places(words, edit.word) for words in there):
            there[0].occurrences(edit.word)  # says what is wrong, but of learned words
            raise PromptError(f"{edit.word!r} is not in the prompt {there[0].prompt!r}")


# --- inspection ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Near:
    """A token of the vocabulary, and the cosine similarity of its embedding to a given one."""

    token: str
    id: int
    cosine: float


@torch.no_grad()
def nearest_tokens(
    tokenizer: CLIPTokenizer, text_encoder: TextEncoder, vectors: Tensor, count: int = 3
) -> list[list[Near]]:
    """For each of the vectors (n, C) the tokens of the highest cosine similarity.

    A token's own embedding has that token first, at 1.
    """
    table = text_encoder.get_input_embeddings().weight.float()
    known = len(tokenizer)  # a table may be longer than the vocabulary
    likeness = F.normalize(vectors.float().to(table.device)) @ F.normalize(table[:known]).T
    best = likeness.topk(min(count, known))
    return [
        [
            Near(token_name(tokenizer, i), i, round(cosine, 4))
            for cosine, i in zip(cosines, ids, strict=True)
        ]
        for cosines, ids in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]


def token_name(tokenizer: CLIPTokenizer, number: int) -> str:
    """A token for people: `road`, and `sn-` where the word goes on in the next."""
    raw = str(tokenizer.convert_ids_to_tokens(number))
    if raw.startswith("<|"):
        return raw
    text = str(tokenizer.decode([number])).strip()
    if not text or "\ufffd" in text:  # a part of a character's bytes
        return raw
    return text if raw.endswith("</w>") else f"{text}-"


def changed(before: Tensor, after: Tensor) -> list[float]:
    """The relative change |after - before| / |before| of each of the 77 embeddings.

    The encoder is causal: an output depends on the tokens up to its own.  So nothing before an
    edited token changes, and everything after it does, the padding included.

    Args:
        before, after: (1, 77, C)
    """
    moved = (after - before)[0].float().norm(dim=-1)
    return (moved / before[0].float().norm(dim=-1)).tolist()
