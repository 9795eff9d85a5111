"""Where the model looks: attention, recorded as it runs and put together.

    prompt   = "a snowy road with a red car"
    words    = read(pipe.tokenizer, prompt)                    pare.text.words
    recorder = WordRecorder({"cond": [words]})
    image    = pipe(prompt, seeds=7, control=recorder)[0]
    heat     = heat_map(recorder.maps(), "car", size=(128, 128))      (128, 128), DAAM's
    overlay(image, heat)                                       pare.study.record.heatmap

In cross-attention every pixel of a layer's grid shares itself out over the 77 tokens.  A
`WordRecorder` keeps, of each layer, the shares of the prompt's own tokens and one sum for the
padding behind them; what it keeps adds up to 1 for every pixel.  In self-attention every
pixel shares itself out over all pixels of the grid; a `PixelRecorder` keeps where chosen ones
look.  Heads and steps are averaged while they stream, unless asked for: what is kept is all
the memory that it takes, and `bytes_needed` says how much beforehand.  Watching changes no
bit of the image; several recorders watch one run `Together`.

A `LayerMap` is one layer's answer, at one step or on average, for one image and one side of
the guidance.  `select` and `grouped` sort them, `heat_map` and `level_map` put them together.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from pare.attention import AttentionCall, BatchRow, Control, Site
from pare.errors import SettingError
from pare.runtime.validation import check_number
from pare.text.words import END, PADDING, START, Words

Among = Literal["all", "words"]
"""Of what a share is taken: of all a pixel's attention, or of what it gives to words.

Start, end and padding often take most of it ("all" is then nearly flat), and how much they
take differs from pixel to pixel; "words" leaves them out and lets the words share out 1.
"""

By = Literal["layer", "head", "step", "level"]


SPECIAL = (START, END, PADDING)
"""Columns that are no words, by what `WordMap.of` calls them."""

Point = tuple[float, float]
"""x and y as shares of the image, from its upper left corner: in [0, 1]."""

What = TypeVar("What")
AnyMap = TypeVar("AnyMap", bound="LayerMap[Any]")


# --- maps ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerMap(Generic[What]):
    """What one attention layer did with one image: the base of `WordMap` and `PixelMap`."""

    site: Site
    step: int | None
    """Step index `i`; None: the mean over all watched steps."""
    prompt: int
    """Which image of the run, from 0."""
    branch: str
    """Which side of the guidance: "cond", "uncond", or a technique's own word."""
    shares: Tensor
    """(heads, columns, h, w), float32 on the CPU; heads is 1 for the mean over them."""
    head: int | None = None
    """Which head `shares` holds, where it was taken out by `grouped`."""

    def of(self, what: What, among: Among = "all") -> Tensor:
        """(heads, h, w): one image a head."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False, kw_only=True)
class WordMap(LayerMap[str]):
    """Where one image's pixels looked in one cross-attention layer.

    `shares` has, for every pixel, a column for each of `words.ids` (start, the words' tokens,
    end) and a last one for all the padding: over the columns it adds up to 1.
    """

    words: Words
    """The text that this side read."""

    def of(self, what: str, among: Among = "all") -> Tensor:
        """(heads, h, w): each pixel's share for a word, summed over its tokens.

        Args:
            what: as in `Words.find` ("car", "red car", "road#2"); or one of `<start>`,
                `<end>`, `<padding>`, which are always shares of all.

        Raises:
            PromptError: no such word in the text.
        """
        special = {START: 0, END: len(self.words.ids) - 1, PADDING: len(self.words.ids)}
        if what in special:
            return self.shares[:, special[what]]
        shares = self.shares[:, list(self.words.find(what))].sum(1)
        if among == "all":
            return shares
        # Start is column 0, end and padding are the last two.
        return shares / self.shares[:, 1:-2].sum(1).clamp(min=torch.finfo(torch.float32).tiny)


@dataclass(frozen=True, eq=False, kw_only=True)
class PixelMap(LayerMap[Point]):
    """Where chosen pixels of one image looked in one self-attention layer.

    `shares` has a column for each point, which adds up to 1 over the image.
    """

    points: tuple[Point, ...]

    def of(self, what: Point, among: Among = "all") -> Tensor:
        """(heads, h, w): what the pixel under a point gives to each, in multiples of the mean.

        Not shares, of which the pixels of a coarse grid have more than those of a fine one.
        """
        return self.shares[:, self.points.index(what)] * math.prod(self.shares.shape[2:])


# --- recording ----------------------------------------------------------------------------


class Recorder(Control):
    """Records maps of one run: the base of `WordRecorder` and `PixelRecorder`."""

    kind: Literal["cross", "self"]

    def __init__(
        self,
        *,
        sites: Callable[[Site], bool] = lambda site: True,
        steps: Collection[int] | None = None,
        each_step: bool = True,
        each_head: bool = False,
    ) -> None:
        """
        Args:
            sites: which layers, of this recorder's kind.
            steps: which step indices; None is all.
            each_step: keep the steps apart, or their mean alone.
            each_head: keep the heads apart, or their mean alone.
        """
        self.sites, self.steps = sites, steps
        self.each_step, self.each_head = each_step, each_head
        self.sums: dict[tuple[Site, int | None, BatchRow], Tensor] = {}
        self.looks: dict[tuple[Site, int | None, BatchRow], int] = {}

    def columns(self, call: AttentionCall, row: BatchRow, weights: Tensor) -> Tensor:
        """(heads, queries, keys) -> (heads, columns, h * w): what is kept."""
        raise NotImplementedError

    def column_count(self) -> int:
        """How many columns a look of every row keeps."""
        raise NotImplementedError

    def wants(self, site: Site) -> bool:
        return site.kind == self.kind and self.sites(site)

    def observes(self, site: Site, step: int) -> bool:
        return self.wants(site) and (self.steps is None or step in self.steps)

    def observe(self, call: AttentionCall, row: int, heads: slice, weights: Tensor) -> None:
        meaning = call.rows[row]
        seen = weights.detach()
        if not self.each_head:
            seen = seen.sum(0, keepdim=True) / call.site.heads
        shares = self.columns(call, meaning, seen)
        shares = shares.reshape(*shares.shape[:2], call.height, call.width)
        key = call.site, call.step if self.each_step else None, meaning
        # Of a large layer the heads arrive in several calls, the first of them with head 0.
        if heads.start == 0:
            self.looks[key] = self.looks.get(key, 0) + 1
        if key not in self.sums:
            count = call.site.heads if self.each_head else 1
            self.sums[key] = shares.new_zeros(count, *shares.shape[1:])
        self.sums[key][heads if self.each_head else slice(None)] += shares

    def forget(self) -> None:
        """Begin anew."""
        self.sums.clear()
        self.looks.clear()

    def means(self) -> Iterator[dict[str, Any]]:
        """What was recorded so far, in the order of execution, by `LayerMap`'s fields."""
        for (site, step, row), total in self.sums.items():
            shares = (total / self.looks[site, step, row]).float().cpu()
            where = {"site": site, "step": step, "prompt": row.prompt, "branch": row.branch}
            yield where | {"shares": shares}

    def bytes_needed(self, sites: Iterable[Site], grid: tuple[int, int], steps: int) -> int:
        """What recording a run will keep in memory, beside the 64 MiB of one look.

        Args:
            sites: the UNet's (`unet.sites()`).
            grid: height and width of the latents.
            steps: of the run, `len(timesteps)`.
        """
        watched = range(steps) if self.steps is None else set(self.steps) & set(range(steps))
        kept = len(watched) if self.each_step else min(1, len(watched))
        cells = sum(
            math.prod(grid_at(grid, site.stage)) * (site.heads if self.each_head else 1)
            for site in sites
            if self.wants(site)
        )
        return kept * self.column_count() * cells * torch.float32.itemsize


class WordRecorder(Recorder):
    """Records where the pixels look among the words: cross-attention."""

    kind = "cross"

    def __init__(self, texts: Mapping[str, Sequence[Words]], **options: Any) -> None:
        """
        Args:
            texts: the sides of the guidance to watch, and what each reads, one text an image:
                {"cond": prompts, "uncond": negatives}.
            options: see `Recorder`.
        """
        super().__init__(**options)
        self.texts = {branch: tuple(words) for branch, words in texts.items()}

    def observes_row(self, row: BatchRow) -> bool:
        return row.branch in self.texts and row.prompt < len(self.texts[row.branch])

    def columns(self, call: AttentionCall, row: BatchRow, weights: Tensor) -> Tensor:
        own = len(self.texts[row.branch][row.prompt].ids)
        padding = weights[..., own:].sum(-1, keepdim=True)
        return torch.cat([weights[..., :own], padding], dim=-1).transpose(1, 2)

    def column_count(self) -> int:
        return sum(len(words.ids) + 1 for texts in self.texts.values() for words in texts)

    def maps(self) -> list[WordMap]:
        """What was recorded so far, in the order of execution."""
        return [
            WordMap(words=self.texts[mean["branch"]][mean["prompt"]], **mean)
            for mean in self.means()
        ]


class PixelRecorder(Recorder):
    """Records where chosen pixels look among all pixels: self-attention."""

    kind = "self"

    def __init__(
        self,
        points: Sequence[Point],
        rows: Sequence[BatchRow] = (BatchRow(0, "cond"),),
        **options: Any,
    ) -> None:
        """
        Args:
            rows: of which images and sides of the guidance.
            options: see `Recorder`.

        Raises:
            SettingError: no points, or one outside the image.
        """
        super().__init__(**options)
        if not points:
            raise SettingError("no points are given", expected="at least one (x, y) from 0 to 1")
        for point in points:
            cell_at(point, (1, 1))
        self.points, self.rows = tuple(points), tuple(rows)

    def observes_row(self, row: BatchRow) -> bool:
        return row in self.rows

    def columns(self, call: AttentionCall, row: BatchRow, weights: Tensor) -> Tensor:
        return weights[:, [cell_at(p, (call.height, call.width)) for p in self.points]]

    def column_count(self) -> int:
        return len(self.points) * len(self.rows)

    def maps(self) -> list[PixelMap]:
        """What was recorded so far, in the order of execution."""
        return [PixelMap(points=self.points, **mean) for mean in self.means()]


class Together(Control):
    """Several controls that look, in one run; none of them edits."""

    def __init__(self, controls: Sequence[Control]) -> None:
        self.controls = tuple(controls)

    def observes(self, site: Site, step: int) -> bool:
        return any(control.observes(site, step) for control in self.controls)

    def observes_row(self, row: BatchRow) -> bool:
        return any(control.observes_row(row) for control in self.controls)

    def observe(self, call: AttentionCall, row: int, heads: slice, weights: Tensor) -> None:
        for control in self.controls:
            if control.observes(call.site, call.step) and control.observes_row(call.rows[row]):
                control.observe(call, row, heads, weights)


def grid_at(grid: tuple[int, int], level: int) -> tuple[int, int]:
    """The grid on which level `level` of the U works, for latents of `grid`."""
    # A convolution of stride 2 rounds up, each time.
    return -(-grid[0] // 2**level), -(-grid[1] // 2**level)


def cell_at(point: Point, grid: tuple[int, int]) -> int:
    """Which cell of a grid (height, width), counted row by row, lies under a point.

    Raises:
        SettingError: a point outside the image.
    """
    x, y = check_number("x", point[0], 0.0, 1.0), check_number("y", point[1], 0.0, 1.0)
    height, width = grid
    row, column = min(int(y * height), height - 1), min(int(x * width), width - 1)
    return row * width + column


def layer_name(site: Site) -> str:
    """Short for people: "down_blocks.0.attentions.1"; the rest is the same everywhere."""
    return site.name.partition(".transformer_blocks")[0]


# --- sorting ------------------------------------------------------------------------------


def select(
    maps: Iterable[AnyMap],
    *,
    branch: str = "cond",
    prompt: int = 0,
    sites: Callable[[Site], bool] = lambda site: True,
    steps: Collection[int] | None = None,
) -> list[AnyMap]:
    """The maps of one image and one side of the guidance, in some layers, at some steps."""
    return [
        one
        for one in maps
        if one.branch == branch and one.prompt == prompt and sites(one.site)
        and (steps is None or one.step in steps)
    ]  # fmt: skip


def grouped(maps: Iterable[AnyMap], by: By) -> dict[str, list[AnyMap]]:
    """The maps by what they differ in, under names for people, in the order of execution.

    A head is one of one layer: the second head of two layers has nothing in common.

    Raises:
        SettingError: heads or steps that were not kept apart.
    """
    groups: dict[str, list[AnyMap]] = {}
    for one in maps:
        if by == "layer":
            groups.setdefault(layer_name(one.site), []).append(one)
        elif by == "level":
            groups.setdefault(f"{one.site.block}, level {one.site.stage}", []).append(one)
        elif by == "step":
            if one.step is None:
                raise not_kept("steps", "each_step=True")
            groups.setdefault(f"step {one.step}", []).append(one)
        else:
            for alone in heads_of(one):
                groups.setdefault(f"{layer_name(one.site)}, head {alone.head}", []).append(alone)
    return groups


def heads_of(one: AnyMap) -> list[AnyMap]:
    """A layer's map, head by head.

    Raises:
        SettingError: a mean over the heads.
    """
    if len(one.shares) != one.site.heads:
        raise not_kept("heads", "each_head=True")
    return [
        dataclasses.replace(one, shares=one.shares[head : head + 1], head=head)
        for head in range(one.site.heads)
    ]


def not_kept(what: str, fix: str) -> SettingError:
    return SettingError(f"the maps are means over the {what}", fix=f"record with {fix}")


# --- putting together ---------------------------------------------------------------------


def heat_map(
    maps: Iterable[LayerMap[What]], what: What, size: tuple[int, int], *, among: Among = "all"
) -> Tensor:
    """DAAM: all maps of a word (or point) brought to one size and averaged, (H, W), at least 0.

    Bicubic, over heads, layers and steps (arXiv:2210.04885, eq. 6, which sums; the mean of
    shares is a share).  Maps of several images or sides of the guidance are averaged, too:
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
        shares = one.of(what, among).mean(0)
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
    maps: Iterable[LayerMap[What]],
    what: What,
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
        one.of(what, among).mean(0)
        for one in maps
        if one.site.stage == level and one.site.block in blocks
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
