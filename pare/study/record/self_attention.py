"""Which pixels look alike to the model: self-attention, of single pixels and as a whole.

    recorder = PixelRecorder([(0.5, 0.7)])             a point: x, y as shares of the image
    affinity = AffinityRecorder(level=1)
    pipe.generate(prompt, seeds=[7], control=Together([recorder, affinity]))

    heat_map(recorder.maps(), (0.5, 0.7), (128, 128))  what the pixel there looks at
    components = principal_components(affinity.matrix())        (h * w, 3)
    image    = components_image(components, affinity.grid)

In self-attention every pixel of a layer's grid shares itself out over all pixels of that
grid.  One pixel's share is an image: what it thinks is of its kind.  All of them are a
matrix, too large to look at; its principal components are images again, in which parts of
one thing have one colour.  The same works on a layer's features (arXiv:2211.12572, fig. 3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pare.attention import AttentionCall, BatchRow, Control, Site
from pare.errors import SettingError
from pare.study.record.attention_maps import grid_at, no_maps


class AffinityRecorder(Control):
    """Records the mean self-attention of all pixels at one level of the U, during one run.

    Of one image and one side of the guidance; over layers, heads and steps.  It keeps one
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
        self.level, self.row = level, BatchRow(prompt, branch)
        self.sites, self.steps = sites, steps
        self.grid: tuple[int, int] | None = None
        """Height and width of the level, once it was seen."""
        self.total: Tensor | None = None
        self.looks = 0

    def wants(self, site: Site) -> bool:
        return site.kind == "self" and site.stage == self.level and self.sites(site)

    def observes(self, site: Site, step: int) -> bool:
        return self.wants(site) and (self.steps is None or step in self.steps)

    def observes_row(self, row: BatchRow) -> bool:
        return row == self.row

    def observe(self, call: AttentionCall, row: int, heads: slice, weights: Tensor) -> None:
        self.grid = call.height, call.width
        self.looks += weights.shape[0]
        seen = weights.detach().sum(0)
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
