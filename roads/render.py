"""The one renderer: a scene becomes a picture and, for every object, two masks.

Painter's algorithm, from the sky to the car, on a float canvas of the picture's own size.
Shapes are drawn by Pillow at `SUPERSAMPLE` times that size and averaged down to a soft
coverage in [0, 1]; colours are plain RGB in [0, 1].  All positions are fractions of the
picture, so that the same scene can be rendered at any size.

Two masks per object:
- `masks[name]`: the pixels that show the object itself;
- `reach[name]`: every pixel that the object influences: itself, its shadow, its
  reflection on a wet road, its light by night.  Outside the reach, the picture with the
  object and the picture without it are equal to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from roads.scene import OBJECTS, Layout, Scene

SIZE = 128  # pixels, height and width
SUPERSAMPLE = 3

Array = npt.NDArray[np.float32]
Colour = tuple[float, float, float] | Array  # (3,) or one colour a pixel (H, W, 3)
Point = tuple[float, float]

WHITE = (0.96, 0.97, 1.0)
CAR_PAINT = {
    "red": (0.86, 0.09, 0.08),
    "blue": (0.08, 0.25, 0.88),
    "yellow": (1.00, 0.80, 0.05),
    "white": (0.97, 0.97, 0.98),
}
HOUSE_WALLS = {"cream": (0.93, 0.84, 0.68), "brick": (0.70, 0.36, 0.27), "ochre": (0.88, 0.64, 0.30)}


@dataclass(frozen=True)
class Picture:
    """A rendered scene.  pixels (H, W, 3) uint8; masks and reach: name -> (H, W) bool."""

    pixels: npt.NDArray[np.uint8]
    masks: dict[str, npt.NDArray[np.bool_]]
    reach: dict[str, npt.NDArray[np.bool_]]


def render(scene: Scene, size: int = SIZE) -> Picture:
    """Render `scene` as `size` x `size` pixels.  The same scene gives the same bits."""
    canvas = Canvas(size)
    light = LIGHTS[scene.weather].tinted(scene.layout.tint, scene.place)
    road = Road(scene.layout)

    paint_sky(canvas, scene, light)
    if scene.orb:
        paint_orb(canvas, scene, light)
    if scene.clouds:
        paint_clouds(canvas, scene, light)
    BACKGROUNDS[scene.place](canvas, scene, light, scenery_stream(scene, "far"))
    paint_ground(canvas, scene, light, road)
    paint_road(canvas, scene, light, road)
    FOREGROUNDS[scene.place](canvas, scene, light, road, scenery_stream(scene, "near"))
    if scene.weather == "night":
        paint_own_headlights(canvas, road)
    if scene.house:
        paint_house(canvas, scene, light, road)
    if scene.streetlights:
        paint_streetlights(canvas, scene, light, road)
    if scene.car != "none":
        paint_car(canvas, scene, light, road)
    if scene.weather == "rainy":
        paint_rain(canvas, scene)
    return canvas.finish()


def scenery_stream(scene: Scene, part: str) -> np.random.Generator:
    """Trees, peaks and towers are drawn from the layout's seed, the same in every weather."""
    return np.random.default_rng([scene.layout.scenery, len(part), len(scene.place)])


# ---------------------------------------------------------------------------- the canvas


class Pen:
    """Draws shapes, in fractions of the picture, into one coverage mask."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.scale = size * SUPERSAMPLE
        self.image = Image.new("L", (self.scale, self.scale))
        self.draw = ImageDraw.Draw(self.image)

    def polygon(self, points: Sequence[Point], ink: int = 255) -> None:
        self.draw.polygon([(x * self.scale, y * self.scale) for x, y in points], fill=ink)

    def box(self, left: float, top: float, right: float, bottom: float, ink: int = 255) -> None:
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], ink)

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
        return np.asarray(small, dtype=np.float32) / np.float32(255)


class Canvas:
    """The picture while it is painted, with the masks of what was painted."""

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

    def paint(
        self, colour: Colour, cover: Array, owner: str | None = None, effect: bool = False
    ) -> None:
        """Lay `colour` over the picture where `cover` (H, W) in [0, 1] says so.

        `owner` names the object that the paint belongs to; with `effect`, it is not the
        object itself but something that it casts: a shadow, a reflection.
        """
        colour = np.asarray(colour, dtype=np.float32)
        self.rgb += (colour - self.rgb) * cover[..., None]
        if not effect:
            for mask in self.masks.values():
                mask *= 1 - cover
        if owner is not None:
            self.reach[owner] = np.maximum(self.reach.get(owner, self.nothing), cover)
            if not effect:
                self.masks[owner] = self.masks.get(owner, self.nothing) + cover

    def glow(self, colour: Colour, strength: Array, owner: str | None = None) -> None:
        """Add light; `strength` (H, W) below 1/100 is cut so that light ends somewhere."""
        strength = np.where(strength < 0.01, np.float32(0), strength)
        light = np.asarray(colour, dtype=np.float32) * strength[..., None]
        self.rgb += (1 - self.rgb) * np.clip(light, 0, 1)
        if owner is not None:
            self.reach[owner] = np.maximum(self.reach.get(owner, self.nothing), strength)

    def spot(self, x: float, y: float, rx: float, ry: float) -> Array:
        """A soft round light, 1 in the middle, falling off like a Gaussian."""
        return np.exp(-(((self.x - x) / rx) ** 2) - ((self.y - y) / ry) ** 2).astype(np.float32)

    def finish(self) -> Picture:
        pixels = np.round(np.clip(self.rgb, 0, 1) * 255).astype(np.uint8)
        return Picture(
            pixels=pixels,
            masks={name: self.masks.get(name, self.nothing) > 0.5 for name in OBJECTS},
            reach={name: self.reach.get(name, self.nothing) > 0 for name in OBJECTS},
        )


# -------------------------------------------------------------------- light and geometry


@dataclass(frozen=True)
class Light:
    """What weather and time of day do to colours."""

    sky_top: tuple[float, float, float]
    sky_low: tuple[float, float, float]
    ambient: tuple[float, float, float]  # multiplies every surface colour
    haze: float  # how fast things fade into the lower sky with distance
    snow: float = 0.0  # how much of every upper surface is white
    wet: float = 0.0  # how strongly the road mirrors
    dark: bool = False  # lamps are lit

    def tinted(self, tint: float, place: str) -> Light:
        """Warmer (tint > 0) or cooler light; the place colours the lower sky."""
        warm = np.array([1 + 0.05 * tint, 1.0, 1 - 0.06 * tint])
        low = np.array(self.sky_low) * warm
        dust = {"desert": (0.99, 0.86, 0.70), "city": (0.80, 0.72, 0.62)}.get(place)
        if dust is not None:
            low += (0.35 if place == "desert" else 0.22) * np.array(dust) * low.mean()
            low *= np.array(self.sky_low).mean() / low.mean()
        return Light(
            sky_top=triple(np.array(self.sky_top) * warm),
            sky_low=triple(low),
            ambient=triple(np.array(self.ambient) * warm),
            haze=self.haze,
            snow=self.snow,
            wet=self.wet,
            dark=self.dark,
        )

    def on(self, colour: Colour, distance: float = 0.0, own: float = 0.0) -> Array:
        """`colour` under this light, faded by `distance` (0 here … 1 at the horizon).

        `own` in [0, 1] keeps a part of the colour from the dark: things in headlights.
        """
        surface = np.asarray(colour, np.float32)
        ambient = np.asarray(self.ambient, np.float32)
        lit = surface * (ambient * (1 - own) + own)
        return (lit + (np.asarray(self.sky_low, np.float32) - lit) * self.haze * distance).astype(
            np.float32
        )

    def snowed(self, colour: Colour, share: float = 1.0) -> Array:
        """A surface colour with snow on it."""
        surface = np.asarray(colour, np.float32)
        return surface + (np.asarray(WHITE, np.float32) - surface) * np.float32(self.snow * share)


def triple(colour: npt.NDArray[np.floating]) -> tuple[float, float, float]:
    r, g, b = (float(v) for v in np.clip(colour, 0, 1))
    return r, g, b


LIGHTS = {
    "sunny": Light((0.16, 0.45, 0.90), (0.72, 0.88, 0.99), (1.0, 0.99, 0.95), haze=0.45),
    "snowy": Light((0.56, 0.66, 0.80), (0.84, 0.88, 0.93), (0.86, 0.90, 0.97), haze=0.6, snow=0.92),
    "rainy": Light((0.25, 0.29, 0.35), (0.50, 0.54, 0.58), (0.56, 0.60, 0.66), haze=0.75, wet=1.0),
    "night": Light((0.02, 0.03, 0.13), (0.13, 0.17, 0.36), (0.27, 0.32, 0.50), haze=0.45, dark=True),
}


@dataclass(frozen=True)
class Road:
    """The road as a plane in perspective.

    `s` is the scale of things at some distance: 1 at the picture's lower edge, 0 at the
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


# -------------------------------------------------------------------------------- the sky


def paint_sky(canvas: Canvas, scene: Scene, light: Light) -> None:
    height = np.clip(canvas.y / scene.layout.horizon, 0, 1)[..., None] ** np.float32(1.2)
    top, low = np.float32(light.sky_top), np.float32(light.sky_low)
    canvas.rgb[:] = top + (low - top) * height
    if light.dark and scene.place == "city":
        glow = canvas.spot(0.5, scene.layout.horizon, 0.9, 0.16)
        canvas.glow((0.45, 0.28, 0.16), glow * np.float32(0.8))


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
    canvas.glow(halo, canvas.spot(x, y, 2.3 * r, 2.3 * r) * np.float32(glow), "orb")
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

        def heap(pen: Pen) -> None:
            pen.ellipse(x, y, width, 0.26 * width)  # noqa: B023 — drawn at once, below
            for shift, radius in bumps:  # noqa: B023
                lift = y - 0.18 * width  # noqa: B023
                pen.ellipse(x + shift * width, lift, radius * width, radius * width)  # noqa: B023

        cover = canvas.shape(heap)
        depth = np.clip((canvas.y - y + 0.45 * width) / (0.7 * width), 0, 1)[..., None]
        body = np.float32(lit) + (np.float32(base) - np.float32(lit)) * np.float32(depth)
        canvas.paint(np.broadcast_to(body, canvas.rgb.shape), cover * np.float32(0.94), "clouds")


# ------------------------------------------------------------------------------- far away


def forest_far(
    canvas: Canvas, scene: Scene, light: Light, rng: np.random.Generator
) -> None:
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
        canvas.paint(light.on(WHITE, distance), snow * np.float32(0.9 - 0.5 * distance))


def mountains_far(
    canvas: Canvas, scene: Scene, light: Light, rng: np.random.Generator
) -> None:
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
        both = canvas.shape(lambda pen: pen.polygon([left, peak, right]))  # noqa: B023
        shade = canvas.shape(lambda pen: pen.polygon([foot, peak, right]))  # noqa: B023
        snow_line = 0.72 if light.snow else rng.uniform(0.30, 0.42)

        def white(pen: Pen) -> None:
            at = lambda p, f: (peak[0] + f * (p[0] - peak[0]), top + f * (p[1] - top))  # noqa: E731, B023
            middle = at(foot, snow_line * 1.25)  # noqa: B023
            notch = at((0.5 * (left[0] + ridge), horizon), snow_line * 0.75)  # noqa: B023
            other = at((0.5 * (right[0] + ridge), horizon), snow_line * 0.7)  # noqa: B023
            edge, far_edge = at(left, snow_line), at(right, snow_line)  # noqa: B023
            pen.polygon([peak, edge, notch, middle, other, far_edge])  # noqa: B023

        cover = canvas.shape(white)
        canvas.paint(light.on(rock, distance), both)
        canvas.paint(light.on(np.float32(rock) * np.float32(0.68), distance), shade)
        canvas.paint(light.on(cap, 0.6 * distance), np.minimum(cover, both))
        blue_shade = np.float32(cap) * np.float32([0.72, 0.78, 0.9])
        canvas.paint(light.on(blue_shade, 0.6 * distance), np.minimum(cover, shade))
    hill = hills(rng, horizon, 0.035, 0.05)
    colour = light.snowed((0.30, 0.44, 0.24), 0.8)
    canvas.paint(light.on(colour, 0.5), canvas.shape(lambda pen: pen.polygon(hill)))


def hills(
    rng: np.random.Generator, horizon: float, low: float, high: float
) -> list[Point]:
    """A soft ridge above the horizon, as a polygon."""
    phase, pace = rng.uniform(0, 6.28, 2), rng.uniform((3, 7), (6, 12))
    x = np.linspace(0, 1, 33)
    wave = 0.5 + 0.3 * np.sin(pace[0] * x + phase[0]) + 0.2 * np.sin(pace[1] * x + phase[1])
    top = horizon - low - (high - low) * wave
    ridge = [(float(a), float(b)) for a, b in zip(x, top, strict=True)]
    return [(0.0, horizon + 0.02), *ridge, (1.0, horizon + 0.02)]


def desert_far(
    canvas: Canvas, scene: Scene, light: Light, rng: np.random.Generator
) -> None:
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
        canvas.paint(light.on(rock, 0.35), canvas.shape(lambda pen: pen.polygon(outline)))  # noqa: B023
        dark = canvas.shape(lambda pen: pen.polygon(shaded))  # noqa: B023
        canvas.paint(light.on((0.55, 0.26, 0.18), 0.35), dark)
        if light.snow:
            rim = canvas.shape(
                lambda pen: pen.box(x - 0.88 * half, top, x + 0.82 * half, top + 0.025)  # noqa: B023
            )
            canvas.paint(light.on(WHITE, 0.3), rim)
    for distance, rise, colour in ((0.5, 0.05, (0.84, 0.62, 0.36)), (0.3, 0.028, (0.91, 0.72, 0.44))):
        dune = hills(rng, horizon, 0.006, rise)
        colour = light.snowed(colour, 0.7)
        canvas.paint(light.on(colour, distance), canvas.shape(lambda pen: pen.polygon(dune)))  # noqa: B023


def city_far(canvas: Canvas, scene: Scene, light: Light, rng: np.random.Generator) -> None:
    """A hazy skyline across the horizon."""
    foot = scene.layout.horizon + 0.015
    x = -0.03
    boxes = []
    while x < 1.0:
        width = rng.uniform(0.06, 0.11)
        boxes.append((x, foot - rng.uniform(0.08, 0.24), x + width, foot))
        x += width
    for shade in (0, 1):
        tone = (0.46, 0.50, 0.60) if shade else (0.53, 0.57, 0.66)
        cover = canvas.shape(lambda pen: [pen.box(*b) for b in boxes[shade::2]] and None)  # noqa: B023
        canvas.paint(light.on(tone, 0.75), cover)


# --------------------------------------------------------------------- ground and the road

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
    blend = np.float32(depth[..., None] ** np.float32(0.5))
    colour = np.broadcast_to(far + (near - far) * blend, canvas.rgb.shape)
    cover = canvas.shape(lambda pen: pen.box(0, scene.layout.horizon, 1, 1))
    canvas.paint(colour, cover)


def paint_road(canvas: Canvas, scene: Scene, light: Light, road: Road) -> None:
    """Asphalt with shoulders and lines; snow leaves wheel tracks, rain a mirror."""
    far = 0.03
    shoulder = {"city": (0.72, 0.71, 0.69)}.get(scene.place, (0.60, 0.54, 0.46))
    shoulder = light.snowed(shoulder, 1.0)
    edge = canvas.shape(lambda pen: pen.polygon(road.strip(-1.13, 1.13, far, 1.1)))
    canvas.paint(light.on(shoulder, 0.15), edge)

    surface = light.snowed((0.34, 0.34, 0.37), 0.58)
    depth = np.clip((canvas.y - scene.layout.horizon) / (1 - scene.layout.horizon), 0, 1)
    blend = np.float32(depth[..., None] ** np.float32(0.6))
    near, back = light.on(surface), light.on(surface, 0.8)
    asphalt = canvas.shape(lambda pen: pen.polygon(road.strip(-1, 1, far, 1.1)))
    canvas.paint(np.broadcast_to(back + (near - back) * blend, canvas.rgb.shape), asphalt)

    if light.snow:  # two dark tracks in each lane

        def tracks(pen: Pen) -> None:
            for lane in (-0.5, 0.5):
                for wheel in (-0.2, 0.2):
                    offset = lane + wheel
                    pen.polygon(road.strip(offset - 0.075, offset + 0.075, far, 1.1))

        canvas.paint(light.on((0.42, 0.43, 0.47), 0.1), canvas.shape(tracks) * np.float32(0.75))

    def lines(pen: Pen) -> None:
        pen.polygon(road.strip(-0.95, -0.90, far, 1.1))
        pen.polygon(road.strip(0.90, 0.95, far, 1.1))
        z = 1.0
        while z < 14:  # dashes of equal length on the ground
            pen.polygon(road.strip(-0.028, 0.028, 1 / (z + 0.42), 1 / z, n=3))
            z += 0.95

    paint = (0.95, 0.94, 0.88)
    canvas.paint(light.on(paint, 0.1), canvas.shape(lines) * np.float32(1 - 0.65 * light.snow))

    if light.wet:  # the lower sky, mirrored: brightest far away
        sheen = asphalt * np.float32(0.62) * np.clip(1.05 - depth, 0, 1) ** np.float32(1.4)
        canvas.paint(np.float32(light.sky_low) * np.float32(1.12), sheen)
        puddle = canvas.spot(road.at(0.75, 0.62), road.y(0.62), 0.16, 0.022)
        puddle += canvas.spot(road.at(-0.55, 0.36), road.y(0.36), 0.11, 0.016)
        canvas.paint(np.float32(light.sky_low) * np.float32(1.15), asphalt * np.clip(puddle, 0, 0.8))


def paint_own_headlights(canvas: Canvas, road: Road) -> None:
    """By night, the pool of light that our own car throws on the road."""
    x, y = road.at(0.45, 0.55), road.y(0.60)
    below = np.clip((canvas.y - road.y(0.06)) / 0.10, 0, 1)
    pool = canvas.spot(x, y, 0.36, 0.20) * np.float32(below)
    canvas.glow((0.46, 0.42, 0.32), pool * np.float32(0.9))


def paint_rain(canvas: Canvas, scene: Scene) -> None:
    """Slanting veils of rain, and a few streaks, over everything."""
    rng = scenery_stream(scene, "rain")
    slant = np.float32(rng.uniform(-0.35, 0.35))
    across = canvas.x - slant * canvas.y
    phase = np.float32(rng.uniform(0, 6.28))
    veil = 0.5 + 0.5 * np.sin(across * np.float32(17) + phase)
    fall = np.clip(1.1 - canvas.y, 0, 1)
    canvas.rgb += (np.float32([0.72, 0.76, 0.80]) - canvas.rgb) * (
        np.float32(0.14) * veil * fall
    )[..., None].astype(np.float32)
    starts = rng.uniform((0, 0), (1, 0.9), (16, 2))

    def streaks(pen: Pen) -> None:
        for x, y in starts:
            dx = float(slant) * 0.10
            pen.polygon([(x, y), (x + 0.006, y), (x + 0.006 + dx, y + 0.10), (x + dx, y + 0.10)])

    canvas.rgb += (np.float32([0.85, 0.88, 0.92]) - canvas.rgb) * (
        canvas.shape(streaks) * np.float32(0.22)
    )[..., None]


# ------------------------------------------------------------------------------ near by


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
            cover = canvas.shape(lambda pen: pen.polygon(rock))  # noqa: B023
            canvas.paint(light.on((0.42, 0.41, 0.42), 0.6 - s), cover)
            top = light.snowed((0.58, 0.57, 0.57), 1.0)
            cover = canvas.shape(lambda pen: pen.polygon(cap))  # noqa: B023
            canvas.paint(light.on(top, 0.6 - s), cover)


def desert_near(
    canvas: Canvas, scene: Scene, light: Light, road: Road, rng: np.random.Generator
) -> None:
    """Saguaro cacti."""
    for s in (0.15, 0.24, 0.38):
        plants = []
        for side in (-1, 1):
            offset = 1.4 + rng.uniform(0, 1.4)
            height = (0.62 * s + 0.05) * rng.uniform(0.85, 1.2)
            plants.append((road.at(side * offset, s), road.y(s), height, rng.choice((-1, 1))))

        def cacti(pen: Pen, width: float = 1.0, lift: float = 0.0) -> None:
            for x, foot, h, turn in plants:  # noqa: B023
                r = 0.085 * h * width
                pen.round_box(x - r, foot - h, x + r, foot - lift * h, r)
                for direction, low, high in ((turn, 0.40, 0.78), (-turn, 0.52, 0.90)):
                    arm = x + direction * 0.26 * h
                    pen.round_box(
                        min(x, arm) - 0.8 * r, foot - (low + 0.12) * h,
                        max(x, arm) + 0.8 * r, foot - low * h, 0.8 * r,
                    )  # fmt: skip
                    pen.round_box(
                        arm - 0.8 * r, foot - high * h, arm + 0.8 * r, foot - low * h, 0.8 * r
                    )

        canvas.paint(light.on((0.20, 0.44, 0.20), 0.5 - s), canvas.shape(cacti))


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
            body = canvas.shape(lambda pen: pen.box(left, top, right, foot))  # noqa: B023
            canvas.paint(light.on(tone, 0.5 - 1.5 * s), body)
            columns = [left + width * (0.30 + 0.40 * k) for k in range(2)]
            rows = np.arange(top + 0.04, foot - 0.06, 0.078)

            def windows(pen: Pen, low: float, high: float) -> None:
                for j, row in enumerate(rows):  # noqa: B023
                    for k, column in enumerate(columns):  # noqa: B023
                        if low <= lit[j % 8, k] < high:  # noqa: B023
                            pen.box(column - 0.021, row, column + 0.021, row + 0.045)

            share = 0.5 if light.dark else 0.0
            glass = canvas.shape(lambda pen: windows(pen, share, 1.0))  # noqa: B023
            canvas.paint(light.on((0.30, 0.36, 0.45), 0.4 - s), glass)
            if light.dark:
                canvas.paint((0.98, 0.80, 0.42), canvas.shape(lambda pen: windows(pen, 0.0, 0.5)))  # noqa: B023
            if light.snow:
                rim = canvas.shape(lambda pen: pen.box(left, top - 0.012, right, top + 0.012))  # noqa: B023
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


# ------------------------------------------------------------------------------- objects


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
        thick = 0.17 * width
        pen.polygon([
            (x - 1.12 * half, wall_top + 0.03), (x, ridge - 0.02), (x + 1.12 * half, wall_top + 0.03),
            (x + 1.12 * half - 0.01, wall_top + 0.03 - thick), (x, ridge - 0.02 - thick),
            (x - 1.12 * half + 0.01, wall_top + 0.03 - thick),
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
    canvas.paint(light.on((0.2, 0.2, 0.2), 0.3), canvas.spot(x, foot, half, 0.012) * 0.5, "house", True)
    canvas.paint(light.on(HOUSE_WALLS[layout.house_walls], 0.12, own), canvas.shape(walls), "house")
    canvas.paint(light.on((0.58, 0.17, 0.12), 0.12, own), canvas.shape(roof), "house")
    if light.snow:
        canvas.paint(light.on(WHITE), canvas.shape(blanket), "house")
    canvas.paint(light.on((0.34, 0.20, 0.13), 0.1, own), canvas.shape(door), "house")
    if light.dark:
        canvas.paint((1.0, 0.82, 0.40), canvas.shape(windows), "house")
        for shift in (-0.55, 0.55):
            spot = canvas.spot(x + shift * half, foot - 0.3 * width, 0.05, 0.05)
            canvas.glow((0.9, 0.6, 0.25), spot * np.float32(0.4), "house")
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
            canvas.glow((0.85, 0.62, 0.28), pool * np.float32(0.55), "streetlights")
            cone = light_cone(canvas, head, foot, s)
            canvas.glow((0.95, 0.72, 0.36), cone * np.float32(0.22), "streetlights")
    if light.wet:

        def mirrored(pen: Pen) -> None:
            for s, x, foot, top, _head in lamps:
                half = max(0.008, 0.026 * s)
                pen.box(x - half, foot, x + half, foot + 0.5 * (foot - top))

        canvas.paint(light.on((0.2, 0.2, 0.22)), canvas.shape(mirrored) * np.float32(0.35), "streetlights", True)
    canvas.paint(light.on((0.25, 0.26, 0.28), 0.1), canvas.shape(poles), "streetlights")
    if light.dark:
        canvas.paint((1.0, 0.90, 0.62), canvas.shape(heads), "streetlights")
        for s, _x, _foot, top, head in lamps:
            halo = canvas.spot(head, top, 0.17 * s + 0.012, 0.17 * s + 0.012)
            canvas.glow((1.0, 0.80, 0.45), halo * np.float32(0.85), "streetlights")
    else:
        top = light.snowed((0.88, 0.88, 0.82), 1.0)
        canvas.paint(light.on(top, 0.05), canvas.shape(heads), "streetlights")


def light_cone(canvas: Canvas, x: float, foot: float, s: float) -> Array:
    """The lit air below a lamp."""
    top = foot - 1.02 * s
    down = np.clip((canvas.y - top) / (foot - top), 0, 1)
    spread = np.float32(0.05 * s) + np.float32(0.36 * s) * down
    inside = np.clip(1.4 - np.abs(canvas.x - np.float32(x)) / spread * np.float32(1.2), 0, 1)
    within = (canvas.y > top) & (canvas.y < foot)
    return (inside * within * (1 - 0.5 * down)).astype(np.float32)


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
        mirror = canvas.shape(lambda pen: pen.round_box(x - half, foot, x + half, foot + 0.8 * half, 0.1 * half))
        fade = np.clip(1 - (canvas.y - foot) / (0.8 * half), 0, 1)
        canvas.paint(paint, mirror * np.float32(0.6) * np.float32(fade), "car", True)
    shadow = canvas.spot(x, foot + 0.02 * half, 1.2 * half, 0.14 * half)
    shadow = np.where(shadow < 0.02, np.float32(0), shadow)
    canvas.paint((0.03, 0.03, 0.05), shadow * np.float32(0.75), "car", True)

    canvas.paint((0.05, 0.05, 0.06), canvas.shape(car.wheels), "car")
    canvas.paint(paint, canvas.shape(car.body), "car")
    canvas.paint(paint * np.float32(0.80), canvas.shape(car.cabin), "car")
    glass = light.on((0.16, 0.22, 0.29), 0.0, 0.0) if light.dark else light.on((0.20, 0.27, 0.34))
    canvas.paint(glass, canvas.shape(car.window), "car")
    canvas.paint(paint * np.float32(0.62), canvas.shape(car.bumper), "car")
    plate = canvas.shape(car.grille if oncoming else car.plate)
    canvas.paint((0.12, 0.12, 0.13) if oncoming else light.on((0.9, 0.9, 0.85), 0, own), plate, "car")
    if oncoming:
        lamp, halo, reach = (1.0, 0.98, 0.85), (1.0, 0.95, 0.75), 0.42
    else:
        lamp, halo, reach = (1.0, 0.10, 0.06), (1.0, 0.10, 0.05), 0.30
    lit = np.float32(1.0 if light.dark else 0.85)
    canvas.paint(np.float32(lamp) * lit, canvas.shape(car.lamps), "car")
    if light.dark:
        for side in (-1, 1):
            lx, ly = x + side * 0.74 * half, foot - 0.60 * half
            spot = canvas.spot(lx, ly, reach * half, reach * half)
            canvas.glow(halo, spot * np.float32(0.85), "car")
            beam = canvas.spot(lx, foot + 0.35 * half, 0.5 * half, 0.40 * half)
            canvas.glow(halo, beam * np.float32(0.40), "car")


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
