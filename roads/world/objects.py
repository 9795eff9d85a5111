"""The objects that stand on the ground: house, streetlights, car."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from roads.world.canvas import Array, Canvas, Pen, rgb
from roads.world.light import WHITE, Light
from roads.world.road import Road
from roads.world.scene import Scene

CAR_PAINT = {
    "red": (0.86, 0.09, 0.08),
    "blue": (0.08, 0.25, 0.88),
    "yellow": (1.00, 0.80, 0.05),
    "white": (0.97, 0.97, 0.98),
}
HOUSE_WALLS = {
    "cream": (0.93, 0.84, 0.68),
    "brick": (0.70, 0.36, 0.27),
    "ochre": (0.88, 0.64, 0.30),
}


def paint_house(canvas: Canvas, scene: Scene, light: Light, road: Road) -> None:
    """A gabled house at the roadside: walls, roof, door, two windows lit by night."""
    layout = scene.layout
    side = -1 if layout.house_side == "left" else 1
    s = 0.24
    width = layout.house_size
    near = road.at(side * 1.25, s) + side * 0.5 * width
    edge = 0.5 + side * (0.5 - 0.45 * width)
    x = float(np.clip(near + layout.house_shift * (edge - near), 0.45 * width, 1 - 0.45 * width))
    half, foot = 0.5 * width, road.y(s)
    wall_top, ridge = foot - 0.55 * width, foot - 1.05 * width

    def walls(pen: Pen) -> None:
        pen.polygon([
            (x - 0.9 * half, foot), (x - 0.9 * half, wall_top), (x, ridge + 0.02),
            (x + 0.9 * half, wall_top), (x + 0.9 * half, foot),
        ])  # fmt: skip

    def roof(pen: Pen) -> None:
        eaves, thick = wall_top + 0.03, 0.17 * width
        pen.polygon([
            (x - 1.12 * half, eaves), (x, ridge - 0.02), (x + 1.12 * half, eaves),
            (x + 1.12 * half - 0.01, eaves - thick), (x, ridge - 0.02 - thick),
            (x - 1.12 * half + 0.01, eaves - thick),
        ])  # fmt: skip
        pen.box(x + 0.45 * half, ridge - 0.05, x + 0.68 * half, wall_top - 0.03)  # chimney

    def blanket(pen: Pen) -> None:  # snow, on the upper half of the roof
        pen.polygon([
            (x - 1.08 * half, wall_top - 0.07 * width), (x, ridge - 0.02 - 0.09 * width),
            (x + 1.08 * half, wall_top - 0.07 * width), (x + 1.06 * half, wall_top - 0.15 * width),
            (x, ridge - 0.03 - 0.19 * width), (x - 1.06 * half, wall_top - 0.15 * width),
        ])  # fmt: skip

    def door(pen: Pen) -> None:
        pen.box(x - 0.14 * half, foot - 0.30 * width, x + 0.18 * half, foot)

    def windows(pen: Pen) -> None:
        for shift in (-0.55, 0.55):
            centre, half_window = x + shift * half, 0.17 * half
            pen.box(
                centre - half_window, foot - 0.40 * width,
                centre + half_window, foot - 0.20 * width,
            )  # fmt: skip

    own = 0.22 if light.dark else 0.0
    shadow = canvas.spot(x, foot, half, 0.012) * 0.5
    canvas.paint(light.on((0.2, 0.2, 0.2), 0.3), shadow, "house", effect=True)
    colour = HOUSE_WALLS[layout.house_walls]
    canvas.paint(light.on(colour, 0.12, own), canvas.shape(walls), "house")
    canvas.paint(light.on((0.58, 0.17, 0.12), 0.12, own), canvas.shape(roof), "house")
    if light.snow:
        canvas.paint(light.on(WHITE), canvas.shape(blanket), "house")
    canvas.paint(light.on((0.34, 0.20, 0.13), 0.1, own), canvas.shape(door), "house")
    if light.dark:
        canvas.paint((1.0, 0.82, 0.40), canvas.shape(windows), "house")
        for shift in (-0.55, 0.55):
            spot = canvas.spot(x + shift * half, foot - 0.3 * width, 0.05, 0.05)
            canvas.glow((0.9, 0.6, 0.25), spot * 0.4, "house")
    else:
        canvas.paint(light.on((0.24, 0.32, 0.42)), canvas.shape(windows), "house")


def paint_streetlights(canvas: Canvas, scene: Scene, light: Light, road: Road) -> None:
    """A row of poles with an arm over the road; by night a halo and a pool of light each."""
    layout = scene.layout
    sides = {"left": (-1,), "right": (1,), "both": (-1, 1)}[layout.light_side]
    first = 1.75 + 0.75 * layout.light_phase
    scales = [1 / z for z in (first + 3.4, first + 1.4, first)]
    lamps = []
    for s in scales:
        for side in sides:
            x, foot = road.at(side * 1.10, s), road.y(s)
            height = 1.02 * s
            lamps.append((s, x, foot, foot - height, x - side * 0.26 * s))

    def poles(pen: Pen) -> None:
        for s, x, foot, top, head in lamps:
            half = max(0.008, 0.026 * s)
            pen.box(x - half, top, x + half, foot)
            pen.polygon([
                (x - half, top - half), (x + half, top - half), (x + half, top + half),
                (head, top + 0.6 * half), (head, top - 1.4 * half), (x - half, top - half),
            ])  # fmt: skip

    def heads(pen: Pen) -> None:
        for s, x, _foot, top, head in lamps:
            left, right = sorted((head - 0.035 * s, head + (x - head) * 0.45))
            pen.round_box(left, top - 0.02 * s, right, top + max(0.012, 0.035 * s), 0.01 * s)

    if light.dark:
        # The pools first: they lie on the ground, the poles stand in them.
        for s, _x, foot, _top, head in lamps:
            pool = canvas.spot(head, foot, 0.42 * s, 0.10 * s)
            canvas.glow((0.85, 0.62, 0.28), pool * 0.55, "streetlights")
            cone = light_cone(canvas, head, foot, s)
            canvas.glow((0.95, 0.72, 0.36), cone * 0.22, "streetlights")
    if light.wet:

        def mirrored(pen: Pen) -> None:
            for s, x, foot, top, _head in lamps:
                half = max(0.008, 0.026 * s)
                pen.box(x - half, foot, x + half, foot + 0.5 * (foot - top))

        mirror = canvas.shape(mirrored) * 0.35
        canvas.paint(light.on((0.2, 0.2, 0.22)), mirror, "streetlights", effect=True)
    canvas.paint(light.on((0.25, 0.26, 0.28), 0.1), canvas.shape(poles), "streetlights")
    if light.dark:
        canvas.paint((1.0, 0.90, 0.62), canvas.shape(heads), "streetlights")
        for s, _x, _foot, top, head in lamps:
            halo = canvas.spot(head, top, 0.17 * s + 0.012, 0.17 * s + 0.012)
            canvas.glow((1.0, 0.80, 0.45), halo * 0.85, "streetlights")
    else:
        glass = light.snowed((0.88, 0.88, 0.82))
        canvas.paint(light.on(glass, 0.05), canvas.shape(heads), "streetlights")


def light_cone(canvas: Canvas, x: float, foot: float, s: float) -> Array:
    """The lit air below a lamp."""
    top = foot - 1.02 * s
    down = np.clip((canvas.y - top) / (foot - top), 0, 1)
    spread = 0.05 * s + 0.36 * s * down
    inside = np.clip(1.4 - np.abs(canvas.x - x) / spread * 1.2, 0, 1)
    within = (canvas.y > top) & (canvas.y < foot)
    return inside * within * (1 - 0.5 * down)


def paint_car(canvas: Canvas, scene: Scene, light: Light, road: Road) -> None:
    """A car in our lane, seen from behind, or one that comes towards us."""
    layout = scene.layout
    oncoming = layout.car_lane == "oncoming"
    s = 0.62 - 0.15 * layout.car_distance
    x, foot = road.at(-0.5 if oncoming else 0.5, s), road.y(s)
    half = 0.36 * road.half(s)
    x = min(max(x, 0.9 * half), 1 - 0.9 * half)
    own = 0.62 if light.dark else 0.10
    paint = light.on(CAR_PAINT[scene.car], 0.0, own)
    car = Car(canvas, x, foot, half)

    if light.wet:
        depth = 0.8 * half
        mirror = canvas.shape(
            lambda pen: pen.round_box(x - half, foot, x + half, foot + depth, 0.1 * half)
        )
        fade = np.clip(1 - (canvas.y - foot) / depth, 0, 1)
        canvas.paint(paint, mirror * 0.6 * fade, "car", effect=True)
    shadow = canvas.spot(x, foot + 0.02 * half, 1.2 * half, 0.14 * half)
    canvas.paint((0.03, 0.03, 0.05), shadow * 0.75, "car", effect=True)

    canvas.paint((0.05, 0.05, 0.06), canvas.shape(car.wheels), "car")
    canvas.paint(paint, canvas.shape(car.body), "car")
    canvas.paint(paint * 0.80, canvas.shape(car.cabin), "car")
    glass = light.on((0.16, 0.22, 0.29), 0.0, 0.0) if light.dark else light.on((0.20, 0.27, 0.34))
    canvas.paint(glass, canvas.shape(car.window), "car")
    canvas.paint(paint * 0.62, canvas.shape(car.bumper), "car")
    if oncoming:
        canvas.paint((0.12, 0.12, 0.13), canvas.shape(car.grille), "car")
        lamp, halo, reach = (1.0, 0.98, 0.85), (1.0, 0.95, 0.75), 0.42
    else:
        canvas.paint(light.on((0.9, 0.9, 0.85), 0, own), canvas.shape(car.plate), "car")
        lamp, halo, reach = (1.0, 0.10, 0.06), (1.0, 0.10, 0.05), 0.30
    lit = 1.0 if light.dark else 0.85
    canvas.paint(rgb(lamp) * lit, canvas.shape(car.lamps), "car")
    if light.dark:
        for side in (-1, 1):
            lx, ly = x + side * 0.74 * half, foot - 0.60 * half
            spot = canvas.spot(lx, ly, reach * half, reach * half)
            canvas.glow(halo, spot * 0.85, "car")
            beam = canvas.spot(lx, foot + 0.35 * half, 0.5 * half, 0.40 * half)
            canvas.glow(halo, beam * 0.40, "car")


@dataclass(frozen=True)
class Car:
    """The parts of a car, as shapes around its foot point; `half` is half its width."""

    canvas: Canvas
    x: float
    foot: float
    half: float

    def box(self, pen: Pen, left: float, low: float, right: float, high: float, r: float) -> None:
        """A rounded box in units of `half`, x from the middle, y up from the ground."""
        x, foot, half = self.x, self.foot, self.half
        pen.round_box(
            x + left * half, foot - high * half, x + right * half, foot - low * half, r * half
        )

    def wheels(self, pen: Pen) -> None:
        self.box(pen, -0.90, -0.02, -0.58, 0.40, 0.08)
        self.box(pen, 0.58, -0.02, 0.90, 0.40, 0.08)

    def body(self, pen: Pen) -> None:
        self.box(pen, -1.0, 0.20, 1.0, 0.88, 0.16)

    def cabin(self, pen: Pen) -> None:
        self.trapezium(pen, 0.80, 0.86, 0.62, 1.42)

    def window(self, pen: Pen) -> None:
        self.trapezium(pen, 0.69, 0.88, 0.54, 1.32)

    def bumper(self, pen: Pen) -> None:
        self.box(pen, -1.0, 0.20, 1.0, 0.34, 0.06)

    def plate(self, pen: Pen) -> None:
        self.box(pen, -0.22, 0.42, 0.22, 0.58, 0.02)

    def grille(self, pen: Pen) -> None:
        self.box(pen, -0.40, 0.40, 0.40, 0.58, 0.05)

    def lamps(self, pen: Pen) -> None:
        self.box(pen, -0.94, 0.50, -0.56, 0.72, 0.06)
        self.box(pen, 0.56, 0.50, 0.94, 0.72, 0.06)

    def trapezium(self, pen: Pen, wide: float, low: float, narrow: float, high: float) -> None:
        x, foot, half = self.x, self.foot, self.half
        pen.polygon([
            (x - wide * half, foot - low * half), (x - narrow * half, foot - high * half),
            (x + narrow * half, foot - high * half), (x + wide * half, foot - low * half),
        ])  # fmt: skip
