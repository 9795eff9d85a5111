"""Where diffusers 0.42 is wrong or stops, and what pare does instead (docs/deviations.md).

Each test shows both sides, so that a fix in diffusers is noticed here.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from pare.errors import SchedulerError
from pare.schedulers import NoiseLevel, build_scheduler
from tests.schedulers import reference
from tests.schedulers import test_more_solvers as more
from tests.schedulers.analytic import alpha_bars, model, posterior_mean
from tests.schedulers.rollout import NAMES, SD14, distance, rollout, unit_noise

# diffusers turns tensors into arrays in a way that NumPy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

ZERO_SNR = SD14 | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


def their_timesteps(name: str, config: dict[str, Any], steps: int) -> list[float]:
    scheduler = reference.build(name, config)
    scheduler.set_timesteps(steps)
    return [float(t) for t in scheduler.timesteps]


def levels(name: str, config: dict[str, Any], steps: int) -> tuple[NoiseLevel, ...]:
    return build_scheduler(config, "a test", name).timesteps(steps).levels


def one_image(config: dict[str, Any], name: str, steps: int) -> tuple[Tensor, Any, Tensor]:
    """x_T, a model that knows the image in it, and where a right solver of the DDIM family
    must end in any number of steps: that image with the noise of timestep 0."""
    x0, noise = unit_noise(seed=1), unit_noise()
    table = alpha_bars(config)
    start, end = levels(name, config, steps)[0], table[0]
    x_t = start.signal_rate * x0 + start.noise_rate * noise
    exact = math.sqrt(end) * x0 + math.sqrt(1 - end) * noise

    def knows(x_t: Tensor, t: float) -> Tensor:
        alpha_bar = float(np.interp(t, np.arange(len(table)), table))
        return ((x_t.double() - math.sqrt(alpha_bar) * x0) / math.sqrt(1 - alpha_bar)).float()

    return x_t, knows, exact


@pytest.mark.parametrize("name", ["ddim", "ddim-inverse", "pndm"])
def test_1000_leading_steps_with_an_offset_leave_the_table(name: str) -> None:
    assert max(their_timesteps(name, SD14, 1000)) == 1000
    with pytest.raises(IndexError):
        reference.rollout(name, SD14, model(SD14), unit_noise(), 1000)
    assert sorted({level.t for level in levels(name, SD14, 1000)[:-1]}) == list(range(1000))


def test_as_many_leading_steps_of_lms_as_timesteps_divide_by_zero() -> None:
    config = SD14 | {"timestep_spacing": "leading", "num_train_timesteps": 100}
    end = reference.rollout("lms", config, model(config), unit_noise(), 100)
    assert bool(end.isnan().any())  # t = 100 and t = 99 get one sigma
    assert [level.t for level in levels("lms", config, 100)[:-1]] == list(range(99, -1, -1))


@pytest.mark.parametrize("spacing", ["linspace", "leading"])
def test_1000_steps_of_dpmpp_repeat_a_timestep(spacing: str) -> None:
    config = SD14 | {"timestep_spacing": spacing}
    assert len(set(their_timesteps("dpm++2m", config, 1000))) < 1000
    assert max(their_timesteps("dpm++2m", config, 999)) == (1000 if spacing == "leading" else 999)
    assert levels("dpm++2m", config, 999)[0].t == 999
    end = reference.rollout("dpm++2m", config, model(config), unit_noise(), 1000)
    assert bool(end.isnan().any())
    assert len({level.t for level in levels("dpm++2m", config, 1000)[:-1]}) == 1000
    ours = rollout(build_scheduler(config, "a test", "dpm++2m"), model(config), unit_noise(), 1000)
    config = SD14 | {"timestep_spacing": "trailing"}
    theirs = reference.rollout("dpm++2m", config, model(config), unit_noise(), 1000)
    assert distance(ours, theirs) < 1e-5  # there diffusers visits every timestep once, too


@pytest.mark.parametrize("steps", [61, 103, 223])
def test_trailing_spacing_may_give_a_step_too_many(steps: int) -> None:
    config = SD14 | {"timestep_spacing": "trailing"}
    theirs = their_timesteps("ddim", config, steps)
    assert (len(theirs), theirs[-1]) == (steps + 1, -1)
    ours = [level.t for level in levels("ddim", config, steps)[:-1]]
    assert ours == theirs[:-1]


@pytest.mark.parametrize("name", ["ddim", "pndm"])
@pytest.mark.parametrize(("spacing", "steps"), [("linspace", 20), ("trailing", 7)])
def test_ddim_and_pndm_step_past_their_own_levels(name: str, spacing: str, steps: int) -> None:
    """They go down by 1000 // steps, wherever the next level is."""
    config = SD14 | {"timestep_spacing": spacing}
    x_t, knows, exact = one_image(config, name, steps)
    theirs = reference.rollout(name, config, knows, x_t, steps)
    ours = rollout(build_scheduler(config, "a test", name), knows, x_t, steps)
    assert distance(ours, exact) < 1e-5
    assert distance(theirs, exact) > 1e-4


def test_ddim_inverse_knows_no_linspace() -> None:
    config = SD14 | {"timestep_spacing": "linspace"}
    with pytest.raises(ValueError, match="linspace"):
        their_timesteps("ddim-inverse", config, 20)
    forward, back = levels("ddim", config, 20), levels("ddim-inverse", config, 20)
    assert [level.sigma for level in back] == [level.sigma for level in forward[::-1]]


@pytest.mark.parametrize("name", ["ddim", "pndm", "lms", "euler", "euler-ancestral"])
def test_one_linspace_step_starts_where_there_is_no_noise(name: str) -> None:
    config = SD14 | {"timestep_spacing": "linspace"}
    assert their_timesteps(name, config, 1) == [0]
    assert levels(name, config, 1)[0].t == 999


@pytest.mark.parametrize("name", ["ddim", "pndm"])
def test_an_offset_beyond_the_stride_keeps_the_run_from_its_end(name: str) -> None:
    config = SD14 | {"steps_offset": 30}
    x_t, knows, exact = one_image(config, name, 300)
    theirs = reference.rollout(name, config, knows, x_t, 300)
    ours = rollout(build_scheduler(config, "a test", name), knows, x_t, 300)
    assert distance(ours, exact) < 1e-5
    assert distance(theirs, exact) > 0.05  # steps of 3 timesteps from 30 down to 27: it ends there


@pytest.mark.parametrize("name", ["lms", "pndm"])
def test_lms_and_pndm_ignore_zero_terminal_snr(name: str) -> None:
    plain = SD14 | {"timestep_spacing": "trailing"}
    scheduler = reference.build(name, ZERO_SNR)
    assert torch.equal(scheduler.alphas_cumprod, reference.build(name, plain).alphas_cumprod)
    assert build_scheduler(ZERO_SNR, "a test", name).schedule.alpha_bar[-1] == 0


@pytest.mark.parametrize("name", ["dpm++2m", "euler", "euler-ancestral"])
def test_zero_terminal_snr_is_zero(name: str) -> None:
    config = ZERO_SNR | {"prediction_type": "v_prediction"}
    scheduler = reference.build(name, config)
    assert float(scheduler.alphas_cumprod[-1]) == 2**-24
    start = levels(name, config, 20)[0]
    assert (start.t, start.alpha_bar, start.sigma) == (999, 0.0, math.inf)
    theirs = reference.rollout(name, config, model(config), unit_noise(), 20)
    ours = rollout(build_scheduler(config, "a test", name), model(config), unit_noise(), 20)
    assert 1e-5 < distance(ours, theirs) < 1e-3


def test_eps_at_zero_terminal_snr_is_refused() -> None:
    theirs = reference.rollout("ddim", ZERO_SNR, model(ZERO_SNR), unit_noise(), 20)
    assert not bool(theirs.isfinite().all())
    with pytest.raises(SchedulerError, match="without signal"):
        rollout(build_scheduler(ZERO_SNR, "a test", "ddim"), model(ZERO_SNR), unit_noise(), 20)


def test_karras_sigmas_of_a_zero_terminal_snr_schedule_start_where_diffusers_does() -> None:
    """There is no Karras schedule from infinity: 2^12 stands for it, as in diffusers."""
    config = ZERO_SNR | {"use_karras_sigmas": True}
    for name in ("dpm++2m", "euler"):
        scheduler = reference.build(name, config)
        scheduler.set_timesteps(20)
        ours = levels(name, config, 20)
        assert [level.t for level in ours[:-1]] == pytest.approx(
            scheduler.timesteps.tolist(), abs=1
        )
        assert [level.sigma for level in ours] == pytest.approx(scheduler.sigmas.tolist(), rel=1e-4)


def test_lms_from_midway_uses_slopes_that_it_does_not_have() -> None:
    """Its order follows the step index, also where the run has only begun: the weights of
    the missing slopes are dropped, and what is left does not add up to the step."""
    config, start = SD14, 10
    scheduler = reference.build("lms", config)
    scheduler.set_timesteps(25)
    scheduler.set_begin_index(start)
    step = scheduler.sigmas[start + 1] - scheduler.sigmas[start]
    assert scheduler.get_lms_coefficient(4, start, 0) / step > 1.9  # of a first step it should be 1

    answer, x = model(config), unit_noise() * (scheduler.sigmas[start] ** 2 + 1) ** 0.5
    for t in scheduler.timesteps[start:]:
        x = scheduler.step(answer(scheduler.scale_model_input(x, t), float(t)), t, x).prev_sample
    told = reference.rollout("lms", config, answer, unit_noise(), 25, start)
    ours = rollout(build_scheduler(config, "a test", "lms"), answer, unit_noise(), 25, start)
    assert distance(ours, told) < 1e-5
    assert distance(x, told) > 0.01


def test_euler_ancestral_loses_digits_of_its_fresh_noise() -> None:
    """sigma_up is the difference of two squares, in float32 of neighbours that are close."""
    scheduler = reference.build("euler-ancestral", SD14)
    scheduler.set_timesteps(1000)
    high, low = scheduler.sigmas[:-2], scheduler.sigmas[1:-1]
    theirs = (low**2 * (high**2 - low**2) / high**2) ** 0.5
    exact = [
        there.sigma * math.sqrt(1 - (there.sigma / here.sigma) ** 2)
        for here, there in pairwise(levels("euler-ancestral", SD14, 1000)[:-1])
    ]
    assert float((theirs / torch.tensor(exact) - 1).abs().max()) > 1e-5


def test_lms_with_karras_sigmas_and_many_steps_amplifies_rounding() -> None:
    """Nobody's fault but the method's; in sigma the amplified rounding is a hundred times more."""
    config = SD14 | {"use_karras_sigmas": True}
    scheduler = build_scheduler(config, "a test", "lms")
    exact = rollout(scheduler, model(config), unit_noise(dtype=torch.float64), 500)
    ours = rollout(scheduler, model(config), unit_noise(), 500)
    theirs = reference.rollout("lms", config, model(config), unit_noise(), 500, exact_sigmas=True)
    assert distance(ours, exact) < 1e-4
    assert distance(theirs, exact) > 5e-4


def exact_end(config: dict[str, Any], noise: Tensor, steps: int) -> Tensor:
    """The end of the probability-flow ODE over the range of PNDM's levels."""
    first, *_, last = levels("pndm", config, steps)

    def slope(sigma: float, x_hat: np.ndarray) -> np.ndarray:
        alpha_bar = 1 / (1 + sigma**2)
        x0 = posterior_mean(torch.from_numpy(x_hat) * math.sqrt(alpha_bar), alpha_bar)
        return (x_hat - x0.numpy()) / sigma

    start = (noise.double() / first.signal_rate).flatten().numpy()
    end = solve_ivp(slope, (first.sigma, last.sigma), start, rtol=1e-8, atol=1e-10).y[:, -1]
    return torch.from_numpy(end).view_as(noise) * last.signal_rate


def test_pndm_of_a_v_model_loses_its_order() -> None:
    """diffusers puts Adams-Bashforth together from v of different levels, then turns the sum
    into eps as if it were of one level: its error falls no faster than DDIM's."""
    config = SD14 | {"prediction_type": "v_prediction"}
    errors = {}
    for steps in (25, 50):
        exact = exact_end(config, unit_noise(), steps)
        theirs = reference.rollout("pndm", config, model(config), unit_noise(), steps)
        ours = rollout(
            build_scheduler(config, "a test", "pndm"), model(config), unit_noise(), steps
        )
        ddim = rollout(
            build_scheduler(config, "a test", "ddim"), model(config), unit_noise(), steps
        )
        errors[steps] = [distance(end, exact) for end in (ours, theirs, ddim)]
    for steps in errors:
        our_error, their_error, ddim_error = errors[steps]
        assert our_error < their_error / 4
        assert 0.5 < their_error / ddim_error < 2
    assert errors[25][1] / errors[50][1] < 2.5  # order 1
    assert errors[25][0] / errors[50][0] > 3.0  # order 2


def test_pndm_from_midway_evaluates_the_wrong_level_twice() -> None:
    """A slice of its timesteps, as img2img takes it, has lost the doubled one."""
    scheduler = reference.build("pndm", SD14)
    scheduler.set_timesteps(20)
    sliced = scheduler.timesteps[5:].tolist()
    assert len(sliced) == len(set(sliced))
    ours = [level.t for level in build_scheduler(SD14, "a test").timesteps(20, start=4).levels]
    assert ours[:-1] == [sliced[0], sliced[1], *sliced[1:]]


@pytest.mark.parametrize("name", ["pndm", "euler-ancestral"])
def test_pndm_and_euler_ancestral_know_no_x0_prediction(name: str) -> None:
    config = SD14 | {"prediction_type": "sample"}
    with pytest.raises((ValueError, NotImplementedError), match="sample"):
        reference.rollout(name, config, model(config), unit_noise(), 5)
    ours = rollout(build_scheduler(config, "a test", name), model(config), unit_noise(), 5)
    eps = rollout(build_scheduler(SD14, "a test", name), model(SD14), unit_noise(), 5)
    assert distance(ours, eps) < 1e-5


def test_runge_kutta_in_short_runs_and_with_odd_strides() -> None:
    config = SD14 | {"skip_prk_steps": False}
    with pytest.raises(ValueError, match="broadcast"):
        their_timesteps("pndm", config, 3)
    assert len(levels("pndm", config, 3)) - 1 == 2 * 4 + 1
    # 40 steps are 25 timesteps each; the middle is 12.5 below, and diffusers means 13 there
    # when it asks the model, but 12 when it steps.
    ours = [level.t for level in levels("pndm", config, 40)]
    theirs = their_timesteps("pndm", config, 40)
    assert ours[:4] == [976, 963.5, 963.5, 951]
    assert theirs[:4] == [976, 963, 963, 951]


def test_a_file_that_is_silent_about_clipping_does_not_clip() -> None:
    """A file for Euler has no clip_sample; diffusers' DDIM then clips latents at 1."""
    config = {key: value for key, value in SD14.items() if key != "clip_sample"}
    config["_class_name"] = "EulerDiscreteScheduler"
    assert reference.build("ddim", config).config.clip_sample
    theirs = reference.rollout("ddim", config, model(config), unit_noise(), 20)
    ours = rollout(build_scheduler(config, "a test", "ddim"), model(config), unit_noise(), 20)
    told = reference.rollout("ddim", SD14, model(SD14), unit_noise(), 20)
    assert distance(ours, told) < 1e-5
    assert distance(theirs, told) > 0.1
    own = config | {"_class_name": "DDIMScheduler"}
    assert build_scheduler(own, "a test").describe()["config"]["clip_sample"]


def test_karras_timesteps_of_dpmpp_at_a_tie() -> None:
    """18 steps put one sigma at t = 575.50: diffusers' float32 table rounds it up, float64
    down.  The other timesteps are the same, and at the usual numbers of steps all are."""
    config = SD14 | {"use_karras_sigmas": True}
    for steps in (7, 10, 15, 20, 25, 30, 40, 50, 100):
        assert their_timesteps("dpm++2m", config, steps) == [
            level.t for level in levels("dpm++2m", config, steps)[:-1]
        ]
    ours = [level.t for level in levels("dpm++2m", config, 18)[:-1]]
    theirs = their_timesteps("dpm++2m", config, 18)
    assert [(a, b) for a, b in zip(ours, theirs, strict=True) if a != b] == [(575, 576)]


def test_karras_timesteps_of_dpmpp_on_a_cosine_schedule_are_cut_off() -> None:
    """diffusers leaves them fractional there, and then stores them as integers."""
    config = SD14 | {"use_karras_sigmas": True, "beta_schedule": "squaredcos_cap_v2"}
    ours = [level.t for level in levels("dpm++2m", config, 20)[:-1]]
    theirs = their_timesteps("dpm++2m", config, 20)
    assert {a - b for a, b in zip(ours, theirs, strict=True)} == {0, 1}


@pytest.mark.parametrize("name", ["dpm++2m", "unipc", "deis"])
@pytest.mark.parametrize("key", ["use_exponential_sigmas", "use_beta_sigmas"])
def test_exponential_and_beta_timesteps_are_cut_off(key: str, name: str) -> None:
    config = SD14 | {key: True}
    ours = [level.t for level in levels(name, config, 20)[:-1]]
    scheduler = more.CLASSES[name].from_config(config)
    scheduler.set_timesteps(20)
    theirs = [float(t) for t in scheduler.timesteps]
    assert {a - b for a, b in zip(ours, theirs, strict=True)} == {0, 1}


def test_unipc_of_type_bh1_ends_in_no_number() -> None:
    config = SD14 | {"solver_type": "bh1"}
    noise = unit_noise(dtype=torch.float64)
    assert bool(more.theirs("unipc", config, model(config), noise, 10, 0).isnan().all())
    scheduler = build_scheduler(config, "a test", "unipc")
    assert bool(more.ours(scheduler, model(config), noise, 10, 0).isfinite().all())


def test_heun_with_nowhere_to_go() -> None:
    """Karras sigmas end at sigma_min, and so does the run: the last step has no length."""
    keys = {"final_sigmas_type": "sigma_min", "solver_type": "heun", "lower_order_final": False}
    config = SD14 | keys | {"timestep_spacing": "trailing"}
    theirs = reference.rollout("dpm++2m", config, model(config), unit_noise(), 1000)
    assert bool(theirs.isnan().any())
    ours = rollout(build_scheduler(config, "a test", "dpm++2m"), model(config), unit_noise(), 1000)
    assert bool(ours.isfinite().all())


def test_alpha_bar_of_a_cosine_schedule_in_float32() -> None:
    config = {"beta_schedule": "squaredcos_cap_v2"}
    theirs = reference.build("ddim", config).alphas_cumprod.double()
    ours = build_scheduler(config, "a test", "ddim").schedule.alpha_bar
    exact = torch.from_numpy(alpha_bars(config))
    assert float((ours / exact - 1).abs().max()) < 1e-12
    assert float((theirs / exact - 1).abs().max()) > 1e-5


def test_what_is_kept() -> None:
    """Odd, but what the words mean: see the end of docs/deviations.md."""
    assert levels("ddim", SD14, 1)[0].t == their_timesteps("ddim", SD14, 1)[0] == 1
    assert levels("ddim", SD14, 600)[0].t == their_timesteps("ddim", SD14, 600)[0] == 600
    for name in NAMES:
        for here, there in pairwise(levels(name, SD14, 50)):
            assert here != there or name == "pndm"


def test_third_order_sde_of_dpmpp_has_a_wrong_sign() -> None:
    """With shorter steps, too; k-diffusion's formulas agree with pare (test_more_solvers.py)."""
    config = SD14 | {"solver_order": 3, "algorithm_type": "sde-dpmsolver++"}
    distances = []
    for steps in (20, 50):
        noise = unit_noise(dtype=torch.float64)
        scheduler = build_scheduler(config, "a test", "dpm++2m-sde")
        mine = more.ours(scheduler, model(config), noise, steps, 0)
        theirs = more.theirs("dpm++2m-sde", config, model(config), noise, steps, 0)
        distances.append(distance(mine, theirs))
    assert min(distances) > 1e-3
