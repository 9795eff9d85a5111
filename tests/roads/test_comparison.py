"""What the judge's comparison of two images says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image

from roads.judge.comparison import Comparison, compare, compare_verdicts, success_rate
from roads.judge.judge import Verdict
from roads.world.render import render
from roads.world.scene import HELD_OUT_SEEDS, draw_scene

DAY = Verdict(
    weather="sunny", place="mountains", car="red", streetlights=False, clouds=False,
    house=True, orb=True, probability={}, cover={},
)  # fmt: skip


def test_an_edit_that_keeps_what_it_should() -> None:
    snow = replace(DAY, weather="snowy")
    found = compare_verdicts(DAY, snow, prompt="a snowy road with a red car and a house")
    assert found.changed == ("sunny -> snowy",)
    assert found.kept == ("mountains", "red car", "house", "the sun")
    assert found.lost == found.added == found.missing == ()
    assert found.found == ("snowy", "red car", "house")
    assert found.succeeded
    assert found.sentence() == (
        "judge: sunny -> snowy; kept mountains, red car, house, the sun; "
        "all that the prompt names is there"
    )


def test_an_edit_that_loses_something() -> None:
    bare = replace(DAY, weather="night", car="none", house=False, clouds=True)
    found = compare_verdicts(DAY, bare, prompt="a road at night with a red car")
    assert found.changed == ("sunny -> night",)
    assert found.lost == ("red car", "house", "the sun")  # by night an orb is the moon
    assert found.added == ("clouds", "the moon")
    assert found.missing == ("red car",)
    assert not found.succeeded
    assert "lost red car, house, the sun; added clouds, the moon" in found.sentence()
    assert "not there, though the prompt names it: red car" in found.sentence()


def test_another_colour_is_a_change() -> None:
    blue = replace(DAY, car="blue")
    found = compare_verdicts(DAY, blue, prompt="a road with a car, no clouds")
    assert found.changed == ("red car -> blue car",)
    assert found.found == ("car", "no clouds")


def test_what_was_to_be_erased() -> None:
    lit = replace(DAY, weather="night", streetlights=True)
    gone = compare_verdicts(lit, DAY, unwanted=["Streetlights", "the moon"])
    assert (gone.erased, gone.remaining) == (("streetlights",), ("the sun",))
    assert not gone.succeeded
    assert "erased streetlights; still there: the sun" in gone.sentence()
    dark = compare_verdicts(None, DAY, prompt="a road with streetlights", unwanted=["streetlights"])
    assert dark.sentence() == "judge: without streetlights"  # whatever the prompt names
    assert dark.succeeded
    assert compare_verdicts(lit, lit, unwanted=["streetlights"]).remaining == ("streetlights",)
    assert not compare_verdicts(lit, lit, unwanted=["streetlights"]).succeeded


def test_nothing_to_compare_with_and_nothing_known() -> None:
    alone = compare_verdicts(None, DAY, prompt="a zebra")
    assert alone == Comparison()
    assert alone.sentence() == "judge: nothing to say"
    assert alone.report()["succeeded"] is True


def test_of_images() -> None:
    scene = draw_scene(HELD_OUT_SEEDS + 10).replace(weather="sunny", car="red", house=True)
    before, after = (
        Image.fromarray(render(one).pixels) for one in (scene, scene.replace(car="none"))
    )
    assert np.asarray(before).shape == (128, 128, 3)
    found = compare(before, after, prompt="a sunny road", unwanted=["a red car"])
    assert found.lost == found.erased == ("red car",)
    assert found.succeeded
    assert found.report()["lost"] == ["red car"]
    assert success_rate([found, compare(before, before, unwanted=["a red car"])]) == 0.5
