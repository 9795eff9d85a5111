"""A scene of the little world: what is in the image, and where.

A `Scene` is a frozen value of named attributes and a `Layout`.  Attributes say *what*
(snowy, forest, a red car); the layout says *where* (horizon, bend of the road, which
lane the car is in), also for things that are absent.  Every single field is drawn from
its own random stream, so that

- attributes and layout are independent of each other and among themselves;
- a field that is added later does not change the others;
- `dataclasses.replace(scene, weather="snowy")` is the same road under snow: an exact
  counterfactual, the ground truth of an edit.
"""

from __future__ import annotations

import dataclasses
import itertools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

WEATHERS = ("sunny", "snowy", "rainy", "night")
PLACES = ("forest", "mountains", "desert", "city")
CARS = ("none", "red", "blue", "yellow", "white")
OBJECTS = ("car", "streetlights", "clouds", "house", "orb")  # each can be present or absent

# Combinations that the training never sees, to test whether the model composes:
# (weather, place, car).
HELD_OUT = frozenset(
    {
        ("snowy", "city", "yellow"),
        ("night", "desert", "blue"),
        ("rainy", "mountains", "red"),
        ("sunny", "forest", "white"),
    }
)

# Seeds at and above this one are never used in training: held-out layouts.
HELD_OUT_SEEDS = 1_000_000


@dataclass(frozen=True)
class Layout:
    """Where things are.  Lengths are fractions of the image's height or width."""

    horizon: float  # y of the horizon, 0 = top
    vanishing: float  # x of the road's vanishing point without its bend
    bend: float  # -1 left … 1 right
    road: float  # half the road's width at the image's lower edge
    scenery: int  # seed of everything that belongs to the place: trees, peaks, towers
    tint: float  # -1 … 1: cooler or warmer light
    car_lane: str  # 'ahead' (our lane, seen from behind) or 'oncoming'
    car_distance: float  # 0 near … 1 far
    light_side: str  # streetlights at the 'left', the 'right' or 'both'
    light_phase: float  # 0 … 1: how far away the first one is
    house_side: str  # 'left' or 'right'
    house_shift: float  # 0 near the road … 1 near the image's edge
    house_size: float  # width
    house_walls: str  # colour of the walls
    cloud_seed: int  # number, places and sizes of the clouds
    orb_x: float  # sun or moon
    orb_y: float  # 0 top of the sky … 1 at the horizon
    orb_size: float  # radius


@dataclass(frozen=True)
class Scene:
    """One image of the world, as a value."""

    layout: Layout
    weather: str
    place: str
    car: str
    streetlights: bool
    clouds: bool
    house: bool
    orb: bool  # the sun; by night, the moon

    @property
    def held_out(self) -> bool:
        """Whether the training must not see this combination of attributes."""
        return (self.weather, self.place, self.car) in HELD_OUT

    def has(self, thing: str) -> bool:
        """Whether the object `thing` (one of OBJECTS) is in the scene."""
        return self.car != "none" if thing == "car" else bool(getattr(self, thing))

    def without(self, thing: str) -> Scene:
        """The same scene with the object `thing` (one of OBJECTS) taken away."""
        return self.replace(**{thing: "none" if thing == "car" else False})

    def replace(self, **changes: Any) -> Scene:
        """The same scene with some attributes changed: a counterfactual."""
        return dataclasses.replace(self, **changes)


def stream(seed: int, name: str) -> np.random.Generator:
    """The random stream of the field `name` in the scene number `seed`."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def draw_layout(seed: int) -> Layout:
    """The layout number `seed`; every field comes from its own stream."""

    def uniform(name: str, low: float, high: float) -> float:
        return float(stream(seed, name).uniform(low, high))

    def choice(name: str, options: tuple[str, ...]) -> str:
        return options[int(stream(seed, name).integers(len(options)))]

    def number(name: str) -> int:
        return int(stream(seed, name).integers(2**31))

    return Layout(
        horizon=uniform("horizon", 0.42, 0.58),
        vanishing=uniform("vanishing", 0.36, 0.64),
        bend=uniform("bend", -1.0, 1.0),
        road=uniform("road", 0.66, 0.86),
        scenery=number("scenery"),
        tint=uniform("tint", -1.0, 1.0),
        car_lane=choice("car_lane", ("ahead", "oncoming")),
        car_distance=uniform("car_distance", 0.0, 1.0),
        light_side=choice("light_side", ("left", "right", "both")),
        light_phase=uniform("light_phase", 0.0, 1.0),
        house_side=choice("house_side", ("left", "right")),
        house_shift=uniform("house_shift", 0.0, 1.0),
        house_size=uniform("house_size", 0.20, 0.28),
        house_walls=choice("house_walls", ("cream", "brick", "ochre")),
        cloud_seed=number("cloud_seed"),
        orb_x=uniform("orb_x", 0.14, 0.86),
        orb_y=uniform("orb_y", 0.16, 0.42),
        orb_size=uniform("orb_size", 0.050, 0.070),
    )


def draw_scene(seed: int) -> Scene:
    """The scene number `seed`, held-out combinations included."""

    def choice(name: str, options: tuple[str, ...], odds: tuple[float, ...]) -> str:
        return options[int(stream(seed, name).choice(len(options), p=odds))]

    def chance(name: str, odds: float) -> bool:
        return bool(stream(seed, name).random() < odds)

    return Scene(
        layout=draw_layout(seed),
        weather=choice("weather", WEATHERS, (0.25,) * 4),
        place=choice("place", PLACES, (0.25,) * 4),
        car=choice("car", CARS, (0.28, 0.18, 0.18, 0.18, 0.18)),
        streetlights=chance("streetlights", 0.5),
        clouds=chance("clouds", 0.5),
        house=chance("house", 0.5),
        orb=chance("orb", 0.5),
    )


def training_scenes(count: int) -> list[Scene]:
    """The first `count` scenes that the training may see."""
    allowed = (scene for scene in map(draw_scene, range(HELD_OUT_SEEDS)) if not scene.held_out)
    return list(itertools.islice(allowed, count))


def unseen_scenes(count: int) -> list[Scene]:
    """`count` scenes with held-out layouts; held-out combinations occur among them."""
    return [draw_scene(HELD_OUT_SEEDS + i) for i in range(count)]


def held_out_scenes(per_combination: int) -> Iterator[Scene]:
    """Scenes of every held-out combination, on held-out layouts."""
    seeds = itertools.count(HELD_OUT_SEEDS + 500_000)
    for weather, place, car in sorted(HELD_OUT):
        for seed in itertools.islice(seeds, per_combination):
            yield draw_scene(seed).replace(weather=weather, place=place, car=car)
