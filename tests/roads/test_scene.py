"""Scenes: every field has its own random stream; counterfactuals change what they say."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roads.world.scene import (
    CARS,
    HELD_OUT,
    HELD_OUT_SEEDS,
    OBJECTS,
    PLACES,
    WEATHERS,
    Layout,
    Scene,
    draw_scene,
    held_out_scenes,
    stream,
    training_scenes,
    unseen_scenes,
)

SCENES = [draw_scene(seed) for seed in range(2000)]


def as_number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else float(sum(str(value).encode()))


def fields(scene: Scene) -> dict[str, float]:
    named = {f.name: getattr(scene, f.name) for f in dataclasses.fields(scene)}
    layout = named.pop("layout")
    named |= {f.name: getattr(layout, f.name) for f in dataclasses.fields(Layout)}
    return {name: as_number(value) for name, value in named.items()}


def test_fields_are_independent_of_each_other() -> None:
    table = np.array([list(fields(scene).values()) for scene in SCENES])
    correlation = np.corrcoef(table, rowvar=False)
    np.fill_diagonal(correlation, 0)
    # Of independent columns, 2000 samples each, 4.5 standard errors hold for all pairs.
    assert np.abs(correlation).max() < 4.5 / np.sqrt(len(SCENES))


def test_attributes_occur_as_often_as_said() -> None:
    for name, options in (("weather", WEATHERS), ("place", PLACES)):
        counts = Counter(getattr(scene, name) for scene in SCENES)
        assert set(counts) == set(options)
        assert min(counts.values()) > 0.2 * len(SCENES)
    for thing in OBJECTS:
        share = sum(scene.has(thing) for scene in SCENES) / len(SCENES)
        assert share == pytest.approx(0.72 if thing == "car" else 0.5, abs=0.05)


@given(st.integers(0, 2**40))
def test_a_seed_is_a_scene(seed: int) -> None:
    assert draw_scene(seed) == draw_scene(seed)
    assert draw_scene(seed) != draw_scene(seed + 1)


def test_streams_of_two_names_or_two_seeds_differ() -> None:
    draws = [stream(seed, name).random() for seed in (0, 1) for name in ("horizon", "bend")]
    assert len(set(draws)) == 4


@given(st.integers(0, 10**6), st.sampled_from(OBJECTS))
def test_without_takes_one_thing_away(seed: int, thing: str) -> None:
    scene = draw_scene(seed).replace(
        car="red", streetlights=True, clouds=True, house=True, orb=True
    )
    bare = scene.without(thing)
    assert scene.has(thing)
    assert not bare.has(thing)
    assert bare.layout == scene.layout
    assert [name for name in OBJECTS if bare.has(name)] == [n for n in OBJECTS if n != thing]


def test_training_sees_no_held_out_combination_and_no_held_out_layout() -> None:
    seen = training_scenes(1500)
    assert not any(scene.held_out for scene in seen)
    assert any(draw_scene(seed).held_out for seed in range(1500))
    layouts = {scene.layout for scene in seen}
    assert not layouts & {scene.layout for scene in unseen_scenes(200)}
    assert unseen_scenes(1)[0] == draw_scene(HELD_OUT_SEEDS)


def test_every_part_of_a_held_out_combination_is_seen_alone_and_in_pairs() -> None:
    seen = training_scenes(4000)
    pairs = {
        pair
        for scene in seen
        for pair in itertools.combinations((scene.weather, scene.place, scene.car), 2)
    }
    for combination in HELD_OUT:
        assert set(itertools.combinations(combination, 2)) <= pairs


def test_held_out_scenes_hold_every_held_out_combination() -> None:
    scenes = list(held_out_scenes(3))
    assert Counter((s.weather, s.place, s.car) for s in scenes) == dict.fromkeys(HELD_OUT, 3)
    assert len({scene.layout for scene in scenes}) == len(scenes)


def test_names() -> None:
    assert CARS[0] == "none"
    assert {"car", "streetlights", "clouds", "house", "orb"} == set(OBJECTS)
