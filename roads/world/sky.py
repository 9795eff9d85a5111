"""The sky: its gradient, sun or moon, clouds, and the rain that falls from it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from roads.world.canvas import Array, Canvas, Pen, rgb
from roads.world.light import Light
from roads.world.scene import Scene


def paint_sky(canvas: Canvas, scene: Scene, light: Light) -> None:
    height = np.clip(canvas.y / scene.layout.horizon, 0, 1)[..., None] ** 1.2
    top, low = rgb(light.sky_top), rgb(light.sky_low)
    canvas.rgb[:] = top + (low - top) * height
    if light.dark and scene.place == "city":
        glow = canvas.spot(0.5, scene.layout.horizon, 0.9, 0.16)
        canvas.glow((0.45, 0.28, 0.16), glow * 0.8)


def paint_orb(canvas: Canvas, scene: Scene, light: Light) -> None:
    """The sun, or by night the moon; a pale disc behind rain and snow."""
    layout = scene.layout
    x, y, r = layout.orb_x, layout.orb_y * layout.horizon, layout.orb_size
    disc, halo, glow = {
        "sunny": ((1.0, 0.93, 0.45), (1.0, 0.95, 0.75), 0.75),
        "snowy": ((1.0, 0.97, 0.80), (1.0, 0.97, 0.88), 0.55),
        "rainy": ((0.90, 0.88, 0.74), (0.80, 0.80, 0.74), 0.35),
        "night": ((0.95, 0.95, 0.86), (0.55, 0.62, 0.85), 0.45),
    }[scene.weather]
    canvas.glow(halo, canvas.spot(x, y, 2.3 * r, 2.3 * r) * glow, "orb")
    canvas.paint(disc, canvas.shape(lambda pen: pen.ellipse(x, y, r, r)), "orb")
    if light.dark:

        def craters(pen: Pen) -> None:
            pen.ellipse(x - 0.30 * r, y - 0.20 * r, 0.28 * r, 0.26 * r)
            pen.ellipse(x + 0.32 * r, y + 0.30 * r, 0.22 * r, 0.20 * r)

        canvas.paint((0.80, 0.81, 0.78), canvas.shape(craters), "orb")


def paint_clouds(canvas: Canvas, scene: Scene, light: Light) -> None:
    """Two to four heaps of soft balls, lit from above."""
    rng = np.random.default_rng(scene.layout.cloud_seed)
    lit, base = {
        "sunny": ((1.0, 1.0, 1.0), (0.80, 0.86, 0.93)),
        "snowy": ((0.97, 0.98, 1.0), (0.74, 0.79, 0.86)),
        "rainy": ((0.42, 0.45, 0.50), (0.15, 0.17, 0.21)),
        "night": ((0.24, 0.27, 0.38), (0.11, 0.13, 0.22)),
    }[scene.weather]
    count = int(rng.integers(2, 5))
    slots = rng.permutation(count)
    for k in range(count):
        x = (slots[k] + rng.uniform(0.25, 0.75)) / count
        y = scene.layout.horizon * rng.uniform(0.18, 0.58)
        width = rng.uniform(0.13, 0.22)
        bumps = [(rng.uniform(-0.35, 0.35), rng.uniform(0.28, 0.42)) for _ in range(3)]
        cover = heap(canvas, x, y, width, bumps)
        depth = np.clip((canvas.y - y + 0.45 * width) / (0.7 * width), 0, 1)[..., None]
        body = rgb(lit) + (rgb(base) - rgb(lit)) * depth
        canvas.paint(np.broadcast_to(body, canvas.rgb.shape), cover * 0.94, "clouds")


def heap(
    canvas: Canvas, x: float, y: float, width: float, bumps: Sequence[tuple[float, float]]
) -> Array:
    """The coverage of one cloud: a flat base with balls (shift, radius) on it."""

    def balls(pen: Pen) -> None:
        pen.ellipse(x, y, width, 0.26 * width)
        for shift, radius in bumps:
            pen.ellipse(x + shift * width, y - 0.18 * width, radius * width, radius * width)

    return canvas.shape(balls)


def paint_rain(canvas: Canvas, rng: np.random.Generator) -> None:
    """Slanting veils of rain, and a few streaks, over everything."""
    slant = float(rng.uniform(-0.35, 0.35))
    across = canvas.x - slant * canvas.y
    phase = float(rng.uniform(0, 6.28))
    veil = 0.5 + 0.5 * np.sin(across * 17 + phase)
    fall = np.clip(1.1 - canvas.y, 0, 1)
    canvas.paint((0.72, 0.76, 0.80), 0.14 * veil * fall, effect=True)
    starts = rng.uniform((0, 0), (1, 0.9), (16, 2))

    def streaks(pen: Pen) -> None:
        for x, y in starts:
            dx = slant * 0.10
            pen.polygon([(x, y), (x + 0.006, y), (x + 0.006 + dx, y + 0.10), (x + dx, y + 0.10)])

    canvas.paint((0.85, 0.88, 0.92), 0.22 * canvas.shape(streaks), effect=True)
