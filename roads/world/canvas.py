"""The canvas that the world is painted on: shapes, colours, light, and who owns a pixel.

Positions are fractions of the image (0, 0 is the top left corner), so that a scene can
be painted at any size.  Pillow draws shapes at `SUPERSAMPLE` times the image's size;
averaged down they are a soft coverage in [0, 1].  Colours are plain RGB in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from pare.runtime.short_repr import short_repr
from roads.world.scene import OBJECTS

SUPERSAMPLE = 3

Array = npt.NDArray[np.floating[Any]]
Colour = Sequence[float] | Array  # (3,) or one colour a pixel (H, W, 3)
Point = tuple[float, float]


def rgb(colour: Colour) -> Array:
    """A colour as an array, to calculate with."""
    return np.asarray(colour, dtype=np.float32)


@dataclass(frozen=True)
class Rendering:
    """A rendered scene.  pixels (H, W, 3) uint8; masks and reach: name -> (H, W) bool."""

    pixels: npt.NDArray[np.uint8]
    masks: dict[str, npt.NDArray[np.bool_]]
    reach: dict[str, npt.NDArray[np.bool_]]

    __repr__ = short_repr


class Pen:
    """Draws shapes, in fractions of the image, into one coverage mask."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.scale = size * SUPERSAMPLE
        self.image = Image.new("L", (self.scale, self.scale))
        self.draw = ImageDraw.Draw(self.image)

    def polygon(self, points: Sequence[Point]) -> None:
        self.draw.polygon([(x * self.scale, y * self.scale) for x, y in points], fill=255)

    def box(self, left: float, top: float, right: float, bottom: float) -> None:
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)])

    def round_box(
        self, left: float, top: float, right: float, bottom: float, radius: float
    ) -> None:
        corners = [v * self.scale for v in (left, top, right, bottom)]
        self.draw.rounded_rectangle(corners, radius * self.scale, fill=255)

    def ellipse(self, x: float, y: float, rx: float, ry: float) -> None:
        corners = [v * self.scale for v in (x - rx, y - ry, x + rx, y + ry)]
        self.draw.ellipse(corners, fill=255)

    def coverage(self) -> Array:
        small = self.image.reduce(SUPERSAMPLE)
        return np.asarray(small, dtype=np.float32) / 255


class Canvas:
    """The image while it is painted, with the masks of what was painted."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.rgb = np.zeros((size, size, 3), dtype=np.float32)
        self.masks: dict[str, Array] = {}  # an object's are there from its first paint on
        self.reach: dict[str, Array] = {}
        self.nothing = np.zeros((size, size), dtype=np.float32)
        axis = (np.arange(size, dtype=np.float32) + 0.5) / size
        self.x, self.y = axis[None, :], axis[:, None]

    def shape(self, draw: Callable[[Pen], None]) -> Array:
        """The coverage (H, W) of what `draw` draws."""
        pen = Pen(self.size)
        draw(pen)
        return pen.coverage()

    def polygon(self, points: Sequence[Point]) -> Array:
        """The coverage (H, W) of one polygon."""
        return self.shape(lambda pen: pen.polygon(points))

    def box(self, left: float, top: float, right: float, bottom: float) -> Array:
        """The coverage (H, W) of one upright rectangle."""
        return self.shape(lambda pen: pen.box(left, top, right, bottom))

    def boxes(self, corners: Sequence[tuple[float, float, float, float]]) -> Array:
        """The coverage (H, W) of many rectangles (left, top, right, bottom)."""

        def draw(pen: Pen) -> None:
            for left, top, right, bottom in corners:
                pen.box(left, top, right, bottom)

        return self.shape(draw)

    def paint(
        self, colour: Colour, cover: Array, owner: str | None = None, effect: bool = False
    ) -> None:
        """Lay `colour` over the image where `cover` (H, W) in [0, 1] says so.

        `owner` names the object that the paint belongs to; with `effect`, it is not the
        object itself but something that it casts: a shadow, a reflection.
        """
        colour = rgb(colour)
        self.rgb += (colour - self.rgb) * cover[..., None]
        if not effect:
            for mask in self.masks.values():
                mask *= 1 - cover
        if owner is not None:
            self.reach[owner] = np.maximum(self.reach.get(owner, self.nothing), cover)
            if not effect:
                self.masks[owner] = self.masks.get(owner, self.nothing) + cover

    def glow(self, colour: Colour, strength: Array, owner: str | None = None) -> None:
        """Add light of `strength` (H, W)."""
        light = rgb(colour) * strength[..., None]
        self.rgb += (1 - self.rgb) * np.clip(light, 0, 1)
        if owner is not None:
            self.reach[owner] = np.maximum(self.reach.get(owner, self.nothing), strength)

    def spot(self, x: float, y: float, rx: float, ry: float) -> Array:
        """A soft round spot, 1 in the middle, falling off like a Gaussian, cut at 1/100."""
        spot = np.exp(-(((self.x - x) / rx) ** 2) - ((self.y - y) / ry) ** 2)
        return np.where(spot < 0.01, 0, spot).astype(np.float32)

    def finish(self) -> Rendering:
        pixels = np.round(np.clip(self.rgb, 0, 1) * 255).astype(np.uint8)
        return Rendering(
            pixels=pixels,
            masks={name: self.masks.get(name, self.nothing) > 0.5 for name in OBJECTS},
            reach={name: self.reach.get(name, self.nothing) > 0 for name in OBJECTS},
        )
