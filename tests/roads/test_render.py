"""The renderer: same scene, same bits; what an object changes lies within its reach."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from roads.world.canvas import Canvas
from roads.world.light import LIGHTS
from roads.world.places import BACKGROUNDS, FOREGROUNDS
from roads.world.render import SIZE, render, scenery_stream
from roads.world.road import Road
from roads.world.scene import CARS, OBJECTS, PLACES, WEATHERS, Scene, draw_scene


def furnished(seed: int) -> Scene:
    """A scene with every object, weather and place by turns."""
    return draw_scene(seed).replace(
        weather=WEATHERS[seed % 4],
        place=PLACES[seed // 4 % 4],
        car=CARS[1 + seed % 4],
        streetlights=True,
        clouds=True,
        house=True,
        orb=True,
    )


SEEDS = range(16)  # every weather in every place


@pytest.mark.parametrize("seed", [0, 5, 10, 15])
def test_the_same_scene_gives_the_same_bits(seed: int) -> None:
    once, again = render(furnished(seed)), render(furnished(seed))
    assert np.array_equal(once.pixels, again.pixels)
    for name in OBJECTS:
        assert np.array_equal(once.masks[name], again.masks[name])


@pytest.mark.parametrize("seed", SEEDS)
def test_shapes_and_masks(seed: int) -> None:
    image = render(furnished(seed))
    assert image.pixels.shape == (SIZE, SIZE, 3)
    assert image.pixels.dtype == np.uint8
    assert image.pixels.std() > 10
    for name in OBJECTS:
        assert image.masks[name].shape == (SIZE, SIZE)
        assert (image.masks[name] <= image.reach[name]).all()
    for name in ("car", "streetlights"):  # nothing stands in front of them
        assert image.masks[name].sum() > 60


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("thing", OBJECTS)
def test_an_object_changes_its_reach_and_nothing_else(seed: int, thing: str) -> None:
    scene = furnished(seed)
    there, gone = render(scene), render(scene.without(thing))
    changed = (there.pixels != gone.pixels).any(axis=-1)
    assert not (changed & ~there.reach[thing]).any()
    assert not gone.masks[thing].any()
    assert not gone.reach[thing].any()
    if there.masks[thing].sum() > 20:
        assert changed[there.masks[thing]].mean() > 0.6  # a grey pole before grey walls


def test_by_day_and_dry_an_object_changes_little_more_than_its_own_pixels() -> None:
    scene = furnished(0)
    assert scene.weather == "sunny"
    for thing in ("house", "streetlights", "clouds"):
        there, gone = render(scene), render(scene.without(thing))
        changed = (there.pixels != gone.pixels).any(axis=-1).sum()
        assert changed < 2.5 * there.masks[thing].sum()


@pytest.mark.parametrize("seed", SEEDS)
def test_repainting_the_car_keeps_its_place(seed: int) -> None:
    red, blue = (render(furnished(seed).replace(car=colour)) for colour in ("red", "blue"))
    assert np.array_equal(red.masks["car"], blue.masks["car"])
    changed = (red.pixels != blue.pixels).any(axis=-1)
    assert not (changed & ~red.reach["car"]).any()
    assert changed[red.masks["car"]].mean() > 0.3


@pytest.mark.parametrize("seed", SEEDS)
def test_weather_keeps_every_object_in_its_place(seed: int) -> None:
    images = [render(furnished(seed).replace(weather=weather)) for weather in WEATHERS]
    for thing in ("car", "streetlights", "clouds", "orb"):
        masks = [image.masks[thing] for image in images]
        assert all((mask ^ masks[0]).mean() < 0.01 for mask in masks)
    assert all(
        np.abs(a.pixels.astype(int) - b.pixels).mean() > 10
        for k, a in enumerate(images)
        for b in images[:k]
    )


@pytest.mark.parametrize("place", PLACES)
def test_scenery_draws_the_same_numbers_in_every_weather(place: str) -> None:
    states = []
    for weather in WEATHERS:
        scene = furnished(3).replace(weather=weather, place=place)
        far, near = scenery_stream(scene, "far"), scenery_stream(scene, "near")
        light, canvas = LIGHTS[weather], Canvas(32)
        BACKGROUNDS[place](canvas, scene, light, far)
        FOREGROUNDS[place](canvas, scene, light, Road(scene.layout), near)
        states.append((far.bit_generator.state, near.bit_generator.state))
    assert all(state == states[0] for state in states)


def test_a_scene_can_be_rendered_at_any_size() -> None:
    small, large = render(furnished(6)), render(furnished(6), size=256)
    halved = large.pixels.reshape(SIZE, 2, SIZE, 2, 3).mean(axis=(1, 3))
    assert np.abs(halved - small.pixels).mean() < 4


def test_all_weathers_and_places_differ() -> None:
    prints = {
        hashlib.sha256(
            render(draw_scene(1).replace(weather=w, place=p)).pixels.tobytes()
        ).hexdigest()
        for w in WEATHERS
        for p in PLACES
    }
    assert len(prints) == len(WEATHERS) * len(PLACES)
