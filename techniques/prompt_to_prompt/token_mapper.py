"""Which word of the source feeds which word of the target: a table of 77 x 77 tokens.

The source's cross-attention gives, for every pixel (query), a weight for each token (key) of
the source prompt.  Multiplied by such a table, it gives weights for the target's tokens
(arXiv:2208.01626, sec. 3.2):

    edited = (source weights @ matrix) (1 - own) + (target's weights) own,   times scale

`replaced` swaps word for word, `refined` keeps what two prompts share and gives new tokens
their own weights, `untouched` changes nothing; `with_word` adds a pair of words of the user's
choice to any of them, `reweighted` scales words.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from pare.errors import PromptError, SettingError
from pare.runtime.calls import warn_caller
from pare.runtime.short_repr import short_repr
from pare.runtime.validation import MAX_WEIGHT, check_number
from pare.text.words import PADDING, Words

Mode = Literal["replace", "refine", "own"]


class PairingWarning(UserWarning):
    """Words that were paired by their places alone, and may not belong together."""


@dataclass(frozen=True, eq=False)
class TokenMap:
    """How the target's attention weights are computed from the source's."""

    source: Words
    target: Words
    matrix: Tensor
    """(77, 77): [i, j] is the fraction of the weight of the source's token i that the target's
    token j receives."""
    own: Tensor
    """(77,): 1 where a token of the target keeps its own weight instead, else 0."""
    scale: Tensor
    """(77,): the factor of each token of the target, applied last."""

    __repr__ = short_repr

    def apply(self, source: Tensor, target: Tensor) -> Tensor:
        """The edited weights (..., 77) from the source's and the target's own."""
        return (source @ self.matrix * (1 - self.own) + target * self.own) * self.scale

    def to(self, device: torch.device) -> TokenMap:
        return dataclasses.replace(
            self,
            matrix=self.matrix.to(device),
            own=self.own.to(device),
            scale=self.scale.to(device),
        )

    def __str__(self) -> str:
        """The table as text: every token of the target, and what feeds it."""
        rows = [f"{self.source.prompt!r} -> {self.target.prompt!r}"]
        width = max(len(name) for name in self.target.names)
        for j, name in enumerate(self.target.names):
            if name == PADDING:
                rows.append(f"{j:>4}  {'… padding':<{width}}  <-  {self.feeds(j)}, and so on")
                break
            rows.append(f"{j:>4}  {name:<{width}}  <-  {self.feeds(j)}")
        idle = [
            f"{i} {self.source.names[i]}"
            for i in range(len(self.source.ids))
            if not self.matrix[i].any()
        ]
        if idle:
            rows.append(f"not used, of the source: {', '.join(idle)}")
        return "\n".join(rows)

    def feeds(self, j: int, *, places: bool = True) -> str:
        """What feeds the target's token `j`, as text: `1/3 of 2 lion`, 2 being its place."""
        parts = [
            fraction_of(float(self.matrix[i, j]))
            + (f"{i} " if places else "")
            + self.source.names[i]
            for i in self.matrix[:, j].nonzero().flatten().tolist()
        ]
        text = " + ".join(parts) or "nothing"
        if self.own[j] == 1:
            text = "its own"
        if self.scale[j] != 1:
            text += f", times {float(self.scale[j]):g}"
        return text

    def report(self) -> dict[str, Any]:
        """The table, fit for JSON; padding by its first token alone."""
        tokens = [
            {
                "place": j,
                "token": self.target.names[j],
                "own": bool(self.own[j]),
                "scale": float(self.scale[j]),
                "fed_by": [
                    {"place": i, "token": self.source.names[i], "share": float(self.matrix[i, j])}
                    for i in self.matrix[:, j].nonzero().flatten().tolist()
                ],
            }
            for j in range(min(len(self.target.ids) + 1, self.target.length))
        ]
        return {"source": self.source.prompt, "target": self.target.prompt, "tokens": tokens}


def fraction_of(value: float) -> str:
    """1 -> "", 1/3 -> "1/3 of " """
    if value == 1:
        return ""
    whole = round(1 / value)
    return f"1/{whole} of " if abs(value * whole - 1) < 1e-6 else f"{value:.3g} of "


def token_map(
    source: Words,
    target: Words,
    *,
    mode: Mode | None = None,
    words: Mapping[str, str] | None = None,
    weights: Mapping[str, float] | None = None,
    normalised: bool = False,
) -> TokenMap:
    """The table of an edit: the mode's, then `words`, then `weights`.

    Args:
        mode: None is "replace" where both prompts have equally many words, else "refine".
        words: pairs of a word of the source and the word of the target that it feeds.
        weights: for words of the target, the factor of their attention weights.
        normalised: see `replaced`.

    Warns:
        PairingWarning: `mode` is None, and "replace" pairs words that may not belong together.

    Raises:
        PromptError: a word that is not in its prompt.
        SettingError: prompts that cannot be paired word by word; a weight out of range.
    """
    if mode is None:
        mode = usual_mode(source, target)
        if mode == "replace":
            warn_of_pairs(source, target, words or {})
    if mode == "replace":
        table = replaced(source, target, normalised=normalised)
    elif mode == "refine":
        table = refined(source, target)
    else:
        table = untouched(source, target)
    for old, new in (words or {}).items():
        table = with_word(table, old, new, normalised=normalised)
    return reweighted(table, weights or {})


def usual_mode(source: Words, target: Words) -> Mode:
    """The mode that suits two prompts: "replace" where they have equally many words."""
    return "replace" if len(source.words) == len(target.words) else "refine"


def warn_of_pairs(source: Words, target: Words, chosen: Mapping[str, str]) -> None:
    """Warn if pairing equally many words by their places is probably not what was meant.

    That is where more than half of the words differ, or where an alignment would match more.
    Words of `chosen`, the user's own pairs, count as meant.
    """
    old, new = ([word.key for word in prompt.words] for prompt in (source, target))
    meant = {(a.casefold(), b.casefold()) for a, b in chosen.items()}
    pairs = [pair for pair in zip(old, new, strict=True) if pair[0] != pair[1]]
    pairs = [pair for pair in pairs if pair not in meant]
    in_place = len(old) - len(pairs)
    numbers = {word: k for k, word in enumerate(dict.fromkeys(old + new))}
    both = ([numbers[word] for word in words] for words in (old, new))
    matched = sum(partner is not None for partner in aligned(*both))
    if len(pairs) > 1 and (len(pairs) > len(old) / 2 or matched > in_place):
        listed = "; ".join(f"{b} <- {a}" for a, b in pairs)
        warn_caller(
            f"{source.prompt!r} and {target.prompt!r} have equally many words, which are paired "
            f"by their places: {listed}; to pair equal words instead pass `mode=refine`, to "
            "confirm `mode=replace`",
            PairingWarning,
        )


def untouched(source: Words, target: Words) -> TokenMap:
    """Every token of the target keeps its own weight."""
    length = target.length
    empty = torch.zeros(length, length)
    return TokenMap(source, target, empty, torch.ones(length), torch.ones(length))


def replaced(source: Words, target: Words, *, normalised: bool = False) -> TokenMap:
    """Word for word: the k-th word of the target gets the weights of the source's k-th.

    A word of n tokens feeds one of as many token by token.  Otherwise its n x m block holds
    1 / max(n, m), and the tokens behind it shift.  For n > m the new word then gets only m / n
    of the old one's weight; padding that is shifted past the end is lost, and where it shifts
    the other way the last tokens are fed by nothing.

    Args:
        normalised: blocks hold 1 / m, and the last token gets what is shifted past the end:
            every row sums to 1, no weight is lost.

    Raises:
        SettingError: prompts of different numbers of words.
    """
    if len(source.words) != len(target.words):
        raise SettingError(
            f"replace swaps word for word, and {source.prompt!r} has {len(source.words)} words "
            f"and punctuation marks, {target.prompt!r} {len(target.words)}",
            fix="use `mode=refine`, or pair words with `words`",
        )
    length = target.length
    matrix, own = torch.zeros(length, length), torch.zeros(length)
    matrix[0, 0] = 1
    for old, new in zip(source.words, target.words, strict=True):
        feed(matrix, own, old.tokens, new.tokens, normalised)

    # Behind the words: end feeds end, padding feeds padding.
    shift = len(target.ids) - len(source.ids)
    for i in range(len(source.ids) - 1, length):
        if i + shift < length:
            matrix[i, i + shift] = 1
        elif normalised:
            matrix[i, length - 1] = 1
    return TokenMap(source, target, matrix, own, torch.ones(length))


def feed(
    matrix: Tensor, own: Tensor, old: Sequence[int], new: Sequence[int], normalised: bool
) -> None:
    """Let the source's tokens `old` feed the target's `new`, in place."""
    n, m = len(old), len(new)
    if n == 0:  # nothing to feed it
        own[list(new)] = 1
    elif n == m:
        matrix[list(old), list(new)] = 1
    else:
        for j in new:
            matrix[list(old), j] = 1 / (m if normalised else max(n, m))


def refined(source: Words, target: Words) -> TokenMap:
    """Tokens that both prompts share are fed by the source; new ones keep their own weights.

    A token of padding is fed by the one at the same place, if the source has padding there.
    """
    length = target.length
    matrix, own = torch.zeros(length, length), torch.ones(length)
    for j, i in enumerate(aligned(source.ids, target.ids)):
        if i is not None:
            matrix[i, j], own[j] = 1, 0
    for j in range(len(target.ids), length):
        if j >= len(source.ids):
            matrix[j, j], own[j] = 1, 0
    return TokenMap(source, target, matrix, own, torch.ones(length))


def aligned(source: Sequence[int], target: Sequence[int]) -> list[int | None]:
    """For each token of the target the place of its partner in the source, None if it is new.

    The best global alignment (Needleman and Wunsch 1970) with 1 for a match, -1 for a mismatch
    and 0 for a gap: the longest common subsequence, as two gaps are better than a mismatch.
    """
    rows, columns = len(source) + 1, len(target) + 1
    best = [[0] * columns for _ in range(rows)]
    for i in range(1, rows):
        for j in range(1, columns):
            pair = best[i - 1][j - 1] + (1 if source[i - 1] == target[j - 1] else -1)
            best[i][j] = max(best[i][j - 1], best[i - 1][j], pair)

    # Back from the ends.  Among equals, the published code's order: new, dropped, paired.
    partners: list[int | None] = [None] * len(target)
    i, j = len(source), len(target)
    while i and j:
        if best[i][j] == best[i][j - 1]:
            j -= 1
        elif best[i][j] == best[i - 1][j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            partners[j] = i
    return partners


def with_word(table: TokenMap, old: str, new: str, *, normalised: bool = False) -> TokenMap:
    """A word of the source feeds a word of the target, whatever fed that before.

    A word that occurs several times in both is paired in order.

    Raises:
        PromptError: a word that is not in its prompt, or not as often in both.
    """
    olds, news = table.source.occurrences(old), table.target.occurrences(new)
    if len(olds) != len(news):
        raise PromptError(
            f"{old!r} occurs {times(len(olds))} in the source and {new!r} {times(len(news))} in "
            "the target",
            fix=f"say which: '{old}#1'",
        )
    matrix, own = table.matrix.clone(), table.own.clone()
    for before, after in zip(olds, news, strict=True):
        matrix[:, list(after)], own[list(after)] = 0, 0
        feed(matrix, own, before, after, normalised)
    return dataclasses.replace(table, matrix=matrix, own=own)


def times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def reweighted(table: TokenMap, weights: Mapping[str, float]) -> TokenMap:
    """Scale the weights of words of the target (arXiv:2208.01626, sec. 3.2, uses -2 to 2).

    Raises:
        PromptError: a word that is not in the target.
        SettingError: a weight that is not in -100 .. 100.
    """
    scale = table.scale.clone()
    for word, weight in weights.items():
        scale[list(table.target.find(word))] *= check_number(
            f"the weight of {word!r}", weight, -MAX_WEIGHT, MAX_WEIGHT
        )
    return dataclasses.replace(table, scale=scale)
