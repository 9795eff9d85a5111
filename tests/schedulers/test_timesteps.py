"""Which levels a run visits."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pare.errors import PareError, SettingError
from pare.schedulers import CLEAN, SCHEDULERS, Timesteps, build_scheduler, start_index
from pare.schedulers.timesteps import karras_sigmas
from tests.schedulers.rollout import KARRAS, NAMES, SD14
from tests.schedulers.test_more_solvers import CLASSES, IN_K_DIFFUSION


def schedule(name: str, steps: int, start: int = 0, **keys: Any) -> Timesteps:
    return build_scheduler(SD14 | keys, "a test", name).timesteps(steps, start)


def timesteps(name: str, steps: int, start: int = 0, **keys: Any) -> list[float]:
    return [level.t for level in schedule(name, steps, start, **keys).levels]


@pytest.mark.parametrize(
    ("spacing", "expected"),
    [  # arXiv:2305.08891, table 2, whose timesteps count from 1
        ("leading", [901, 801, 701, 601, 501, 401, 301, 201, 101, 1]),
        ("linspace", [1000, 889, 778, 667, 556, 445, 334, 223, 112, 1]),
        ("trailing", [1000, 900, 800, 700, 600, 500, 400, 300, 200, 100]),
    ],
)
def test_spacings_are_those_of_the_literature(spacing: str, expected: list[int]) -> None:
    ours = timesteps("ddim", 10, timestep_spacing=spacing, steps_offset=0)[:-1]
    assert [t + 1 for t in ours] == expected


def test_karras_sigmas_are_those_of_the_literature() -> None:
    """arXiv:2206.00364, eq. 5 with the paper's sigma_min, sigma_max, rho and 18 steps."""
    ours = karras_sigmas(18, 80.0, 0.002)
    assert ours == pytest.approx(
        [80.0, 57.586, 40.786, 28.375, 19.353, 12.910, 8.4008, 5.3151, 3.2568, 1.9233,
         1.0883, 0.58534, 0.29644, 0.13951, 0.059940, 0.022934, 0.0075279, 0.002],
        rel=1e-3,
    )  # fmt: skip
    assert karras_sigmas(1, 80.0, 0.002) == [80.0]
    assert karras_sigmas(2, 80.0, 0.002) == [80.0, 0.002]


def test_where_each_solver_goes_by_default() -> None:
    assert timesteps("ddim", 4) == [751, 501, 251, 1, 0]
    assert timesteps("pndm", 4) == [751, 501, 501, 251, 1, 0]
    assert timesteps("ddim-inverse", 4) == [1, 251, 501, 751, 751]
    assert timesteps("dpm++2m", 4) == [999, 749, 500, 250, -1]
    for name in ("lms", "euler", "euler-ancestral"):
        assert timesteps(name, 4) == [999, 666, 333, 0, -1]
        assert timesteps(name, 3) == [999, 499.5, 0, -1]


@pytest.mark.parametrize("name", ["ddim", "pndm"])
def test_where_a_run_ends(name: str) -> None:
    assert schedule(name, 5, set_alpha_to_one=True).levels[-1] == CLEAN
    end = schedule(name, 5, set_alpha_to_one=False).levels[-1]
    assert end.alpha_bar == pytest.approx(1 - 0.00085)


def test_initial_scale() -> None:
    for name in NAMES:
        scale = schedule(name, 5, timestep_spacing="leading").initial_scale
        assert scale == 1.0
    for name in ("lms", "euler", "euler-ancestral"):
        first = schedule(name, 5)
        assert first.initial_scale == first.levels[0].noise_rate == pytest.approx(0.99767, abs=1e-5)
        zero_snr = schedule(name, 5, rescale_betas_zero_snr=True)
        assert zero_snr.initial_scale == 1.0


@pytest.mark.parametrize("name", NAMES)
def test_a_start_in_midway_is_the_rest_of_the_run(name: str) -> None:
    whole = schedule(name, 20)
    for start in (1, 7, 19):
        rest = schedule(name, 20, start)
        assert rest.first == start
        if name == "pndm":  # its doubled level is where it starts
            plain = [whole.levels[0], *whole.levels[2:]]
            head, *tail = plain[start:]
            assert rest.levels == ((head, tail[0], *tail) if start < 19 else (head, *tail))
        else:
            assert rest.levels == whole.levels[start:]
            assert len(rest) == 20 - start


def test_runge_kutta_levels() -> None:
    ours = timesteps("pndm", 5, skip_prk_steps=False)
    assert ours == [
        *(801, 701, 701, 601),
        *(601, 501, 501, 401),
        *(401, 301, 301, 201),
        *(201, 1, 0),
    ]
    assert timesteps("pndm", 2, skip_prk_steps=False) == [501, 251, 251, 1, 1, 0]
    assert timesteps("pndm", 1, skip_prk_steps=False) == [1, 0]


@pytest.mark.parametrize(
    ("steps", "strength", "start"),
    [(25, 1, 0), (25, 1.0, 0), (25, 0.95, 1), (25, 0.8, 5), (25, 0.001, 24), (1, 0.5, 0)],
)
def test_start_index(steps: int, strength: float, start: int) -> None:
    assert start_index(steps, strength) == start


@pytest.mark.parametrize("strength", [0, 0.0, -0.1, 1.01, math.nan, math.inf, True, "0.5", None])
def test_a_strength_out_of_range(strength: Any) -> None:
    with pytest.raises(SettingError, match="strength"):
        start_index(25, strength)


@pytest.mark.parametrize("steps", [0, -1, 1001, 2.0, True, "5", None, math.nan])
@pytest.mark.parametrize("name", NAMES)
def test_steps_out_of_range(name: str, steps: Any) -> None:
    with pytest.raises(SettingError, match="`steps` is"):
        schedule(name, steps)


@pytest.mark.parametrize("start", [-1, 5, 6, 1.0, True, "1", None])
def test_starts_out_of_range(start: Any) -> None:
    with pytest.raises(SettingError, match="starts at step"):
        schedule("ddim", 5, start)


CONFIGS = st.fixed_dictionaries(
    {
        "num_train_timesteps": st.integers(1, 200),
        "beta_start": st.floats(1e-5, 0.01),
        "beta_end": st.floats(1e-3, 0.05),
        "beta_schedule": st.sampled_from(["linear", "scaled_linear", "squaredcos_cap_v2"]),
        "rescale_betas_zero_snr": st.booleans(),
        "timestep_spacing": st.sampled_from(["leading", "linspace", "trailing"]),
        "steps_offset": st.integers(0, 300),
        "set_alpha_to_one": st.booleans(),
        "skip_prk_steps": st.booleans(),
        "use_karras_sigmas": st.booleans(),
        "final_sigmas_type": st.sampled_from(["zero", "sigma_min"]),
    }
)


@given(st.sampled_from(NAMES), CONFIGS, st.integers(1, 200), st.data())
def test_any_trajectory_falls_to_its_end(
    name: str, keys: dict[str, Any], steps: int, data: st.DataObject
) -> None:
    count = keys["num_train_timesteps"]
    steps = min(steps, count)
    start = data.draw(st.integers(0, steps - 1))
    try:
        levels = schedule(name, steps, start, **keys).levels
    except PareError:  # a single timestep cannot be rescaled; PNDM cannot start without signal
        assert keys["rescale_betas_zero_snr"]
        return
    if name == "ddim-inverse":
        levels = levels[::-1]
    assert all(0 <= level.alpha_bar <= 1 for level in levels)
    assert all(0 <= level.t <= count - 1 for level in levels[:-1])
    evaluated = [level.sigma for level in levels[:-1]]
    if name == "pndm":  # it evaluates some levels more than once
        assert evaluated == sorted(evaluated, reverse=True)
    else:
        assert all(here > there for here, there in pairwise(evaluated))
    assert levels[-2].sigma >= levels[-1].sigma
    if levels[-2].sigma == levels[-1].sigma:  # ends at timestep 0, where it already was
        assert levels[-1].sigma == pytest.approx(
            build_scheduler(SD14 | keys, "a test", name).schedule.sigmas[0]
        )


def test_karras_evaluates_at_falling_sigmas_with_many_steps() -> None:
    for name in KARRAS:
        levels = schedule(name, 1000, use_karras_sigmas=True).levels
        assert all(here.sigma > there.sigma for here, there in pairwise(levels))
        repeated = len({level.t for level in levels}) < len(levels)
        assert repeated == (name == "dpm++2m")


def test_every_scheduler_is_tested() -> None:
    assert set(NAMES) | set(CLASSES) | set(IN_K_DIFFUSION) == set(SCHEDULERS)
