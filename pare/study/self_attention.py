"""Which pixels look alike to the model: self-attention, of single pixels and as a whole.

    recorder = PixelRecorder([(0.5, 0.7)])             a point: x, y as shares of the picture
    affinity = AffinityRecorder(level=1)
    pipe.generate(prompt, seeds=[7], control=Together([recorder, affinity]))

    recorder.maps()[0].shares                          (heads, points, h, w)
    components = principal_components(affinity.matrix())        (h * w, 3)
    picture    = components_picture(components, affinity.grid)

In self-attention every pixel of a layer's grid shares itself out over all pixels of that
grid.  One pixel's share is a picture: what it thinks is of its kind.  All of them are a
matrix, too large to look at; its principal components are pictures again, in which parts of
one thing have one colour.  The same works on a layer's features (arXiv:2211.12572, fig. 3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pare.attention import Call, Control, Row, Site
from pare.errors import SettingError
from pare.settings import check_number
from pare.study.attention_maps import grid_at, no_maps

Point = tuple[float, float]
"""x and y in [0, 1] from the picture's upper left corner."""


def cell_at(point: Point, grid: tuple[int, int]) -> int:
    """Which cell of a grid (height, width), counted row by row, lies under a point.

    Raises:
        SettingError: a point outside the picture.
    """
    x, y = check_number("x", point[0], 0.0, 1.0), check_number("y", point[1], 0.0, 1.0)
    height, width = grid
    row, column = min(int(y * height), height - 1), min(int(x * width), width - 1)
    return row * width + column


# --- single pixels ------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class PixelMap:
    """Where chosen pixels of one picture looked in one self-attention layer."""

    site: Site
    step: int | None
    """Step index `i`; None: the mean over all watched steps."""
    prompt: int
    branch: str
    shares: Tensor
    """(heads, points, h, w), float32 on the CPU; over h and w it adds up to 1.  heads is 1
    for the mean over them."""


class PixelRecorder(Control):
    """Records where chosen pixels look, in self-attention, during one run."""

    def __init__(
        self,
        points: Sequence[Point],
        *,
        branches: Collection[str] = ("cond",),
        sites: Callable[[Site], bool] = lambda site: True,
        steps: Collection[int] | None = None,
        each_step: bool = False,
        each_head: bool = False,
    ) -> None:
        """
        Args:
            sites: which layers; only self-attention is ever asked for.
            steps: which step indices; None is all.
            each_step, each_head: keep them apart, or their mean alone.

        Raises:
            SettingError: no points, or one outside the picture.
        """
        if not points:
            raise SettingError("no points are given", expected="at least one (x, y) from 0 to 1")
        for point in points:
            cell_at(point, (1, 1))
        self.points, self.branches = tuple(points), frozenset(branches)
        self.sites, self.steps = sites, steps
        self.each_step, self.each_head = each_step, each_head
        self.sums: dict[tuple[Site, int | None, int, str], Tensor] = {}
        self.looks: dict[tuple[Site, int | None, int, str], int] = {}

    def observes(self, site: Site, step: int) -> bool:
        wanted = site.kind == "self" and self.sites(site)
        return wanted and (self.steps is None or step in self.steps)

    def observes_row(self, row: Row) -> bool:
        return row.branch in self.branches

    def observe(self, call: Call, row: int, heads: slice, probabilities: Tensor) -> None:
        grid = call.height, call.width
        cells = [cell_at(point, grid) for point in self.points]
        seen = probabilities.detach()[:, cells]
        seen = seen.view(*seen.shape[:2], *grid)  # (heads, points, h, w)
        if not self.each_head:
            seen = seen.sum(0, keepdim=True) / call.site.heads
        key = (
            call.site, call.step if self.each_step else None,
            call.rows[row].prompt, call.rows[row].branch,
        )  # fmt: skip
        # Of a large layer the heads arrive in several calls, the first of them with head 0.
        if heads.start == 0:
            self.looks[key] = self.looks.get(key, 0) + 1
        if key not in self.sums:
            count = call.site.heads if self.each_head else 1
            self.sums[key] = seen.new_zeros(count, *seen.shape[1:])
        self.sums[key][heads if self.each_head else slice(None)] += seen

    def maps(self) -> list[PixelMap]:
        """What was recorded so far, in the order of execution."""
        return [
            PixelMap(*key, (total / self.looks[key]).float().cpu())
            for key, total in self.sums.items()
        ]


# --- all pixels ---------------------------------------------------------------------------


class AffinityRecorder(Control):
    """Records the mean self-attention of all pixels at one level of the U, during one run.

    Of one picture and one side of the guidance; over layers, heads and steps.  It keeps one
    matrix of (h * w)^2 numbers: `bytes_needed`.
    """

    def __init__(
        self,
        level: int,
        *,
        prompt: int = 0,
        branch: str = "cond",
        sites: Callable[[Site], bool] = lambda site: True,
        steps: Collection[int] | None = None,
    ) -> None:
        self.level, self.row = level, Row(prompt, branch)
        self.sites, self.steps = sites, steps
        self.grid: tuple[int, int] | None = None
        """Height and width of the level, once it was seen."""
        self.total: Tensor | None = None
        self.looks = 0

    def wants(self, site: Site) -> bool:
        return site.kind == "self" and site.level == self.level and self.sites(site)

    def observes(self, site: Site, step: int) -> bool:
        return self.wants(site) and (self.steps is None or step in self.steps)

    def observes_row(self, row: Row) -> bool:
        return row == self.row

    def observe(self, call: Call, row: int, heads: slice, probabilities: Tensor) -> None:
        self.grid = call.height, call.width
        self.looks += probabilities.shape[0]
        seen = probabilities.detach().sum(0)
        self.total = seen if self.total is None else self.total.add_(seen)

    def matrix(self) -> Tensor:
        """(h * w, h * w), float32 on the CPU: row q is where pixel q looks; rows add up to 1.

        Raises:
            SettingError: nothing was seen: the level has no self-attention, or none of `sites`.
        """
        if self.total is None:
            raise no_maps()
        return (self.total / self.looks).float().cpu()

    def bytes_needed(self, sites: Iterable[Site], grid: tuple[int, int]) -> int:
        """What it will keep, for latents of `grid` (height, width)."""
        cells = math.prod(grid_at(grid, self.level))
        return cells**2 * torch.float32.itemsize if any(map(self.wants, sites)) else 0


class Together(Control):
    """Several controls that look, in one run; none of them edits."""

    def __init__(self, controls: Sequence[Control]) -> None:
        self.controls = tuple(controls)

    def observes(self, site: Site, step: int) -> bool:
        return any(control.observes(site, step) for control in self.controls)

    def observes_row(self, row: Row) -> bool:
        return any(control.observes_row(row) for control in self.controls)

    def observe(self, call: Call, row: int, heads: slice, probabilities: Tensor) -> None:
        for control in self.controls:
            if control.observes(call.site, call.step) and control.observes_row(call.rows[row]):
                control.observe(call, row, heads, probabilities)


# --- components ---------------------------------------------------------------------------


def principal_components(features: Tensor, count: int = 3) -> Tensor:
    """The first principal components of (pixels, features): each pixel's scores, (pixels, count).

    Falling in their variance; each has the sign that makes its largest score positive.  Of
    self-attention a pixel's features are its row of the matrix; of a layer's activations
    (C, h, w) they are its channels, `activations.flatten(1).T`.

    Raises:
        SettingError: fewer pixels or features than components.
    """
    if not 1 <= count <= min(features.shape):
        raise SettingError(
            f"{count} components are asked of {features.shape[0]} pixels with "
            f"{features.shape[1]} features",
            expected=f"1 to {min(features.shape)}",
        )
    exact = features.detach().double().cpu()
    centred = exact - exact.mean(0)
    left, strengths, _ = torch.linalg.svd(centred, full_matrices=False)
    scores = left[:, :count] * strengths[:count]
    largest = scores.abs().argmax(0)
    return (scores * scores[largest, range(count)].sign()).float()


def explained(features: Tensor, count: int = 3) -> list[float]:
    """The share of the variance of (pixels, features) that each of the first components has."""
    exact = features.detach().double().cpu()
    variances = torch.linalg.svdvals(exact - exact.mean(0)).square()
    shares: list[float] = (variances / variances.sum().clamp(min=1e-300))[:count].tolist()
    return shares


def components_picture(
    scores: Tensor, grid: tuple[int, int], size: tuple[int, int] | None = None
) -> Image.Image:
    """Three components (h * w, 3) as red, green and blue, each from its 2nd to its 98th percentile.

    Args:
        grid: h and w.
        size: (width, height) of the picture, its cells as squares; as the grid if None.
    """
    values = scores.numpy().astype(np.float64)
    low, high = np.percentile(values, [2, 98], axis=0)
    scaled = np.clip((values - low) / np.maximum(high - low, 1e-12), 0, 1)
    pixels = (scaled * 255).round().astype(np.uint8).reshape(*grid, 3)
    picture = Image.fromarray(pixels)
    return picture if size is None else picture.resize(size, Image.Resampling.NEAREST)
