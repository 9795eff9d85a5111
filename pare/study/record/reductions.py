"""What is kept of a layer's answer: less than all of it, computed as it streams by.

Every reduction takes what a layer hands on, rows of the batch first, and answers on the
CPU, rows first.  The same functions run on PyTorch's `meta` device to say beforehand how
large the answers will be, so that what is announced is what is taken.
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
    """One way to keep less."""

    reduce: Callable[[Tensor, Grid | None], Tensor]
    """x (rows, …) and its grid -> (rows, …).  The grid is the height and width that the tokens
    of x (rows, h * w, C) were flattened from; None: they are no pixels, or x is an image."""
    axes: Callable[[int, Grid | None], tuple[str, ...]]
    """What the axes of the answer are, but for the rows; by the number of x's axes."""


def statistics(x: Tensor, grid: Grid | None) -> Tensor:
    """(rows, …) -> (rows, 4): mean, standard deviation (of the population), least, largest."""
    flat = x.reshape(len(x), -1).float()
    var, mean = torch.var_mean(flat, dim=1, correction=0)
    low, high = torch.aminmax(flat, dim=1)
    return to_cpu(torch.stack([mean, var.sqrt(), low, high], dim=1))


def activations(x: Tensor, grid: Grid | None) -> Tensor:
    """(rows, …) -> the same, all of it, in its own number type."""
    # A copy: a layer that works in place would change what was kept.
    return x.clone() if x.device.type in ("cpu", "meta") else x.cpu()


def strength(x: Tensor, grid: Grid | None) -> Tensor:
    """(rows, …) -> (rows, h, w): the root mean square over the channels of every pixel.

    Tokens that are no pixels become a row, (rows, 1, tokens), and a vector stays as it is,
    signs included, (rows, 1, C).
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
