"""The four places: what stands along the horizon, and what stands beside the road.

Everything here is drawn from the layout's `scenery` seed.  The numbers that are drawn do
not depend on the weather: the same peaks stand in the sun and in the snow.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from roads.world.canvas import Array, Canvas, Colour, Pen, Point, rgb
from roads.world.light import WHITE, Light
from roads.world.road import Road
from roads.world.scene import Scene


def forest_far(canvas: Canvas, scene: Scene, light: Light, rng: np.random.Generator) -> None:
    """Two ranks of conifers along the horizon."""
    for distance, height, colour in (
        (0.85, 0.15, (0.20, 0.36, 0.24)),
        (0.55, 0.11, (0.13, 0.29, 0.15)),
    ):
        trees: list[tuple[float, float, float]] = []
        x = -0.02
        while x < 1.02:
            trees.append((x, scene.layout.horizon + 0.012, height * rng.uniform(0.6, 1.25)))
            x += height * rng.uniform(0.28, 0.42)
        paint_conifers(canvas, light, trees, colour, distance)


def paint_conifers(
    canvas: Canvas,
    light: Light,
    trees: Sequence[tuple[float, float, float]],
    colour: Colour,
    distance: float,
) -> None:
    """Conifers at (x, y of the foot, height), with snow on their upper sides."""

    def tiers(pen: Pen, lift: float, width: float) -> None:
        for x, foot, height in trees:
            for low, high, half in ((0.12, 0.55, 0.27), (0.36, 0.78, 0.21), (0.60, 1.0, 0.14)):
                base = foot - (low + lift) * height
                half *= width * height
                pen.polygon([(x - half, base), (x, foot - high * height), (x + half, base)])

    def trunks(pen: Pen) -> None:
        for x, foot, height in trees:
            pen.box(x - 0.03 * height, foot - 0.15 * height, x + 0.03 * height, foot)

    canvas.paint(light.on((0.30, 0.20, 0.13), distance), canvas.shape(trunks))
    canvas.paint(light.on(colour, distance), canvas.shape(lambda pen: tiers(pen, 0.0, 1.0)))
    if light.snow:
        snow = canvas.shape(lambda pen: tiers(pen, 0.20, 0.62))
        canvas.paint(light.on(WHITE, distance), snow * (0.9 - 0.5 * distance))


def mountains_far(canvas: Canvas, scene: Scene, light: Light, rng: np.random.Generator) -> None:
    """A few great peaks with a bright and a shaded face and white caps; foothills before."""
    horizon = scene.layout.horizon + 0.01
    count = int(rng.integers(3, 5))
    order = rng.permutation(count)
    for rank, k in enumerate(order):
        near = rank / count
        x = (k + rng.uniform(0.2, 0.8)) / count
        top = horizon - rng.uniform(0.17, 0.30)
        half = (horizon - top) * rng.uniform(0.85, 1.15)
        ridge = x + half * rng.uniform(-0.12, 0.22)  # where the two faces meet, at the foot
        peak = (x, top)
        left, right, foot = (x - half, horizon), (x + half, horizon), (ridge, horizon)
        rock, cap = light.snowed((0.47, 0.46, 0.52), 0.25), WHITE
        distance = 0.75 - 0.4 * near
        both = canvas.polygon([left, peak, right])
        shade = canvas.polygon([foot, peak, right])
        summer_line = rng.uniform(0.30, 0.42)  # drawn in winter too: see above
        line = 0.72 if light.snow else summer_line
        cover = canvas.polygon(snow_cap(peak, left, foot, right, line))
        canvas.paint(light.on(rock, distance), both)
        canvas.paint(light.on(rgb(rock) * 0.68, distance), shade)
        canvas.paint(light.on(cap, 0.6 * distance), np.minimum(cover, both))
        blue_shade = rgb(cap) * rgb([0.72, 0.78, 0.9])
        canvas.paint(light.on(blue_shade, 0.6 * distance), np.minimum(cover, shade))
    hill = hills(rng, horizon, 0.035, 0.05)
    green = light.snowed((0.30, 0.44, 0.24), 0.8)
    canvas.paint(light.on(green, 0.5), canvas.polygon(hill))


def snow_cap(peak: Point, left: Point, foot: Point, right: Point, line: float) -> list[Point]:
    """The white upper part of a peak, down to the share `line` of its height, jagged below."""

    def down(corner: Point, share: float) -> Point:
        return (
            peak[0] + share * (corner[0] - peak[0]),
            peak[1] + share * (corner[1] - peak[1]),
        )

    left_half = (0.5 * (left[0] + foot[0]), foot[1])
    right_half = (0.5 * (right[0] + foot[0]), foot[1])
    return [
        peak,
        down(left, line),
        down(left_half, 0.75 * line),
        down(foot, 1.25 * line),
        down(right_half, 0.70 * line),
        down(right, line),
    ]


def hills(rng: np.random.Generator, horizon: float, low: float, high: float) -> list[Point]:
    """A soft ridge above the horizon, as a polygon."""
    phase, pace = rng.uniform(0, 6.28, 2), rng.uniform((3, 7), (6, 12))
    x = np.linspace(0, 1, 33)
    wave = 0.5 + 0.3 * np.sin(pace[0] * x + phase[0]) + 0.2 * np.sin(pace[1] * x + phase[1])
    top = horizon - low - (high - low) * wave
    ridge = [(float(a), float(b)) for a, b in zip(x, top, strict=True)]
    return [(0.0, horizon + 0.02), *ridge, (1.0, horizon + 0.02)]


def desert_far(canvas: Canvas, scene: Scene, light: Light, rng: np.random.Generator) -> None:
    """Flat-topped red rocks behind dunes."""
    horizon = scene.layout.horizon + 0.01
    count = int(rng.integers(2, 4))
    for k in rng.permutation(count):
        x = (k + rng.uniform(0.2, 0.8)) / count
        half, height = rng.uniform(0.08, 0.15), rng.uniform(0.09, 0.17)
        top, knee = horizon - height, horizon - 0.55 * height
        outline = [
            (x - 1.5 * half, horizon), (x - half, knee), (x - 0.86 * half, top),
            (x + 0.80 * half, top), (x + half, knee), (x + 1.6 * half, horizon),
        ]  # fmt: skip
        shaded = [
            (x + 0.25 * half, top), (x + 0.80 * half, top), (x + half, knee),
            (x + 1.6 * half, horizon), (x + 0.4 * half, horizon),
        ]  # fmt: skip
        rock = (0.76, 0.38, 0.22)
        canvas.paint(light.on(rock, 0.35), canvas.polygon(outline))
        canvas.paint(light.on((0.55, 0.26, 0.18), 0.35), canvas.polygon(shaded))
        if light.snow:
            rim = canvas.box(x - 0.88 * half, top, x + 0.82 * half, top + 0.025)
            canvas.paint(light.on(WHITE, 0.3), rim)
    for distance, rise, sand in (
        (0.5, 0.05, (0.84, 0.62, 0.36)),
        (0.3, 0.028, (0.91, 0.72, 0.44)),
    ):
        dune = hills(rng, horizon, 0.006, rise)
        canvas.paint(light.on(light.snowed(sand, 0.7), distance), canvas.polygon(dune))


def city_far(canvas: Canvas, scene: Scene, light: Light, rng: np.random.Generator) -> None:
    """A hazy skyline across the horizon."""
    foot = scene.layout.horizon + 0.015
    x = -0.03
    boxes = []
    while x < 1.0:
        width = rng.uniform(0.06, 0.11)
        boxes.append((x, foot - rng.uniform(0.08, 0.24), x + width, foot))
        x += width
    for tone, every_other in (
        ((0.53, 0.57, 0.66), boxes[0::2]),
        ((0.46, 0.50, 0.60), boxes[1::2]),
    ):
        canvas.paint(light.on(tone, 0.75), canvas.boxes(every_other))


def forest_near(
    canvas: Canvas, scene: Scene, light: Light, road: Road, rng: np.random.Generator
) -> None:
    """Conifers at both sides, the farther rows first."""
    for s, distance in ((0.13, 0.45), (0.22, 0.3), (0.36, 0.1)):
        trees = []
        for side in (-1, 1):
            offset = 1.45 + rng.uniform(0.0, 0.5)
            while abs(road.at(side * offset, s) - 0.5) < 0.62:
                tall = (0.85 * s + 0.10) * rng.uniform(0.8, 1.25)
                trees.append((road.at(side * offset, s), road.y(s), tall))
                offset += rng.uniform(0.9, 1.8)
        green = rng.uniform(0.85, 1.15)
        paint_conifers(canvas, light, trees, (0.10 * green, 0.33 * green, 0.13), distance)


def mountains_near(
    canvas: Canvas, scene: Scene, light: Light, road: Road, rng: np.random.Generator
) -> None:
    """Boulders in the meadow."""
    for s in (0.16, 0.26, 0.42):
        for side in (-1, 1):
            offset = 1.5 + rng.uniform(0, 1.6)
            x, y = road.at(side * offset, s), road.y(s)
            r = s * rng.uniform(0.16, 0.26)
            rock = [
                (x - r, y), (x - 0.75 * r, y - 0.55 * r), (x - 0.1 * r, y - 0.8 * r),
                (x + 0.7 * r, y - 0.5 * r), (x + r, y),
            ]  # fmt: skip
            cap = [
                (x - 0.75 * r, y - 0.55 * r), (x - 0.1 * r, y - 0.8 * r),
                (x + 0.7 * r, y - 0.5 * r), (x, y - 0.35 * r),
            ]  # fmt: skip
            canvas.paint(light.on((0.42, 0.41, 0.42), 0.6 - s), canvas.polygon(rock))
            top = light.snowed((0.58, 0.57, 0.57), 1.0)
            canvas.paint(light.on(top, 0.6 - s), canvas.polygon(cap))


def desert_near(
    canvas: Canvas, scene: Scene, light: Light, road: Road, rng: np.random.Generator
) -> None:
    """Saguaro cacti."""
    for s in (0.15, 0.24, 0.38):
        plants = []
        for side in (-1, 1):
            offset = 1.4 + rng.uniform(0, 1.4)
            height = (0.62 * s + 0.05) * rng.uniform(0.85, 1.2)
            turn = int(rng.choice((-1, 1)))
            plants.append((road.at(side * offset, s), road.y(s), height, turn))
        canvas.paint(light.on((0.20, 0.44, 0.20), 0.5 - s), cacti(canvas, plants))


def cacti(canvas: Canvas, plants: Sequence[tuple[float, float, float, int]]) -> Array:
    """The coverage of cacti (x, y of the foot, height, side of the lower arm)."""

    def stems(pen: Pen) -> None:
        for x, foot, h, turn in plants:
            r = 0.085 * h
            pen.round_box(x - r, foot - h, x + r, foot, r)
            for direction, low, high in ((turn, 0.40, 0.78), (-turn, 0.52, 0.90)):
                arm = x + direction * 0.26 * h
                pen.round_box(
                    min(x, arm) - 0.8 * r, foot - (low + 0.12) * h,
                    max(x, arm) + 0.8 * r, foot - low * h, 0.8 * r,
                )  # fmt: skip
                pen.round_box(
                    arm - 0.8 * r, foot - high * h, arm + 0.8 * r, foot - low * h, 0.8 * r
                )

    return canvas.shape(stems)


def city_near(
    canvas: Canvas, scene: Scene, light: Light, road: Road, rng: np.random.Generator
) -> None:
    """Towers on both sides, the farther first, with rows of windows."""
    tones = ((0.66, 0.60, 0.54), (0.50, 0.47, 0.50), (0.58, 0.44, 0.38), (0.44, 0.50, 0.56))
    for s, offset in ((0.10, 1.5), (0.16, 1.9), (0.24, 2.1)):
        for side in (-1, 1):
            inner = road.at(side * (offset + rng.uniform(0, 0.5)), s)
            width, height = rng.uniform(0.13, 0.19), 0.20 + s * rng.uniform(0.6, 1.3)
            left, right = sorted((inner, inner + side * width))
            foot, tone = road.y(s), tones[int(rng.integers(len(tones)))]
            top = foot - height
            lit = rng.random((8, 2))
            canvas.paint(light.on(tone, 0.5 - 1.5 * s), canvas.box(left, top, right, foot))
            shown: dict[bool, list[tuple[float, float, float, float]]] = {False: [], True: []}
            for j, row in enumerate(np.arange(top + 0.04, foot - 0.06, 0.078)):
                for k, column in enumerate((left + 0.30 * width, left + 0.70 * width)):
                    window = (column - 0.021, row, column + 0.021, row + 0.045)
                    shown[light.dark and bool(lit[j % 8, k] < 0.5)].append(window)
            canvas.paint(light.on((0.30, 0.36, 0.45), 0.4 - s), canvas.boxes(shown[False]))
            if light.dark:
                canvas.paint((0.98, 0.80, 0.42), canvas.boxes(shown[True]))
            if light.snow:
                rim = canvas.box(left, top - 0.012, right, top + 0.012)
                canvas.paint(light.on(WHITE, 0.1), rim)


BACKGROUNDS = {
    "forest": forest_far,
    "mountains": mountains_far,
    "desert": desert_far,
    "city": city_far,
}
FOREGROUNDS = {
    "forest": forest_near,
    "mountains": mountains_near,
    "desert": desert_near,
    "city": city_near,
}
