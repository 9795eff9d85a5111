"""Where the model looks for each word: cross-attention, recorded as it runs and put together.

    prompt   = "a snowy road with a red car"
    words    = read(pipe.tokenizer, prompt)                    pare.words
    recorder = WordRecorder({"cond": [words]})
    image    = pipe.generate(prompt, seeds=[7], control=recorder)
    heat     = heat_map(recorder.maps(), "car", size=(128, 128))      (128, 128), DAAM's
    picture  = overlay(to_pil(image)[0], heat)                 pare.study.heat

In cross-attention every pixel of a layer's grid shares itself out over the 77 tokens.  A
recorder keeps, of each layer, the shares of the prompt's own tokens and one sum for the
padding behind them; what it keeps adds up to 1 for every pixel.  Heads and steps are
averaged while they stream, unless asked for: what is kept is all the memory that it takes,
and `bytes_needed` says how much beforehand.  Watching changes no bit of the picture.

A `WordMap` is one layer's answer, at one step or on average, for one picture and one side of
the guidance.  `select` and `grouped` sort them, `heat_map` and `level_map` put them together.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pare.attention import Call, Control, Row, Site
from pare.errors import SettingError
from pare.words import END, PADDING, START, Words

Among = Literal["all", "words"]
"""Of what a share is taken: of all a pixel's attention, or of what it gives to words.

Start, end and padding often take most of it ("all" is then nearly flat), and how much they
take differs from pixel to pixel; "words" leaves them out and lets the words share out 1.
"""

By = Literal["layer", "head", "step", "level"]


@dataclass(frozen=True, eq=False)
class WordMap:
    """Where one picture's pixels looked in one cross-attention layer."""

    site: Site
    step: int | None
    """Step index `i`; None: the mean over all watched steps."""
    prompt: int
    """Which picture of the run, from 0."""
    branch: str
    """Which side of the guidance: "cond", "uncond", or a technique's own word."""
    words: Words
    """The text that this side read."""
    shares: Tensor
    """(heads, columns, h, w), float32 on the CPU: for every pixel the share of each of
    `words.ids` (start, the words' tokens, end) and, last, of all the padding.  Over the
    columns it adds up to 1.  heads is 1 for the mean over them."""
    head: int | None = None
    """Which head `shares` holds, where it was taken out by `grouped`."""

    def of(self, word: str, among: Among = "all") -> Tensor:
        """(heads, h, w): each pixel's share for a word, summed over its tokens.

        Args:
            word: as in `Words.find` ("car", "red car", "road#2"); or one of `<start>`,
                `<end>`, `<padding>`, which are always shares of all.

        Raises:
            PromptError: no such word in the text.
        """
        special = {START: 0, END: len(self.words.ids) - 1, PADDING: len(self.words.ids)}
        if word in special:
            return self.shares[:, special[word]]
        shares = self.shares[:, list(self.words.find(word))].sum(1)
        if among == "all":
            return shares
        # Start is column 0, end and padding are the last two.
        return shares / self.shares[:, 1:-2].sum(1).clamp(min=torch.finfo(torch.float32).tiny)


class WordRecorder(Control):
    """Records cross-attention maps of one run; see the module's beginning."""

    def __init__(
        self,
        texts: Mapping[str, Sequence[Words]],
        *,
        sites: Callable[[Site], bool] = lambda site: True,
        steps: Collection[int] | None = None,
        each_step: bool = True,
        each_head: bool = False,
    ) -> None:
        """
        Args:
            texts: the sides of the guidance to watch, and what each reads, one text a picture:
                {"cond": prompts, "uncond": negatives}.
            sites: which layers; only cross-attention is ever asked for.
            steps: which step indices; None is all.
            each_step: keep the steps apart, or their mean alone.
            each_head: keep the heads apart, or their mean alone.
        """
        self.texts = {branch: tuple(words) for branch, words in texts.items()}
        self.sites, self.steps = sites, steps
        self.each_step, self.each_head = each_step, each_head
        self.sums: dict[tuple[Site, int | None, int, str], Tensor] = {}
        self.looks: dict[tuple[Site, int | None, int, str], int] = {}

    def wants(self, site: Site) -> bool:
        return site.kind == "cross" and self.sites(site)

    def observes(self, site: Site, step: int) -> bool:
        return self.wants(site) and (self.steps is None or step in self.steps)

    def observes_row(self, row: Row) -> bool:
        return row.branch in self.texts and row.prompt < len(self.texts[row.branch])

    def observe(self, call: Call, row: int, heads: slice, probabilities: Tensor) -> None:
        picture, branch = call.rows[row].prompt, call.rows[row].branch
        seen = probabilities.detach()
        if not self.each_head:
            seen = seen.sum(0, keepdim=True) / call.site.heads
        shares = shares_of(seen, self.texts[branch][picture])
        shares = shares.reshape(*shares.shape[:2], call.height, call.width)
        key = call.site, call.step if self.each_step else None, picture, branch
        # Of a large layer the heads arrive in several calls, the first of them with head 0.
        if heads.start == 0:
            self.looks[key] = self.looks.get(key, 0) + 1
        if key not in self.sums:
            count = call.site.heads if self.each_head else 1
            self.sums[key] = shares.new_zeros(count, *shares.shape[1:])
        self.sums[key][heads if self.each_head else slice(None)] += shares

    def maps(self) -> list[WordMap]:
        """What was recorded so far, in the order of execution."""
        return [
            WordMap(
                site, step, picture, branch, self.texts[branch][picture],
                (total / self.looks[site, step, picture, branch]).float().cpu(),
            )
            for (site, step, picture, branch), total in self.sums.items()
        ]  # fmt: skip

    def bytes_needed(self, sites: Iterable[Site], grid: tuple[int, int], steps: int) -> int:
        """What recording a run will keep in memory, beside the 64 MiB of one look.

        Args:
            sites: the UNet's (`unet.sites()`).
            grid: height and width of the latents.
            steps: of the run.
        """
        watched = range(steps) if self.steps is None else set(self.steps) & set(range(steps))
        kept = len(watched) if self.each_step else min(1, len(watched))
        columns = sum(len(words.ids) + 1 for texts in self.texts.values() for words in texts)
        cells = sum(
            math.prod(grid_at(grid, site.level)) * (site.heads if self.each_head else 1)
            for site in sites
            if self.wants(site)
        )
        return kept * columns * cells * torch.float32.itemsize


def shares_of(probabilities: Tensor, words: Words) -> Tensor:
    """(heads, queries, 77) -> (heads, columns, queries): the text's own tokens, and the rest."""
    own = len(words.ids)
    padding = probabilities[..., own:].sum(-1, keepdim=True)
    return torch.cat([probabilities[..., :own], padding], dim=-1).transpose(1, 2)


def grid_at(grid: tuple[int, int], level: int) -> tuple[int, int]:
    """The grid on which level `level` of the U works, for latents of `grid`."""
    # A convolution of stride 2 rounds up, each time.
    return -(-grid[0] // 2**level), -(-grid[1] // 2**level)


def layer_name(site: Site) -> str:
    """Short for people: "down_blocks.0.attentions.1"; the rest is the same everywhere."""
    return site.name.partition(".transformer_blocks")[0]


# --- sorting ------------------------------------------------------------------------------


def select(
    maps: Iterable[WordMap],
    *,
    branch: str = "cond",
    prompt: int = 0,
    sites: Callable[[Site], bool] = lambda site: True,
    steps: Collection[int] | None = None,
) -> list[WordMap]:
    """The maps of one picture and one side of the guidance, in some layers, at some steps."""
    return [
        one
        for one in maps
        if one.branch == branch and one.prompt == prompt and sites(one.site)
        and (steps is None or one.step in steps)
    ]  # fmt: skip


def grouped(maps: Iterable[WordMap], by: By) -> dict[str, list[WordMap]]:
    """The maps by what they differ in, under names for people, in the order of execution.

    Raises:
        SettingError: heads or steps that were not kept apart.
    """
    groups: dict[str, list[WordMap]] = {}
    for one in maps:
        if by == "layer":
            groups.setdefault(layer_name(one.site), []).append(one)
        elif by == "level":
            groups.setdefault(f"{one.site.block}, level {one.site.level}", []).append(one)
        elif by == "step":
            if one.step is None:
                raise not_kept("steps", "each_step=True")
            groups.setdefault(f"step {one.step}", []).append(one)
        else:
            if len(one.shares) != one.site.heads:
                raise not_kept("heads", "each_head=True")
            for head in range(one.site.heads):
                alone = dataclasses.replace(one, shares=one.shares[head : head + 1], head=head)
                groups.setdefault(f"head {head}", []).append(alone)
    return groups


def not_kept(what: str, fix: str) -> SettingError:
    return SettingError(f"the maps are means over the {what}", fix=f"record with {fix}")


# --- putting together ---------------------------------------------------------------------


def heat_map(
    maps: Iterable[WordMap], word: str, size: tuple[int, int], *, among: Among = "all"
) -> Tensor:
    """DAAM: all maps of a word brought to one size and averaged, (H, W), at least 0.

    Bicubic, over heads, layers and steps (arXiv:2210.04885, eq. 6, which sums; the mean of
    shares is a share).  Maps of several pictures or sides of the guidance are averaged, too:
    `select` first.

    Raises:
        SettingError: no maps at all.
        PromptError: no such word.
    """
    by_grid: dict[tuple[int, ...], list[Tensor]] = {}
    heads = 0
    for one in maps:
        # The equation's sum goes over heads, of which layers may have unequally many.
        count = one.site.heads if one.head is None else 1
        shares = one.of(word, among).mean(0)
        by_grid.setdefault(tuple(shares.shape), []).append(count * shares)
        heads += count
    if not by_grid:
        raise no_maps()
    total = torch.zeros(size)
    for same in by_grid.values():
        stacked = torch.stack(same)[:, None]  # (maps, 1, h, w)
        total += F.interpolate(stacked, size, mode="bicubic").clamp(min=0).sum((0, 1))
    return total / heads


def level_map(
    maps: Iterable[WordMap],
    word: str,
    level: int,
    *,
    blocks: Collection[str] = ("down", "mid", "up"),
    among: Among = "all",
) -> Tensor:
    """Prompt-to-Prompt: the mean over the layers of one resolution, (h, w) as they are.

    The paper's figures take a quarter of the latents' grid (16 x 16 of 64 x 64, level 2) from
    the way down and the way up (arXiv:2208.01626, fig. 4).

    Raises:
        SettingError: no such maps.
        PromptError: no such word.
    """
    same = [
        one.of(word, among).mean(0)
        for one in maps
        if one.site.level == level and one.site.block in blocks
    ]
    if not same:
        raise no_maps()
    return torch.stack(same).mean(0)


def no_maps() -> SettingError:
    return SettingError("there is no attention map to look at", fix="record more layers or steps")


def normalised(heat: Tensor) -> Tensor:
    """Stretched to [0, 1]; a flat map is 0."""
    low, high = heat.min(), heat.max()
    return (heat - low) / (high - low) if high > low else torch.zeros_like(heat)


def hot(heat: Tensor, threshold: float = 0.4) -> Tensor:
    """(H, W) of bool: at least `threshold` times the hottest place (arXiv:2210.04885, sec. 3)."""
    return heat >= threshold * heat.max()
