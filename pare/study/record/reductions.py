"""Reductions of a layer's output, computed when it arrives, so that less has to be kept.

A reduction takes a layer's output, rows of the batch first, and returns a tensor on the CPU, rows
first.  The same functions run on PyTorch's `meta` device to give the results' sizes beforehand, so
that the planned memory is exactly what is used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Grid = tuple[int, int]

STATISTICS = ("mean", "std", "min", "max")


@dataclass(frozen=True)
class Reduction:
    """A function of a layer's output, and the names of its result's axes."""

    reduce: Callable[[Tensor, Grid | None], Tensor]
    """x (rows, …) and its grid -> (rows, …).  The grid is the height and width that the pixels of x
    (rows, h * w, C) were flattened from; None if x is an image, or its tokens are not pixels."""
    axes: Callable[[int, Grid | None], tuple[str, ...]]
    """(x.ndim, grid) -> the names of the result's axes after the rows."""


def statistics(x: Tensor, grid: Grid | None) -> Tensor:
    """(rows, …) -> (rows, 4): mean, standard deviation (of the population), minimum, maximum."""
    flat = x.reshape(len(x), -1).float()
    var, mean = torch.var_mean(flat, dim=1, correction=0)
    low, high = torch.aminmax(flat, dim=1)
    return to_cpu(torch.stack([mean, var.sqrt(), low, high], dim=1))


def activations(x: Tensor, grid: Grid | None) -> Tensor:
    """(rows, …) -> the same, unreduced, in its own dtype."""
    # A copy: a layer that works in place would change what is kept.
    return x.clone() if x.device.type in ("cpu", "meta") else x.cpu()


def strength(x: Tensor, grid: Grid | None) -> Tensor:
    """(rows, …) -> (rows, h, w): the root mean square over the channels of every pixel.

    Tokens that are not pixels become a row, (rows, 1, tokens); a vector keeps its values,
    (rows, 1, C).
    """
    if x.ndim == 2:
        return to_cpu(x.float()[:, None])
    channels = 1 if x.ndim == 4 else -1
    mean_square = x.float().square().mean(dim=channels)
    if x.ndim == 4:
        return to_cpu(mean_square.sqrt())
    return to_cpu(mean_square.sqrt().view(len(x), *(grid or (1, x.shape[1]))))


def channel_means(x: Tensor, grid: Grid | None) -> Tensor:
    """(rows, …) -> (rows, C): the mean of every channel over all pixels or tokens."""
    if x.ndim == 2:
        return to_cpu(x.float().clone())
    return to_cpu(x.float().mean(dim=(2, 3) if x.ndim == 4 else 1))


def to_cpu(x: Tensor) -> Tensor:
    return x if x.is_meta else x.cpu()


def all_axes(ndim: int, grid: Grid | None) -> tuple[str, ...]:
    if ndim == 4:
        return ("channel", "y", "x")
    return ("channel",) if ndim == 2 else ("pixel" if grid else "token", "channel")


def map_axes(ndim: int, grid: Grid | None) -> tuple[str, ...]:
    return ("y", "x") if ndim == 4 or grid else ("one", "channel" if ndim == 2 else "token")


REDUCTIONS = {
    "statistics": Reduction(statistics, lambda ndim, grid: ("statistic",)),
    "activations": Reduction(activations, all_axes),
    "map": Reduction(strength, map_axes),
    "channels": Reduction(channel_means, lambda ndim, grid: ("channel",)),
}
