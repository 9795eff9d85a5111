"""Attention maps on one page: over the image, a row for each word or pixel."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from pare.attention import Site
from pare.errors import SettingError
from pare.study.inspect.layer_table import nearest
from pare.study.record.attention_maps import (
    Among,
    By,
    LayerMap,
    Point,
    grouped,
    heat_map,
    layer_name,
)
from pare.study.record.heatmap import overlay
from pare.study.record.image_grid import gallery
from pare.study.record.self_attention import (
    AffinityRecorder,
    components_image,
    explained,
    principal_components,
)

COLUMNS = 8
LONGEST = 256  # pixels: a larger image is shown at this size
MOST_TILES = 600


@dataclass(frozen=True, eq=False)
class Tile:
    """One map of the page."""

    what: str | Point
    """The word, or the point whose pixel looks."""
    group: str
    """Of which layer, head or step; "" for all together."""
    heat: Tensor
    """(H, W) of the image: shares for a word, multiples of the mean for a pixel."""

    @property
    def name(self) -> str:
        return self.what if isinstance(self.what, str) else "pixel {:g},{:g}".format(*self.what)

    @property
    def hottest(self) -> tuple[float, float]:
        """x and y of the most looked-at place, as shares of the image."""
        height, width = self.heat.shape
        row, column = divmod(int(self.heat.argmax()), width)
        return (column + 0.5) / width, (row + 0.5) / height

    def label(self) -> str:
        """Name and group, and between which shares the colours stand."""
        return "\n".join(filter(None, (self.name, self.group, self.scale)))

    @property
    def scale(self) -> str:
        """The lowest and the highest of the map, in words."""
        show = in_percent if isinstance(self.what, str) else in_multiples
        return f"{show(float(self.heat.min()))} to {show(float(self.heat.max()))}"

    def report(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "of": self.name, "group": self.group or "all", "mean": float(self.heat.mean()),
            "lowest": float(self.heat.min()), "highest": float(self.heat.max()),
            "hottest": [round(part, 4) for part in self.hottest],
        }  # fmt: skip


def in_percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.0995 else f"{100 * share:.0f} %"


def in_multiples(factor: float) -> str:
    return f"{factor:.2g} x"


def tiles(
    maps: Sequence[LayerMap[Any]],
    whats: Sequence[str | Point],
    size: tuple[int, int],
    *,
    by: By | None = None,
    among: Among = "all",
) -> list[Tile]:
    """For each word or point, all maps together (DAAM), or a map for each group of them.

    Args:
        size: height and width of the maps.

    Raises:
        SettingError: more of them than fit on a page.
    """
    groups = {"": maps} if by is None else grouped(maps, by)
    if len(groups) * len(whats) > MOST_TILES:
        raise SettingError(
            f"{len(whats)} x {len(groups)} maps do not fit on a page",
            expected=f"at most {MOST_TILES}",
            fix="name fewer words, or fewer layers",
        )
    return [
        Tile(what, name, heat_map(group, what, size, among=among))
        for what in whats
        for name, group in groups.items()
    ]


def attention_sheet(
    image: Image.Image,
    rows: Sequence[Sequence[Tile]],
    affinities: Sequence[AffinityRecorder] = (),
) -> Image.Image:
    """The image, and the maps laid over it: words and pixels row by row, then components.

    Args:
        rows: each begins on a new line, and is broken where it is longer than the page.
        affinities: of these the first three principal components, one image each.
    """
    shown = image.copy()
    shown.thumbnail((LONGEST, LONGEST))
    single = len(rows) > 0 and all(len(row) == 1 for row in rows)
    parts = [{"the image": shown}] if not single else []
    if single:  # a map a word: one row that begins with the image
        tiles_by_label = {row[0].label(): over(shown, row[0]) for row in rows}
        parts.append({"the image": shown} | tiles_by_label)
    else:
        parts += [{tile.label(): over(shown, tile) for tile in row} for row in rows]
    if affinities:
        parts.append({components_label(a): components(a, shown.size) for a in affinities})
    return stacked([gallery(part, COLUMNS) for part in parts])


def over(image: Image.Image, tile: Tile) -> Image.Image:
    """The image under a map; with a cross where the pixel is that looks."""
    page = overlay(image, tile.heat)
    if not isinstance(tile.what, str):
        x, y = (int(part * (side - 1)) for part, side in zip(tile.what, page.size, strict=True))
        draw, arm = ImageDraw.Draw(page), max(3, page.width // 32)
        for colour, width in (("black", 3), ("white", 1)):
            draw.line((x - arm, y, x + arm, y), colour, width)
            draw.line((x, y - arm, x, y + arm), colour, width)
    return page


def components(affinity: AffinityRecorder, size: tuple[int, int]) -> Image.Image:
    """The first three principal components of a level's self-attention as red, green, blue."""
    assert affinity.grid is not None
    matrix = affinity.matrix()
    count = min(3, len(matrix))
    scores = principal_components(matrix, count)
    missing = scores.new_zeros(len(scores), 3 - count)
    return components_image(torch.cat([scores, missing], dim=1), affinity.grid, size)


def components_label(affinity: AffinityRecorder) -> str:
    shares = " + ".join(f"{100 * share:.0f}" for share in explained(affinity.matrix()))
    return f"self-attention, level {affinity.level}\ncomponents: {shares} %"


def stacked(pages: Iterable[Image.Image]) -> Image.Image:
    """Pages one below the other, on white."""
    listed = list(pages)
    width, height = max(p.width for p in listed), sum(p.height for p in listed)
    whole = Image.new("RGB", (width, height), "white")
    top = 0
    for page in listed:
        whole.paste(page, (0, top))
        top += page.height
    return whole


# --- layers by name -----------------------------------------------------------------------


def chosen_sites(sites: Iterable[Site], wanted: Sequence[str]) -> list[Site]:
    """The attention layers that one of the names or globs means; all, if there are none.

    A name is a layer's, as `pare inspect` has it ("unet.up_blocks.1.attentions.0"), or that of
    a block around it ("up_blocks.1", "mid_block").

    Raises:
        SettingError: a name that means no attention layer; the sentence has the nearest ones.
    """
    listed = list(sites)
    if not wanted:
        return listed
    found: dict[Site, None] = {}
    for name in wanted:
        matches = [site for site in listed if means(name.removeprefix("unet."), site)]
        if not matches:
            names = list(dict.fromkeys(layer_name(site) for site in listed))
            raise SettingError(
                f"{name!r} is no layer of the UNet with attention",
                expected=f"such as {', '.join(nearest(name.removeprefix('unet.'), names))}",
            )
        found |= dict.fromkeys(matches)
    return [site for site in listed if site in found]


def means(name: str, site: Site) -> bool:
    parts = site.name.split(".")
    around = [".".join(parts[:k]) for k in range(1, len(parts) + 1)]
    return any(fnmatch.fnmatchcase(outer, name) for outer in around)
