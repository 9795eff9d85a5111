"""Attention maps: attention weights recorded during a run, and the ways to average them.

    prompt   = "a snowy road with a red car"
    words    = read(pipe.tokenizer, prompt)                    pare.text.words
    recorder = WordRecorder({"cond": [words]})
    image    = pipe(prompt, seeds=7, control=recorder)[0]
    heat     = heat_map(recorder.maps(), "car", size=(128, 128))      (128, 128), DAAM
    shown    = overlay(image, heat)                            pare.study.record.heatmap

In cross-attention the pixels of a layer's grid are the queries and the prompt's 77 tokens the
keys: the attention weights softmax(q k^T / sqrt(d)) of a pixel add up to 1 over the tokens.  A
token's column, laid out on the grid, is its attention map.  A `WordRecorder` keeps, of each
layer, the maps of the prompt's own tokens and the sum of those of the padding.  In self-attention
the keys are the pixels themselves; a `PixelRecorder` keeps the weights of chosen query pixels.

Heads and steps are averaged as they are recorded, unless `each_head` or `each_step` asks for them:
what is kept is all the memory that recording takes, and `bytes_needed` says beforehand how much.
Recording changes no bit of the image.  `Observers` lets several recorders watch one run.

A `LayerMap` holds the weights of one layer, at one step or averaged over the steps, for one image
and one branch of the guidance.  `select` and `grouped` sort them, `heat_map` and `stage_map`
average them.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from pare.attention import AttentionCall, BatchRow, Control, Site
from pare.errors import SettingError
from pare.runtime.short_repr import short_repr
from pare.runtime.validation import check_number
from pare.study.inspect.layer_table import nearest, outer_names
from pare.text.words import END, PADDING, START, Words

Among = Literal["all", "words"]
"""Over which tokens a pixel's weights add up to 1: over all 77, or over the words alone.

Start, end and padding often take most of the weight ("all" is then nearly flat), and how much they
take differs from pixel to pixel; "words" leaves them out and renormalises over the words.
"""

By = Literal["layer", "head", "step", "stage"]

SPECIAL_TOKENS = (START, END, PADDING)

Point = tuple[float, float]
"""x and y, each in [0, 1], from the image's upper left corner."""

What = TypeVar("What")
AnyMap = TypeVar("AnyMap", bound="LayerMap[Any]")


# --- maps ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerMap(Generic[What]):
    """Attention weights of one layer and one image: the base of `WordMap` and `PixelMap`."""

    site: Site
    step: int | None
    """Step index `i`; None: the mean over all recorded steps."""
    prompt: int
    """Which image of the run, from 0."""
    branch: str
    """Which branch of the guidance: "cond", "uncond", or a technique's own."""
    weights: Tensor
    """(heads, columns, h, w), float32 on the CPU; heads is 1 for the mean over them."""
    head: int | None = None
    """Which head `weights` holds, where `grouped` has taken it out."""

    __repr__ = short_repr

    def of(self, what: What, among: Among = "all") -> Tensor:
        """(heads, h, w): the map of a word or point, one a head."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False, kw_only=True)
class WordMap(LayerMap[str]):
    """The cross-attention maps of one layer.

    `weights` has, for every pixel, a column for each of `words.ids` (start, the words' tokens,
    end) and a last one for all the padding: over the columns it adds up to 1.
    """

    words: Words
    """The prompt of this branch."""

    def of(self, what: str, among: Among = "all") -> Tensor:
        """(heads, h, w): each pixel's attention weight for a word, summed over its tokens.

        Args:
            what: as in `Words.find` ("car", "red car", "road#2"); or one of `<start>`,
                `<end>`, `<padding>`, whose weights are always those among all tokens.

        Raises:
            PromptError: no such word in the text.
        """
        special = {START: 0, END: len(self.words.ids) - 1, PADDING: len(self.words.ids)}
        if what in special:
            return self.weights[:, special[what]]
        weights = self.weights[:, list(self.words.find(what))].sum(1)
        if among == "all":
            return weights
        # Start is column 0, end and padding are the last two.
        return weights / self.weights[:, 1:-2].sum(1).clamp(min=torch.finfo(torch.float32).tiny)


@dataclass(frozen=True, eq=False, kw_only=True)
class PixelMap(LayerMap[Point]):
    """The self-attention maps of chosen query pixels in one layer.

    `weights` has a column for each point, which adds up to 1 over the image.
    """

    points: tuple[Point, ...]

    def of(self, what: Point, among: Among = "all") -> Tensor:
        """(heads, h, w): the weights of the query pixel under a point, in multiples of their mean.

        The weights themselves grow with the cells' size: layers of different grids could not be
        averaged.
        """
        return self.weights[:, self.points.index(what)] * math.prod(self.weights.shape[2:])


# --- recording ----------------------------------------------------------------------------


class AttentionRecorder(Control):
    """Records attention maps of one run: the base of `WordRecorder` and `PixelRecorder`."""

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
            each_step: keep a map for each step, or only their mean.
            each_head: keep a map for each head, or only their mean.
        """
        self.sites, self.steps = sites, steps
        self.each_step, self.each_head = each_step, each_head
        self.sums: dict[tuple[Site, int | None, BatchRow], Tensor] = {}
        self.calls: dict[tuple[Site, int | None, BatchRow], int] = {}

    def columns(self, call: AttentionCall, row: BatchRow, weights: Tensor) -> Tensor:
        """(heads, queries, keys) -> (heads, columns, h * w): what is kept."""
        raise NotImplementedError

    def column_count(self) -> int:
        """How many columns one call keeps of all rows."""
        raise NotImplementedError

    def wants(self, site: Site) -> bool:
        return site.kind == self.kind and self.sites(site)

    def observes(self, site: Site, step: int) -> bool:
        return self.wants(site) and (self.steps is None or step in self.steps)

    def observe(self, call: AttentionCall, row: int, heads: slice, weights: Tensor) -> None:
        weights = weights.detach()
        if not self.each_head:
            weights = weights.sum(0, keepdim=True) / call.site.heads
        kept = self.columns(call, call.rows[row], weights).unflatten(-1, (call.height, call.width))  # type: ignore[no-untyped-call]
        key = call.site, call.step if self.each_step else None, call.rows[row]
        # Of a large layer the heads arrive in several calls, the first of them with head 0.
        if heads.start == 0:
            self.calls[key] = self.calls.get(key, 0) + 1
        if key not in self.sums:
            count = call.site.heads if self.each_head else 1
            self.sums[key] = kept.new_zeros(count, *kept.shape[1:])
        self.sums[key][heads if self.each_head else slice(None)] += kept

    def forget(self) -> None:
        """Begin anew."""
        self.sums.clear()
        self.calls.clear()

    def means(self) -> Iterator[dict[str, Any]]:
        """What was recorded so far, in the order of execution, as fields of `LayerMap`."""
        for (site, step, row), total in self.sums.items():
            weights = (total / self.calls[site, step, row]).float().cpu()
            where = {"site": site, "step": step, "prompt": row.prompt, "branch": row.branch}
            yield where | {"weights": weights}

    def bytes_needed(self, sites: Iterable[Site], grid: tuple[int, int], steps: int) -> int:
        """What recording a run will keep in memory, beside the 64 MiB of one call.

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


class WordRecorder(AttentionRecorder):
    """Records cross-attention maps: the weights of all pixels for each token of the prompt."""

    kind = "cross"

    def __init__(self, texts: Mapping[str, Sequence[Words]], **options: Any) -> None:
        """
        Args:
            texts: the branches of the guidance to record, and their prompts, one an image:
                {"cond": prompts, "uncond": negatives}.
            options: see `AttentionRecorder`.
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


class PixelRecorder(AttentionRecorder):
    """Records self-attention maps: the weights of chosen query pixels for all pixels."""

    kind = "self"

    def __init__(
        self,
        points: Sequence[Point],
        rows: Sequence[BatchRow] = (BatchRow(0, "cond"),),
        **options: Any,
    ) -> None:
        """
        Args:
            rows: of which images and branches of the guidance.
            options: see `AttentionRecorder`.

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


class Observers(Control):
    """Several controls that observe one run; none of them edits."""

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


def grid_at(grid: tuple[int, int], stage: int) -> tuple[int, int]:
    """The grid (height, width) of a resolution stage, for latents of `grid`."""
    # A convolution of stride 2 rounds up, each time.
    return -(-grid[0] // 2**stage), -(-grid[1] // 2**stage)


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
    """The transformer that a layer belongs to: "down_blocks.0.attentions.1"."""
    return site.name.partition(".transformer_blocks")[0]


# --- layers by name -----------------------------------------------------------------------


def find_sites(sites: Iterable[Site], wanted: Sequence[str]) -> list[Site]:
    """The attention layers that some names or globs mean, in the order of execution.

    A name is a layer's, as `pare inspect` lists it ("unet.up_blocks.1.attentions.0"), or that of
    a block around it ("unet.mid_block"); "unet." may be left out.

    Raises:
        SettingError: a name that means no attention layer; the nearest are named.
    """
    listed = list(sites)
    found: set[Site] = set()
    for name in wanted:
        matches = {site for site in listed if means(name, site)}
        if not matches:
            near = nearest(name.removeprefix("unet."), list(dict.fromkeys(map(layer_name, listed))))
            raise SettingError(
                f"no attention layer of the UNet is called {name!r}",
                fix=f"did you mean {' or '.join(near)}?",
            )
        found |= matches
    return [site for site in listed if site in found]


def means(name: str, site: Site) -> bool:
    """Whether a name or glob means an attention layer, or a module around it."""
    full = f"unet.{site.name}"
    around = [full, *filter(None, outer_names(full))]
    return any(fnmatch.fnmatchcase(outer, wanted) for outer in around
               for wanted in (name, f"unet.{name}"))  # fmt: skip


# --- sorting ------------------------------------------------------------------------------


def select(
    maps: Iterable[AnyMap],
    *,
    branch: str = "cond",
    prompt: int = 0,
    sites: Callable[[Site], bool] = lambda site: True,
    steps: Collection[int] | None = None,
) -> list[AnyMap]:
    """The maps of one image and one branch of the guidance, in some layers, at some steps."""
    return [
        one
        for one in maps
        if one.branch == branch and one.prompt == prompt and sites(one.site)
        and (steps is None or one.step in steps)
    ]  # fmt: skip


def grouped(maps: Iterable[AnyMap], by: By) -> dict[str, list[AnyMap]]:
    """The maps by layer, head, step or resolution stage, each group under a readable name.

    A head is grouped with its own layer: heads of the same index in two layers are unrelated.

    Raises:
        SettingError: `by` asks for heads or steps, of which only the mean was recorded.
    """
    groups: dict[str, list[AnyMap]] = {}
    for one in maps:
        if by == "layer":
            groups.setdefault(layer_name(one.site), []).append(one)
        elif by == "stage":
            groups.setdefault(f"{one.site.block}, stage {one.site.stage}", []).append(one)
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
    if len(one.weights) != one.site.heads:
        raise not_kept("heads", "each_head=True")
    return [
        dataclasses.replace(one, weights=one.weights[head : head + 1], head=head)
        for head in range(one.site.heads)
    ]


def not_kept(what: str, fix: str) -> SettingError:
    return SettingError(f"the maps are means over the {what}", fix=f"record with {fix}")


# --- putting together ---------------------------------------------------------------------


def heat_map(
    maps: Iterable[LayerMap[What]], what: What, size: tuple[int, int], *, among: Among = "all"
) -> Tensor:
    """DAAM: all maps of a word (or point), resized to one size and averaged, (H, W).

    Bicubic, over heads, layers and steps (arXiv:2210.04885, eq. 6, which sums; the mean of
    weights is a weight).  Bicubic interpolation overshoots at edges: each resized map is clamped to
    0 and to its own maximum, so that a weight stays one.  Maps of several images or branches of the
    guidance are averaged, too: `select` first.

    Raises:
        SettingError: no maps at all.
        PromptError: no such word.
    """
    by_grid: dict[tuple[int, ...], list[Tensor]] = {}
    heads = 0
    for one in maps:
        # The equation's sum goes over heads, of which layers may have unequally many.
        count = one.site.heads if one.head is None else 1
        weights = one.of(what, among).mean(0)
        by_grid.setdefault(tuple(weights.shape), []).append(count * weights)
        heads += count
    if not by_grid:
        raise no_maps()
    total = torch.zeros(size)
    for same in by_grid.values():
        stacked = torch.stack(same)[:, None]  # (maps, 1, h, w)
        resized = F.interpolate(stacked, size, mode="bicubic").clamp(min=0)
        total += resized.minimum(stacked.amax((1, 2, 3), keepdim=True)).sum((0, 1))
    return total / heads


def stage_map(
    maps: Iterable[LayerMap[What]],
    what: What,
    stage: int,
    *,
    blocks: Collection[str] = ("down", "mid", "up"),
    among: Among = "all",
) -> Tensor:
    """Prompt-to-Prompt: the mean over the layers of one resolution stage, (h, w), not resized.

    The paper's figures take a quarter of the latents' grid (16 x 16 of 64 x 64, stage 2) from
    the encoder and the decoder (arXiv:2208.01626, fig. 4).

    Raises:
        SettingError: no such maps.
        PromptError: no such word.
    """
    same = [
        one.of(what, among).mean(0)
        for one in maps
        if one.site.stage == stage and one.site.block in blocks
    ]
    if not same:
        raise no_maps()
    return torch.stack(same).mean(0)


def no_maps() -> SettingError:
    return SettingError("no attention map was recorded", fix="record more layers or steps")


def normalised(heat: Tensor) -> Tensor:
    """Stretched to [0, 1]; a flat map is 0."""
    low, high = heat.min(), heat.max()
    return (heat - low) / (high - low) if high > low else torch.zeros_like(heat)
