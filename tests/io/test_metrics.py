"""The benchmark's measures against values known beforehand, and scikit-image where it is there."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays

from pare.io.metrics import mse, psnr, ssim, structure_distance
from roads.world.render import render
from roads.world.scene import draw_scene

EVERYWHERE = np.ones((128, 128), bool)
ROAD = render(draw_scene(3)).pixels
images = arrays(np.uint8, (24, 24, 3))
ALL = np.ones((24, 24), bool)


def test_mse_and_psnr_of_a_known_shift() -> None:
    shifted = ROAD // 2
    brighter = shifted + np.uint8(51)  # a fifth of the range
    assert mse(shifted, brighter, EVERYWHERE) == pytest.approx(0.04)
    assert psnr(0.04) == pytest.approx(13.9794, abs=1e-4)
    assert psnr(0) == math.inf


def test_a_mask_chooses_the_pixels() -> None:
    changed = ROAD.copy()
    changed[:64] = 255 - changed[:64]
    upper = np.arange(128)[:, None] < np.full(128, 64)
    assert mse(ROAD, changed, ~upper) == 0
    assert mse(ROAD, changed, upper) > 0.01
    assert ssim(ROAD, changed, upper) < 0.5
    assert ssim(ROAD, changed, ~upper) == pytest.approx(1)
    assert math.isnan(mse(ROAD, changed, ~EVERYWHERE))
    assert math.isnan(ssim(ROAD, changed, ~EVERYWHERE))


@given(images, images)
def test_measures_are_symmetric_and_bounded(a: np.ndarray, b: np.ndarray) -> None:
    assert mse(a, b, ALL) == pytest.approx(mse(b, a, ALL))
    assert 0 <= mse(a, b, ALL) <= 1
    assert ssim(a, b, ALL) == pytest.approx(ssim(b, a, ALL))
    assert -1 <= ssim(a, b, ALL) <= 1
    assert structure_distance(a, b) == pytest.approx(structure_distance(b, a))
    assert -1e-9 <= structure_distance(a, b) <= 1


@given(images)
def test_an_image_is_like_itself(a: np.ndarray) -> None:
    assert mse(a, a, ALL) == 0
    assert ssim(a, a, ALL) == pytest.approx(1)
    assert structure_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_ssim_of_flat_images_is_the_formula() -> None:
    """Without variance, eq. 13 is its luminance term alone."""
    dark, bright = (np.full((24, 24, 3), value, np.uint8) for value in (51, 204))
    x, y, c1 = 0.2, 0.8, 1e-4
    assert ssim(dark, bright, ALL) == pytest.approx((2 * x * y + c1) / (x * x + y * y + c1))


def test_structure_is_blind_to_brightness_and_sees_what_is_drawn() -> None:
    scene = draw_scene(3).replace(weather="sunny", car="none")
    road = render(scene).pixels
    assert structure_distance(road, road // 2) < 0.01
    with_car = structure_distance(road, render(scene.replace(car="red")).pixels)
    elsewhere = structure_distance(road, render(draw_scene(4).replace(weather="sunny")).pixels)
    assert 0.01 < with_car < elsewhere
