"""The generation figures: what a prompt asks for, and the arithmetic of the tables."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from roads.benchmark.generation import (
    Question,
    appearing,
    asked_and_found,
    found_by_group,
    layout_spread,
    nearest,
    questions,
    small,
)
from roads.judge.judge import Verdict
from roads.world.captions import ABSENT, caption, full_caption, read_caption
from roads.world.scene import OBJECTS, draw_scene


def verdict(**changes: object) -> Verdict:
    values: dict[str, object] = {
        "weather": "sunny", "place": "city", "car": "none", "streetlights": False,
        "clouds": False, "house": False, "orb": False, "probability": {},
        "cover": {name: np.zeros((16, 16)) for name in OBJECTS},
    }  # fmt: skip
    return Verdict(**{**values, **changes})  # type: ignore[arg-type]


def test_what_is_read_from_a_caption_is_true_of_its_scene() -> None:
    rng = np.random.default_rng(0)
    said: Counter[str] = Counter()
    for seed in range(400):
        scene = draw_scene(seed)
        for name, value in read_caption(caption(scene, rng, present=0.6, absent=0.6)).items():
            said[name] += 1
            if name == "car" and value == "any":
                assert scene.car != "none"
            else:
                assert getattr(scene, name) == value, name
    # Weather and place are named four times out of five, things a little more than half.
    assert all(250 < said[name] < 350 for name in ("weather", "place"))
    assert all(200 < said[name] < 300 for name in OBJECTS)


def test_a_full_caption_asks_for_everything_that_is_there() -> None:
    for seed in range(200):
        scene = draw_scene(seed)
        asked = read_caption(full_caption(scene))
        assert asked["weather"] == scene.weather
        assert asked["place"] == scene.place
        assert {name for name in OBJECTS if name in asked} == {
            name for name in OBJECTS if scene.has(name)
        }
        assert asked.get("car", "none") == scene.car


@pytest.mark.parametrize("phrase", [p for options in ABSENT.values() for p in options])
def test_every_word_for_absence_denies(phrase: str) -> None:
    (value,) = read_caption(f"a road with {phrase}").values()
    assert value in (False, "none")


def test_prompts_are_the_same_each_time_and_come_in_their_shares() -> None:
    first, again = questions(40), questions(40)
    assert first == again
    assert Counter(q.group for q in first) == {
        "full": 12, "partial": 12, "negated": 6, "held-out": 10,
    }  # fmt: skip
    assert len({q.prompt for q in first}) > 30
    assert sum(v in (False, "none") for q in first for v in q.asked.values()) > 6


ASKED = [
    Question("", {"weather": "sunny", "car": "red", "house": True}, "full"),
    Question("", {"place": "forest", "car": "any", "house": False}, "negated"),
    Question("", {"car": "none"}, "held-out"),
]
SEEN = [verdict(car="blue"), verdict(car="red", house=True, place="forest"), verdict(car="red")]


def test_only_what_was_asked_for_counts() -> None:
    assert asked_and_found(ASKED, SEEN) == {
        "weather": [True], "place": [True], "car": [True, True],
        "house": [False], "colour": [False],
    }  # fmt: skip
    by_group = found_by_group(ASKED, SEEN)
    assert by_group["seen combinations"]["all"] == {"share": round(4 / 6, 4), "of": 6}
    assert "partial" not in by_group


def test_what_was_denied_and_what_was_left_open_are_told_apart() -> None:
    assert appearing(ASKED, SEEN, denied=True) == {"house": [True], "car": [True]}
    left = appearing(ASKED, SEEN, denied=False)
    assert "car" not in left
    assert left["house"] == [False]
    assert left["orb"] == [False] * 3


def test_the_spread_is_that_of_the_middles_of_what_is_there() -> None:
    verdicts = []
    for column in (2, 6):
        cover = np.zeros((16, 16))
        cover[4, column] = 1
        maps = dict.fromkeys(OBJECTS, cover)
        verdicts.append(verdict(car="red", house=True, cover=maps))
    spread = layout_spread([*verdicts, verdict()])
    x, y = 2 * OBJECTS.index("house"), 2 * OBJECTS.index("house") + 1
    assert spread[x] == pytest.approx(2 / 16)
    assert spread[y] == pytest.approx(0)


def test_the_nearest_image_is_found_in_every_chunk() -> None:
    generator = torch.Generator().manual_seed(0)
    library = torch.randn((10, 16), generator=generator)
    points = library[[1, 9]] + 0.25
    torch.testing.assert_close(nearest(points, library, chunk=4), torch.full((2,), 0.25))
    pixels = np.full((3, 128, 128, 3), 51, np.uint8)
    assert small(pixels).shape == (3, 3072)
    torch.testing.assert_close(small(pixels), torch.full((3, 3072), 0.2))
