"""Tiled encoding and decoding of large images: overlapping tiles, blended linearly.

The VAE's memory grows with the number of pixels, and its attention's with the square of it;
tiles bound both.  Neighbours overlap by a quarter of a tile, and each tile's weight falls
linearly towards its edges, so that there is no visible seam.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from pare.errors import SettingError
from pare.runtime.validation import MIN_TILE

OVERLAP = 0.25


def tile_in_latents(tile: int, factor: int) -> int:
    """The side in latents of a tile of `tile` pixels of the image.

    Raises:
        SettingError: no whole number of latents, or less than 8 of them.
    """
    whole = isinstance(tile, int) and not isinstance(tile, bool)
    if not whole or tile < MIN_TILE * factor or tile % factor:
        raise SettingError(
            f"`tile` is {tile!r}", expected=f"a multiple of {factor}, at least {MIN_TILE * factor}"
        )
    return tile // factor


def in_tiles(function: Callable[[Tensor], Tensor], x: Tensor, *, tile: int, scale: float) -> Tensor:
    """Apply `function` to overlapping tiles of `x` (B, C, H, W) and blend the outputs.

    `tile` is the side of a tile in pixels of `x`; `scale` is how many pixels of the
    output one pixel of `x` becomes (8 for decoding, 1/8 for encoding).  An image that
    fits into one tile gets exactly `function(x)`.
    """
    height, width = x.shape[-2:]
    tops, lefts = tile_starts(height, tile, scale), tile_starts(width, tile, scale)
    if len(tops) == len(lefts) == 1:
        return function(x)

    size = round(height * scale), round(width * scale)
    weights = torch.zeros(size, dtype=torch.float32, device=x.device)
    total: Tensor | None = None
    for top, left in itertools.product(tops, lefts):
        part = function(x[..., top : top + tile, left : left + tile])
        if total is None:
            total = weights.new_zeros(*part.shape[:2], *size)
        rows, columns = part.shape[-2:]
        window = ramp(rows, x.device)[:, None] * ramp(columns, x.device)[None, :]
        vertical = slice(round(top * scale), round(top * scale) + rows)
        horizontal = slice(round(left * scale), round(left * scale) + columns)
        total[..., vertical, horizontal] += part * window
        weights[vertical, horizontal] += window
    assert total is not None  # there is at least one tile
    return (total / weights).to(x.dtype)


def tile_starts(size: int, tile: int, scale: float) -> list[int]:
    """Where tiles begin along a side: overlapping by a quarter, the last one flush with the end.

    Starts are multiples of 1 / scale, so that every tile lands on whole output pixels.
    """
    if size <= tile:
        return [0]
    unit = max(1, round(1 / scale))
    stride = max(unit, int(tile * (1 - OVERLAP)) // unit * unit)
    starts = list(range(0, size - tile, stride))
    return [*starts, size - tile]


def ramp(size: int, device: torch.device) -> Tensor:
    """Weights along a side of a tile: rising over a quarter, flat, falling over a quarter."""
    edge = max(1, int(size * OVERLAP))
    distance = torch.arange(size, device=device, dtype=torch.float32)
    from_edge = torch.minimum(distance, distance.flip(0)) + 1
    return (from_edge / (edge + 1)).clamp(max=1.0)
