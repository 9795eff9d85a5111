"""The edit of attention in Prompt-to-Prompt: the targets' weights computed from the source's.

The batch holds, for each seed, the source and then its targets, one row each.  In the
conditional rows alone, the targets' cross-attention weights are mapped from the source's by a
table of tokens (`token_mapper`), and their self-attention weights are the source's, each
during its own steps (arXiv:2208.01626, sec. 3.2).  The source's rows are not changed.  The
source's weights of a layer are freed once its targets have used them, so that memory does not
grow with the steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pare.attention import AttentionCall, BatchRow, Control, Site
from pare.errors import SettingError
from pare.runtime.short_repr import short_repr
from pare.runtime.validation import check_number
from pare.text.words import Words
from techniques.prompt_to_prompt.local_blend import LocalBlendMasks
from techniques.prompt_to_prompt.token_mapper import TokenMap

Span = float | tuple[float, float]
"""A fraction of the steps: the first 0.8 of them, or those from (0.2, to 0.8)."""


@dataclass(frozen=True)
class Sites:
    """Which attention layers; all of them by default."""

    blocks: tuple[str, ...] = ("down", "mid", "up")
    coarsest: float = 0.0
    """The side of the layer's grid as a fraction of the latents': at least this ..."""
    finest: float = 1.0
    """... and at most this.  SD 1's 64 x 64 has layers at 1, 1/2, 1/4 and 1/8."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.blocks) - {"down", "mid", "up"})
        if unknown or not self.blocks:
            raise SettingError(
                f"`blocks` are {', '.join(self.blocks) or 'none'}", expected="down, mid, up"
            )
        check_number("coarsest", self.coarsest, 0.0, 1.0)
        check_number("finest", self.finest, 0.0, 1.0)
        if self.coarsest > self.finest:
            raise SettingError(f"`coarsest` is {self.coarsest}", expected=f"at most {self.finest}")

    def has(self, site: Site) -> bool:
        return site.block in self.blocks and self.coarsest <= 2.0**-site.stage <= self.finest


EVERYWHERE = Sites()
# The resolution limit of self-attention: finer layers determine texture, the target's own.
# The authors' first notebook has 16 x 16 (0.25 for SD 1), that of null-text inversion 32 x 32.
COARSE = Sites(finest=0.5)


@dataclass(frozen=True, eq=False)
class TargetEdit:
    """How and when one target's attention is edited."""

    table: TokenMap
    cross: Tensor
    """(steps, 77): 1 where the table acts on a token of the target, 0 where the target's own
    weights stay."""
    self_steps: range
    """The steps whose self-attention weights are the source's."""

    __repr__ = short_repr


def steps_of(span: Span, steps: int, name: str) -> range:
    """The steps that a span means: 0.8 of 50 is 0 .. 39.

    Raises:
        SettingError: not in [0, 1], or a span that ends before it starts.
    """
    start, end = span if isinstance(span, tuple) else (0.0, span)
    check_number(name, start, 0.0, 1.0)
    check_number(name, end, 0.0, 1.0)
    if start > end:
        raise SettingError(f"`{name}` ends at {end:g} and starts at {start:g}")
    return range(round(start * steps), round(end * steps))


def cross_schedule(
    target: Words, steps: int, span: Span, words: Mapping[str, Span] | None = None
) -> Tensor:
    """(steps, 77): when the table acts, for each token of the target.

    Args:
        words: for these words of the target, instead of `span`.

    Raises:
        PromptError: a word that is not in the target.
        SettingError: a span out of range.
    """
    acts = torch.zeros(steps, target.length)
    acts[list(steps_of(span, steps, "cross_replace"))] = 1
    for word, own_span in (words or {}).items():
        tokens = list(target.find(word))
        acts[:, tokens] = 0
        for i in steps_of(own_span, steps, f"cross_replace of {word!r}"):
            acts[i, tokens] = 1
    return acts


class Injection(Control):
    """Attention control of one run: edits the targets' rows."""

    def __init__(
        self,
        targets: Sequence[TargetEdit],
        *,
        cross_sites: Sites = EVERYWHERE,
        self_sites: Sites = COARSE,
        masks: LocalBlendMasks | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """
        Args:
            self_sites: where self-attention is injected: the resolution limit.
            masks: collects the words' maps; see `techniques.prompt_to_prompt.local_blend`.
        """
        device = torch.device(device)
        self.targets = [
            dataclasses.replace(t, table=t.table.to(device), cross=t.cross.to(device))
            for t in targets
        ]
        self.cross_sites, self.self_sites, self.masks = cross_sites, self_sites, masks
        self.cross_steps = [set(t.cross.sum(1).nonzero().flatten().tolist()) for t in targets]
        self.sources: dict[tuple[str, int], Tensor] = {}

    def edits(self, site: Site, step: int) -> bool:
        if site.kind == "self":
            acts = any(step in target.self_steps for target in self.targets)
            return acts and self.self_sites.has(site)
        acts = any(step in steps for steps in self.cross_steps)
        collected = self.masks is not None and self.masks.wants(site)
        return collected or (acts and self.cross_sites.has(site))

    def edit(self, call: AttentionCall, weights: Callable[[int], Tensor]) -> dict[int, Tensor]:
        edited = {}
        for row, meaning in enumerate(call.rows):
            if meaning.branch != "cond":  # the negative prompt is the same for all
                continue
            seed, k = divmod(meaning.prompt, 1 + len(self.targets))
            if k == 0:
                self.sources[call.site.name, seed] = weights(row)
            source = self.sources[call.site.name, seed]
            if k > 0 and call.site.kind == "self":
                if call.step in self.targets[k - 1].self_steps:
                    edited[row] = source
            elif k > 0 and self.crosses(call, k - 1):
                target = self.targets[k - 1]
                own, acts = weights(row), target.cross[call.step]
                edited[row] = target.table.apply(source, own) * acts + own * (1 - acts)
            if self.masks is not None and self.masks.wants(call.site):
                maps = source if k == 0 else edited.get(row)
                self.masks.add(call, meaning.prompt, weights(row) if maps is None else maps)
            if k == len(self.targets):
                del self.sources[call.site.name, seed]
        return edited

    def crosses(self, call: AttentionCall, target: int) -> bool:
        return self.cross_sites.has(call.site) and call.step in self.cross_steps[target]


@dataclass(frozen=True)
class BatchSlice(Control):
    """A run's control for a batch that holds only some of its rows, from `first` on."""

    whole: Control
    first: int

    def observes(self, site: Site, step: int) -> bool:
        return self.whole.observes(site, step)

    def observes_row(self, row: BatchRow) -> bool:
        return self.whole.observes_row(BatchRow(self.first + row.prompt, row.branch))

    def observe(self, call: AttentionCall, row: int, heads: slice, weights: Tensor) -> None:
        self.whole.observe(self.placed(call), row, heads, weights)

    def edits(self, site: Site, step: int) -> bool:
        return self.whole.edits(site, step)

    def edit(self, call: AttentionCall, weights: Callable[[int], Tensor]) -> Mapping[int, Tensor]:
        return self.whole.edit(self.placed(call), weights)

    def placed(self, call: AttentionCall) -> AttentionCall:
        """The call with the rows numbered as in the whole run."""
        rows = tuple(BatchRow(self.first + row.prompt, row.branch) for row in call.rows)
        return dataclasses.replace(call, rows=rows)
