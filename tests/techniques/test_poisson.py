"""Gradient-domain pasting: exact outside, the new gradients inside, any region."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from techniques.blended.poisson import poisson_blend

HEIGHT, WIDTH = 23, 17


def images(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    chance = np.random.default_rng(seed)
    old, new = chance.uniform(-1, 1, (2, HEIGHT, WIDTH, 3)).astype(np.float32)
    return old, new


def region(name: str) -> np.ndarray:
    edit = np.zeros((HEIGHT, WIDTH), dtype=bool)
    match name:
        case "in the middle":
            edit[5:15, 4:11] = True
        case "with a hole":
            edit[4:18, 3:14] = True
            edit[9:12, 7:10] = False
        case "several parts":
            edit[2:6, 2:6] = edit[10:20, 8:15] = edit[21, 1] = True
        case "one pixel":
            edit[7, 7] = True
        case "a corner pixel":
            edit[0, 0] = True
        case "along the border":
            edit[0:6, :] = edit[:, WIDTH - 3 :] = True
        case "all but one pixel":
            edit[:] = True
            edit[12, 3] = False
        case "a line":
            edit[8, :] = True
        case "checkered":
            edit[::2, ::2] = edit[1::2, 1::2] = True
    return edit


REGIONS = ["in the middle", "with a hole", "several parts", "one pixel", "a corner pixel",
           "along the border", "all but one pixel", "a line", "checkered"]  # fmt: skip


@pytest.mark.parametrize("name", REGIONS)
def test_outside_is_the_old_image_exactly(name: str) -> None:
    old, new = images()
    edit = region(name)
    result = poisson_blend(old, new, edit)
    assert result.dtype == np.float32
    assert np.array_equal(result[~edit], old[~edit])
    assert np.isfinite(result).all()


@pytest.mark.parametrize("name", REGIONS)
def test_inside_has_the_new_gradients(name: str) -> None:
    """The equation itself, pixel by pixel, written as sums of differences (eq. 7)."""
    old, new = images(1)
    edit = region(name)
    result = poisson_blend(old, new, edit)
    for y, x in zip(*np.nonzero(edit), strict=True):
        around = [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
        around = [(a, b) for a, b in around if 0 <= a < HEIGHT and 0 <= b < WIDTH]
        bend = sum(result[y, x] - result[q] for q in around)
        wanted = sum(new[y, x] - new[q] for q in around)
        assert np.abs(bend - wanted).max() < 1e-5


@pytest.mark.parametrize("name", REGIONS)
def test_what_fits_is_pasted_as_it_is(name: str) -> None:
    """No difference at the edge, nothing to correct; and a constant one is drawn back whole."""
    old, new = images(2)
    edit = region(name)
    new[~edit] = old[~edit]
    assert np.abs(poisson_blend(old, new, edit) - new).max() < 1e-6
    brighter = new + np.float32(0.25)
    assert np.abs(poisson_blend(old, brighter, edit) - new).max() < 1e-6


def test_one_pixel_by_hand() -> None:
    old, new = np.zeros((3, 3, 1), np.float32), np.zeros((3, 3, 1), np.float32)
    old[0, 1], old[1, 0], old[1, 2], old[2, 1] = 1, 2, 3, 4
    new[1, 1] = 10
    edit = np.zeros((3, 3), dtype=bool)
    edit[1, 1] = True
    assert poisson_blend(old, new, edit)[1, 1, 0] == pytest.approx(10 + (1 + 2 + 3 + 4) / 4)


def test_everything_and_nothing() -> None:
    old, new = images()
    everything = np.ones((HEIGHT, WIDTH), dtype=bool)
    assert np.array_equal(poisson_blend(old, new, everything), new)
    assert np.array_equal(poisson_blend(old, new, ~everything), old)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), share=st.floats(0.02, 0.98))
def test_the_correction_stays_within_the_edge_s_differences(seed: int, share: float) -> None:
    """A sheet through points is nowhere above the highest or below the lowest of them."""
    old, new = images(seed)
    edit = np.random.default_rng(seed + 1).random((HEIGHT, WIDTH)) < share
    if edit.all() or not edit.any():
        return
    correction = poisson_blend(old, new, edit) - new
    edge = (old - new)[~edit]
    assert (correction[edit].max(axis=0) <= edge.max(axis=0) + 1e-5).all()
    assert (correction[edit].min(axis=0) >= edge.min(axis=0) - 1e-5).all()


def test_the_inputs_are_left_alone() -> None:
    old, new = images()
    before = old.copy(), new.copy()
    poisson_blend(old, new, region("in the middle"))
    assert np.array_equal(old, before[0])
    assert np.array_equal(new, before[1])
