"""Attention maps on one page: over the image, a row for each word or pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from pare.errors import SettingError
from pare.runtime.short_repr import short_repr
from pare.study.record.attention_maps import Among, By, LayerMap, Point, grouped, heat_map
from pare.study.record.heatmap import overlay
from pare.study.record.image_grid import gallery, stacked
from pare.study.record.self_attention import (
    SelfAttentionRecorder,
    components_image,
    explained,
    principal_components,
)

COLUMNS = 8
LONGEST = 256  # pixels: a larger image is shown at this size
MOST_MAPS = 600


@dataclass(frozen=True, eq=False)
class MapTile:
    """One map of the page."""

    what: str | Point
    """The word, or the point above the query pixel."""
    group: str
    """Of which layer, head, step or stage; "" for all together."""
    heat: Tensor
    """(H, W) of the image: attention weights for a word, multiples of the mean for a pixel."""

    __repr__ = short_repr

    @property
    def name(self) -> str:
        return self.what if isinstance(self.what, str) else "pixel {:g},{:g}".format(*self.what)

    @property
    def hottest(self) -> tuple[float, float]:
        """x and y of the highest value, each in [0, 1]."""
        height, width = self.heat.shape
        row, column = divmod(int(self.heat.argmax()), width)
        return (column + 0.5) / width, (row + 0.5) / height

    def label(self) -> str:
        """Name, group and scale, a line each."""
        return "\n".join(filter(None, (self.name, self.group, self.scale)))

    @property
    def scale(self) -> str:
        """The lowest and the highest value, between which the colours are stretched."""
        show = in_percent if isinstance(self.what, str) else in_multiples
        return f"{show(float(self.heat.min()))} to {show(float(self.heat.max()))}"

    def report(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "of": self.name, "group": self.group or "all", "mean": float(self.heat.mean()),
            "lowest": float(self.heat.min()), "highest": float(self.heat.max()),
            "hottest": [round(part, 4) for part in self.hottest],
        }  # fmt: skip


def in_percent(weight: float) -> str:
    return f"{100 * weight:.2g} %" if weight < 0.0995 else f"{100 * weight:.0f} %"


def in_multiples(factor: float) -> str:
    return f"{factor:.2g} x"


def tiles(
    maps: Sequence[LayerMap[Any]],
    whats: Sequence[str | Point],
    size: tuple[int, int],
    *,
    by: By | None = None,
    among: Among = "all",
) -> list[MapTile]:
    """For each word or point the mean of all maps (DAAM), or a map for each group of them.

    Args:
        size: height and width of the maps.

    Raises:
        SettingError: more of them than fit on a page.
    """
    groups = {"": maps} if by is None else grouped(maps, by)
    if len(groups) * len(whats) > MOST_MAPS:
        raise SettingError(
            f"{len(whats)} x {len(groups)} maps do not fit on a page",
            expected=f"at most {MOST_MAPS}",
            fix="name fewer words, or fewer layers",
        )
    return [
        MapTile(what, name, heat_map(group, what, size, among=among))
        for what in whats
        for name, group in groups.items()
    ]


def attention_sheet(
    image: Image.Image,
    rows: Sequence[Sequence[MapTile]],
    matrices: Sequence[SelfAttentionRecorder] = (),
) -> Image.Image:
    """The image, and the maps laid over it: words and pixels row by row, then components.

    Args:
        rows: each begins on a new line, and is broken where it is longer than the page.
        matrices: of these the first three principal components, one image each.
    """
    shown = image.copy()
    shown.thumbnail((LONGEST, LONGEST))
    parts = [{tile.label(): map_over(shown, tile) for tile in row} for row in rows]
    if all(len(part) == 1 for part in parts):  # one row, which begins with the image
        parts = [{name: tile for part in parts for name, tile in part.items()}]
        parts[0] = {"the image": shown} | parts[0]
    else:
        parts.insert(0, {"the image": shown})
    if matrices:
        parts.append({components_label(m): components(m, shown.size) for m in matrices})
    return stacked([gallery(part, COLUMNS) for part in parts])


def map_over(image: Image.Image, tile: MapTile) -> Image.Image:
    """The image under a map; with a cross on the query pixel."""
    page = overlay(image, tile.heat)
    if not isinstance(tile.what, str):
        x, y = (int(part * (side - 1)) for part, side in zip(tile.what, page.size, strict=True))
        draw, arm = ImageDraw.Draw(page), max(3, page.width // 32)
        for colour, width in (("black", 3), ("white", 1)):
            draw.line((x - arm, y, x + arm, y), colour, width)
            draw.line((x, y - arm, x, y + arm), colour, width)
    return page


def components(recorder: SelfAttentionRecorder, size: tuple[int, int]) -> Image.Image:
    """The first three principal components of self-attention as red, green, blue."""
    assert recorder.grid is not None
    matrix = recorder.matrix()
    count = min(3, len(matrix))
    scores = principal_components(matrix, count)
    missing = scores.new_zeros(len(scores), 3 - count)
    return components_image(torch.cat([scores, missing], dim=1), recorder.grid, size)


def components_label(recorder: SelfAttentionRecorder) -> str:
    fractions = " + ".join(f"{100 * part:.0f}" for part in explained(recorder.matrix()))
    return f"self-attention, stage {recorder.stage}\ncomponents: {fractions} %"
