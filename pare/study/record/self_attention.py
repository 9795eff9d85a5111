"""Self-attention as a whole: which pixels the model groups together.

    recorder = SelfAttentionRecorder(stage=1)
    pipe.generate(prompt, seeds=[7], control=recorder)
    components = principal_components(recorder.matrix())        (h * w, 3)
    image      = components_image(components, recorder.grid)

In self-attention every pixel of a layer's grid is a query and a key.  The row of one query is an
image: the pixels that it attends to, often those of the same object (`attention_maps.PixelRecorder`
records single ones).  All rows together are a matrix; its principal components are images again,
in which parts of one object have one colour.  The same works on a layer's features
(arXiv:2211.12572, fig. 3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pare.attention import AttentionCall, BatchRow, Control, Site
from pare.errors import SettingError
from pare.study.record.attention_maps import grid_at, no_maps


class SelfAttentionRecorder(Control):
    """Records the self-attention matrix of one resolution stage during one run.

    Of one image and one branch of the guidance; averaged over layers and heads, and over the steps
    unless they are kept apart.  A matrix has (h * w)^2 numbers: `bytes_needed`.
    """

    def __init__(
        self,
        stage: int,
        *,
        prompt: int = 0,
        branch: str = "cond",
        sites: Callable[[Site], bool] = lambda site: True,
        steps: Callable[[int], bool] = lambda step: True,
        each_step: bool = False,
    ) -> None:
        """
        Args:
            stage: the resolution stage, 0 the latents' own.
            prompt: which image of the run.
            sites, steps: which layers of the stage, and which step indices.
            each_step: keep a matrix for each step, or only their mean.
        """
        self.stage, self.row = stage, BatchRow(prompt, branch)
        self.sites, self.steps, self.each_step = sites, steps, each_step
        self.grid: tuple[int, int] | None = None
        """Height and width of the stage, known once it was recorded."""
        self.sums: dict[int | None, Tensor] = {}
        self.counts: dict[int | None, int] = {}

    def wants(self, site: Site) -> bool:
        return site.kind == "self" and site.stage == self.stage and self.sites(site)

    def observes(self, site: Site, step: int) -> bool:
        return self.wants(site) and self.steps(step)

    def observes_row(self, row: BatchRow) -> bool:
        return row == self.row

    def observe(self, call: AttentionCall, row: int, heads: slice, weights: Tensor) -> None:
        self.grid = call.height, call.width
        step = call.step if self.each_step else None
        self.counts[step] = self.counts.get(step, 0) + weights.shape[0]
        seen = weights.detach().sum(0)
        self.sums[step] = self.sums[step].add_(seen) if step in self.sums else seen

    def forget(self) -> None:
        """Begin anew."""
        self.sums.clear()
        self.counts.clear()

    def matrix(self, step: int | None = None) -> Tensor:
        """(h * w, h * w), float32 on the CPU: row q holds the weights of query pixel q, sum 1.

        Args:
            step: which, where they were kept apart.

        Raises:
            SettingError: nothing was recorded: no such stage, layer or step with self-attention.
        """
        if step not in self.sums:
            raise no_maps()
        return (self.sums[step] / self.counts[step]).float().cpu()

    def bytes_needed(self, sites: Iterable[Site], grid: tuple[int, int], steps: int) -> int:
        """What it will keep in a run of `steps`, for latents of `grid` (height, width)."""
        if not any(map(self.wants, sites)):
            return 0
        kept = sum(map(self.steps, range(steps)))
        cells = math.prod(grid_at(grid, self.stage))
        return (kept if self.each_step else min(1, kept)) * cells**2 * torch.float32.itemsize


# --- components ---------------------------------------------------------------------------


def principal_components(features: Tensor, count: int = 3) -> Tensor:
    """The first principal components of (pixels, features): each pixel's scores, (pixels, count).

    In order of falling variance; each has the sign that makes its largest score positive.  For
    self-attention a pixel's features are its row of the matrix; for a layer's activations (C, h, w)
    its channels, `activations.flatten(1).T`.

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
    """The fraction of the variance of (pixels, features) that each of the first components has."""
    exact = features.detach().double().cpu()
    variances = torch.linalg.svdvals(exact - exact.mean(0)).square()
    fractions: list[float] = (variances / variances.sum().clamp(min=1e-300))[:count].tolist()
    return fractions


def components_image(
    scores: Tensor, grid: tuple[int, int], size: tuple[int, int] | None = None
) -> Image.Image:
    """Three components (h * w, 3) as red, green and blue, each from its 2nd to its 98th percentile.

    Args:
        grid: h and w.
        size: (width, height) of the image, its cells as squares; as the grid if None.
    """
    values = scores.numpy().astype(np.float64)
    low, high = np.percentile(values, [2, 98], axis=0)
    scaled = np.clip((values - low) / np.maximum(high - low, 1e-12), 0, 1)
    pixels = (scaled * 255).round().astype(np.uint8).reshape(*grid, 3)
    image = Image.fromarray(pixels)
    return image if size is None else image.resize(size, Image.Resampling.NEAREST)
