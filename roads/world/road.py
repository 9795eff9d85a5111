"""The road: the perspective that everything on the ground obeys, and its paint."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from roads.world.canvas import Canvas, Pen, Point, rgb
from roads.world.light import Light
from roads.world.scene import Layout, Scene


@dataclass(frozen=True)
class Road:
    """The road as a plane in perspective.

    `s` is the scale of things at some distance: 1 at the image's lower edge, 0 at the
    horizon (s = 1 / distance).  Everything on the ground is placed by its `s`.
    """

    layout: Layout

    @cached_property
    def start(self) -> float:
        """x of the middle line at the lower edge: we drive in the right-hand lane."""
        return 0.5 - 0.30 * self.layout.road

    def y(self, s: float) -> float:
        return self.layout.horizon + (1 - self.layout.horizon) * s

    def half(self, s: float) -> float:
        """Half the road's width."""
        return self.layout.road * s

    def middle(self, s: float) -> float:
        """x of the middle line: straight in perspective, plus a bend that grows far away."""
        straight = self.layout.vanishing + (self.start - self.layout.vanishing) * s
        return straight + 0.22 * self.layout.bend * max(0.0, 1 - s) ** 3

    def at(self, offset: float, s: float) -> float:
        """x of the point `offset` half-widths right of the middle line."""
        return self.middle(s) + offset * self.half(s)

    def strip(self, left: float, right: float, s0: float, s1: float, n: int = 24) -> list[Point]:
        """A piece of road between two offsets and two scales, as a polygon."""
        # Dense near the horizon, where the bend is.
        scales = [s0 + (s1 - s0) * (k / n) ** 1.5 for k in range(n + 1)]
        near = [(self.at(left, s), self.y(s)) for s in scales]
        far = [(self.at(right, s), self.y(s)) for s in reversed(scales)]
        return near + far


GROUND = {
    "forest": (0.24, 0.43, 0.16),
    "mountains": (0.47, 0.60, 0.30),
    "desert": (0.90, 0.72, 0.44),
    "city": (0.62, 0.60, 0.58),
}


def paint_ground(canvas: Canvas, scene: Scene, light: Light, road: Road) -> None:
    """A plane from the horizon to our feet, fading into the haze."""
    base = light.snowed(GROUND[scene.place], 0.62 if scene.place == "desert" else 0.93)
    near, far = light.on(base), light.on(base, 0.8)
    depth = np.clip((canvas.y - scene.layout.horizon) / (1 - scene.layout.horizon), 0, 1)
    blend = depth[..., None] ** 0.5
    colour = np.broadcast_to(far + (near - far) * blend, canvas.rgb.shape)
    cover = canvas.box(0, scene.layout.horizon, 1, 1)
    canvas.paint(colour, cover)


def paint_road(canvas: Canvas, scene: Scene, light: Light, road: Road) -> None:
    """Asphalt with shoulders and lines; snow leaves wheel tracks, rain a mirror."""
    far = 0.03
    kerb = (0.72, 0.71, 0.69) if scene.place == "city" else (0.60, 0.54, 0.46)
    shoulder = light.snowed(kerb)
    edge = canvas.polygon(road.strip(-1.13, 1.13, far, 1.1))
    canvas.paint(light.on(shoulder, 0.15), edge)

    surface = light.snowed((0.34, 0.34, 0.37), 0.58)
    depth = np.clip((canvas.y - scene.layout.horizon) / (1 - scene.layout.horizon), 0, 1)
    blend = depth[..., None] ** 0.6
    near, back = light.on(surface), light.on(surface, 0.8)
    asphalt = canvas.polygon(road.strip(-1, 1, far, 1.1))
    canvas.paint(np.broadcast_to(back + (near - back) * blend, canvas.rgb.shape), asphalt)

    if light.snow:  # two dark tracks in each lane

        def tracks(pen: Pen) -> None:
            for lane in (-0.5, 0.5):
                for wheel in (-0.2, 0.2):
                    offset = lane + wheel
                    pen.polygon(road.strip(offset - 0.075, offset + 0.075, far, 1.1))

        canvas.paint(light.on((0.42, 0.43, 0.47), 0.1), canvas.shape(tracks) * 0.75)

    def lines(pen: Pen) -> None:
        pen.polygon(road.strip(-0.95, -0.90, far, 1.1))
        pen.polygon(road.strip(0.90, 0.95, far, 1.1))
        z = 1.0
        while z < 14:  # dashes of equal length on the ground
            pen.polygon(road.strip(-0.028, 0.028, 1 / (z + 0.42), 1 / z, n=3))
            z += 0.95

    paint = (0.95, 0.94, 0.88)
    canvas.paint(light.on(paint, 0.1), canvas.shape(lines) * (1 - 0.65 * light.snow))

    if light.wet:  # the lower sky, mirrored: brightest far away
        sheen = asphalt * 0.62 * np.clip(1.05 - depth, 0, 1) ** 1.4
        sky = rgb(light.sky_low)
        canvas.paint(sky * 1.12, sheen)
        puddle = canvas.spot(road.at(0.75, 0.62), road.y(0.62), 0.16, 0.022)
        puddle += canvas.spot(road.at(-0.55, 0.36), road.y(0.36), 0.11, 0.016)
        canvas.paint(sky * 1.15, asphalt * np.clip(puddle, 0, 0.8))


def paint_own_headlights(canvas: Canvas, road: Road) -> None:
    """By night, the pool of light that our own car throws on the road."""
    x, y = road.at(0.45, 0.55), road.y(0.60)
    below = np.clip((canvas.y - road.y(0.06)) / 0.10, 0, 1)
    pool = canvas.spot(x, y, 0.36, 0.20) * below
    canvas.glow((0.46, 0.42, 0.32), pool * 0.9)
