"""Every solver rolled out to the end against diffusers, on a denoiser that is known exactly."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pare.schedulers import build_scheduler
from tests.schedulers import reference
from tests.schedulers.analytic import model
from tests.schedulers.rollout import KARRAS, NAMES, SD14, distance, rollout, unit_noise

# diffusers turns tensors into arrays in a way that NumPy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

BOUND = 1e-5
STEPS = (1, 2, 7, 20, 25, 50, 100, 1000)
STEPS_AND_STARTS = [
    (steps, start) for steps in STEPS for start in sorted({0, steps // 3, (steps - 1) % 999})
]


def where_diffusers_is_right(name: str, config: dict[str, Any], steps: int) -> dict[str, Any]:
    """The setting at which diffusers does what pare does with `config` (test_deviations.py)."""
    spacing = config.get("timestep_spacing", default_spacing(name))
    if name in ("lms", "euler", "euler-ancestral") and spacing == "linspace" and steps == 1:
        return config | {"timestep_spacing": "trailing"}  # starts where the noise is
    if name == "dpm++2m" and spacing != "trailing" and steps == 1000:
        return config | {"timestep_spacing": "trailing"}  # every timestep once
    if spacing == "leading" and steps == 1000:
        return config | {"steps_offset": 0}  # stays in the table
    return config


def default_spacing(name: str) -> str:
    return "leading" if name in ("ddim", "ddim-inverse", "pndm") else "linspace"


def check(name: str, config: dict[str, Any], steps: int, start: int = 0, **options: Any) -> None:
    # The last step of LMS under Karras sigmas extrapolates far beyond its slopes, and the more
    # so the more steps there are: rounding grows a million times.  In float64 the two agree.
    ill_conditioned = name == "lms" and config.get("use_karras_sigmas") and steps >= 100
    noise = unit_noise(dtype=torch.float64 if ill_conditioned else torch.float32)
    scheduler = build_scheduler(config, "a test", name, **options)
    ours = rollout(scheduler, model(config), noise, steps, start)

    told = where_diffusers_is_right(name, config, steps)
    prediction_type = config.get("prediction_type", "epsilon")
    unknown = {"pndm": ("v_prediction", "sample"), "euler-ancestral": ("sample",)}
    if prediction_type in unknown.get(name, ()):
        # What diffusers gets wrong or refuses (test_deviations.py): it gets the model's eps.
        told = told | {"prediction_type": "epsilon"}
    # Differences of neighbouring sigmas lose digits in float32 where there are many.
    exact = name in ("lms", "euler-ancestral") and steps >= 50
    theirs = reference.rollout(
        name, told, model(told), noise, steps, start, exact_sigmas=exact, **options
    )
    assert ours.dtype == theirs.dtype == noise.dtype
    assert distance(ours, theirs) < BOUND


@pytest.mark.parametrize(("steps", "start"), STEPS_AND_STARTS)
@pytest.mark.parametrize("name", NAMES)
def test_every_solver_from_the_start_and_from_midway(name: str, steps: int, start: int) -> None:
    check(name, SD14, steps, start)


@pytest.mark.parametrize(("steps", "start"), STEPS_AND_STARTS)
@pytest.mark.parametrize("name", KARRAS)
def test_karras_sigmas(name: str, steps: int, start: int) -> None:
    check(name, SD14 | {"use_karras_sigmas": True}, steps, start)


@pytest.mark.parametrize("steps", [1, 2, 25, 100])
@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
@pytest.mark.parametrize("name", NAMES)
def test_predictions(name: str, prediction: str, steps: int) -> None:
    config = SD14 | {"prediction_type": prediction}
    check(name, config, steps)
    check(name, config, steps, start=steps // 2)
    if name in KARRAS:
        check(name, config | {"use_karras_sigmas": True}, steps)


# Under linspace diffusers' DDIM and PNDM step past their own levels: see test_deviations.py.
@pytest.mark.parametrize("steps", [2, 10, 25])
@pytest.mark.parametrize(
    ("name", "spacing"),
    [
        *[(name, spacing) for name in NAMES for spacing in ("leading", "trailing")],
        *[(name, "linspace") for name in ("dpm++2m", "lms", "euler", "euler-ancestral")],
    ],
)
def test_spacings(name: str, spacing: str, steps: int) -> None:
    check(name, SD14 | {"timestep_spacing": spacing}, steps)
    check(name, SD14 | {"timestep_spacing": spacing}, steps, start=1)
    if name in KARRAS:
        check(name, SD14 | {"timestep_spacing": spacing, "use_karras_sigmas": True}, steps)


@pytest.mark.parametrize("name", NAMES)
def test_other_noise_schedules(name: str) -> None:
    check(name, SD14 | {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}, 20)
    # Leading, because diffusers' float32 alpha_bar is wrong in the 5th digit at the noisy end.
    cosine = {"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "leading"}
    check(name, SD14 | cosine, 20)
    check(name, SD14 | {"num_train_timesteps": 500, "steps_offset": 3}, 20)


@pytest.mark.parametrize("name", ["ddim", "ddim-inverse", "pndm"])
def test_set_alpha_to_one(name: str) -> None:
    check(name, SD14 | {"set_alpha_to_one": True}, 20)
    check(name, SD14 | {"set_alpha_to_one": True}, 20, start=5)


@pytest.mark.parametrize("name", ["ddim", "ddim-inverse"])
def test_clip_sample(name: str) -> None:
    clips = SD14 | {"clip_sample": True, "clip_sample_range": 1.1}
    check(name, clips, 20)
    unclipped = rollout(build_scheduler(SD14, "a test", name), model(SD14), unit_noise(), 20)
    clipped = rollout(build_scheduler(clips, "a test", name), model(SD14), unit_noise(), 20)
    assert distance(clipped, unclipped) > 0.1


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("alpha_to_one", [False, True])
def test_ddim_with_fresh_noise(eta: float, alpha_to_one: bool) -> None:
    for steps, start in ((2, 0), (20, 0), (20, 7), (100, 0)):
        check("ddim", SD14 | {"set_alpha_to_one": alpha_to_one}, steps, start, eta=eta)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("karras", [False, True])
def test_lms_orders(order: int, karras: bool) -> None:
    for steps, start in ((2, 0), (20, 0), (20, 7)):
        check("lms", SD14 | {"use_karras_sigmas": karras}, steps, start, order=order)


@pytest.mark.parametrize(
    "keys",
    [
        {"solver_order": 1},
        {"solver_type": "heun"},
        {"euler_at_final": True},
        {"lower_order_final": False},
        {"final_sigmas_type": "sigma_min"},
        {"final_sigmas_type": "sigma_min", "lower_order_final": False},
        {"final_sigmas_type": "sigma_min", "euler_at_final": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("karras", [False, True])
def test_dpmpp_variants(keys: dict[str, Any], karras: bool) -> None:
    for steps, start in ((1, 0), (2, 0), (7, 0), (7, 6), (14, 3), (20, 0), (20, 18)):
        check("dpm++2m", SD14 | keys | {"use_karras_sigmas": karras}, steps, start)


@pytest.mark.parametrize("karras", [False, True])
def test_euler_to_sigma_min(karras: bool) -> None:
    keys = {"final_sigmas_type": "sigma_min", "use_karras_sigmas": karras}
    for steps, start in ((2, 0), (20, 0), (20, 7)):
        check("euler", SD14 | keys, steps, start)


@pytest.mark.parametrize(("steps", "start"), [(4, 0), (10, 0), (20, 0), (20, 7), (50, 40)])
def test_pndm_with_its_runge_kutta_steps(steps: int, start: int) -> None:
    check("pndm", SD14 | {"skip_prk_steps": False}, steps, start)


@pytest.mark.parametrize(
    ("name", "prediction"),
    [("ddim", "v_prediction"), ("ddim", "sample"), ("ddim-inverse", "v_prediction")],
)
def test_zero_terminal_snr(name: str, prediction: str) -> None:
    """The other solvers of diffusers only come near to it: see test_deviations.py."""
    keys = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    for steps in (1, 2, 20):
        check(name, SD14 | keys | {"prediction_type": prediction}, steps)
