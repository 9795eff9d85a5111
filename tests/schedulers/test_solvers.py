"""What the solvers are by themselves: their order, their identities, their purity."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from pare.errors import SchedulerError
from pare.schedulers import NoiseLevel, Prediction, Scheduler, add_noise, build_scheduler, interpret
from pare.schedulers.lms import linear_multistep_coefficients
from pare.schedulers.pndm import MULTISTEP_WEIGHTS
from tests.schedulers.analytic import exact_flow, images, model
from tests.schedulers.rollout import ALL, SD14, distance, rollout, unit_noise

NOT_DISTILLED = [n for n in ALL if n not in ("ddim-inverse", "pndm", "lcm", "tcd")]
MEAN, SPREAD = 0.4, 0.7  # one Gaussian, whose flow is known in closed form


def build(name: str, config: dict[str, Any] = SD14, **options: Any) -> Scheduler:
    return build_scheduler(config, "a test", name, **options)


def gaussian(x_t: Tensor, level: NoiseLevel) -> Prediction:
    """The exact prediction for x0 from N(MEAN, SPREAD^2), asked by sigma and not by t."""
    x_hat = x_t / level.signal_rate
    eps = level.sigma * (x_hat - MEAN) / (SPREAD**2 + level.sigma**2)
    return Prediction(x_hat - level.sigma * eps, eps)


def error(scheduler: Scheduler, steps: int) -> float:
    """The distance to the exact flow where the run comes to a fifth of the timesteps.

    Not at its end: there sigma is no smooth function of t, or is reached in one long step.
    """
    timesteps = scheduler.timesteps(steps)
    stop = next(i for i, level in enumerate(timesteps.levels) if level.t <= 200)
    # Where a step has several evaluations, at the end of one.
    group = {"heun": 2, "dpm2": 2, "dpm++2s": getattr(scheduler.config, "solver_order", 1)}
    stop += -stop % group.get(scheduler.name, 1)
    x_t = x_start = unit_noise(dtype=torch.float64)
    history: tuple[Tensor, ...] = ()
    for i in range(stop):
        prediction = gaussian(x_t, timesteps.levels[i])
        x_t, history = scheduler.step(timesteps, i, x_t, prediction, history)
    start, end = timesteps.levels[0], timesteps.levels[stop]
    exact = [
        end.signal_rate * exact_flow(x / start.signal_rate, start.sigma, end.sigma, MEAN, SPREAD)
        for x in x_start.flatten().tolist()
    ]
    return distance(x_t.flatten(), torch.tensor(exact, dtype=torch.float64))


@pytest.mark.parametrize(
    ("name", "options", "order"),
    [
        ("ddim", {}, 1),
        ("euler", {"karras": True}, 1),
        ("dpm++2m", {"order": 1, "karras": True}, 1),
        ("dpm++2m", {"order": 2, "karras": True}, 2),
        ("lms", {"order": 1, "karras": True}, 1),
        ("lms", {"order": 2, "karras": True}, 2),
        ("lms", {"order": 4, "karras": True}, 2),  # its first step is Euler's: no more than 2
        ("pndm", {}, 2),
        ("heun", {"karras": True}, 2),
        ("dpm2", {"sigmas": "exponential"}, 2),
        ("dpm++2s", {"karras": True}, 2),
        ("dpm++2s", {"order": 3, "karras": True}, 2),
        ("dpm++2m", {"order": 3, "karras": True}, 2),  # its second step is of order 2
        ("deis", {"order": 1, "karras": True}, 1),
        ("deis", {"order": 3, "karras": True}, 2),
        ("unipc", {"order": 1, "karras": True}, 2),  # the corrector adds one
        ("unipc", {"order": 2, "karras": True}, 2),  # its first step is corrected to order 2
    ],
)
def test_the_error_falls_with_the_order_of_the_solver(
    name: str, options: dict[str, Any], order: int
) -> None:
    scheduler = build(name, SD14 | {"steps_offset": 0}, **options)
    # 1000 / steps leaves no remainder, so that leading runs cover nearly one range.
    coarse, fine = error(scheduler, 50), error(scheduler, 100)
    assert fine < 0.05
    assert math.log2(coarse / fine) > order - 0.35


def test_higher_orders_are_better() -> None:
    errors = [error(build("lms", order=order, karras=True), 50) for order in (1, 2, 3, 4)]
    assert errors == sorted(errors, reverse=True)
    assert error(build("dpm++2m", karras=True), 50) < error(build("euler", karras=True), 50) / 5
    assert error(build("pndm"), 50) < error(build("ddim"), 50) / 5


@pytest.mark.parametrize("name", [*NOT_DISTILLED, "pndm"])
def test_runs_end_in_the_distribution_of_the_images(name: str) -> None:
    """Noised images come back as other images of the same world."""
    x0 = images((1, 1, 50, 100))
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(3))
    scheduler = build(name, SD14 | {"timestep_spacing": "trailing"})
    timesteps = scheduler.timesteps(40)
    x_t = add_noise(x0, noise, timesteps.levels[0].alpha_bar)
    end = rollout(scheduler, model(SD14), x_t / timesteps.initial_scale, 40)
    for quantile in (0.1, 0.25, 0.5, 0.75, 0.9):
        assert float(end.quantile(quantile)) == pytest.approx(float(x0.quantile(quantile)), abs=0.1)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_ddim_undoes_its_inverse(prediction: str) -> None:
    config = SD14 | {"prediction_type": prediction}
    x0, returned = images((2, 4, 8, 8)), {}
    for steps in (25, 100):
        x_t = rollout(build("ddim-inverse", config), model(config), x0, steps)
        assert float(x_t.std()) == pytest.approx(1.0, abs=0.1)
        returned[steps] = distance(rollout(build("ddim", config), model(config), x_t, steps), x0)
    assert returned[25] < 0.1
    assert returned[100] < returned[25] / 2


def test_one_step_of_the_inverse_is_undone_exactly_when_eps_is_the_same() -> None:
    inverse, ddim = build("ddim-inverse").timesteps(10), build("ddim").timesteps(10)
    x_t, eps = unit_noise(0, torch.float64), unit_noise(1, torch.float64)
    up, down = inverse.levels[4], ddim.levels[5]
    assert (up.t, up.sigma) == (down.t, ddim.levels[6].sigma)
    said = interpret(eps, x_t, up, "epsilon")
    noisier, _ = build("ddim-inverse").step(inverse, 4, x_t, said, ())
    said = interpret(eps, noisier, down, "epsilon")
    back, _ = build("ddim").step(ddim, 5, noisier, said, ())
    assert distance(back, x_t) < 1e-14


def test_euler_is_ddim_and_euler_ancestral_is_ddpm() -> None:
    """Between the same levels: trailing, whole timesteps, ending clean."""
    config = SD14 | {"timestep_spacing": "trailing", "set_alpha_to_one": True}
    for karras_free, eta in (("euler", 0.0), ("euler-ancestral", 1.0)):
        ours, ddim = build(karras_free, config), build("ddim", config, eta=eta)
        scale = ours.timesteps(20).initial_scale
        a = rollout(ours, model(config), unit_noise(), 20)
        b = rollout(ddim, model(config), unit_noise() * scale, 20)
        assert distance(a, b) < 1e-5


def test_first_orders_are_all_ddim() -> None:
    levels = (NoiseLevel(800.0, 5.0), NoiseLevel(500.0, 1.3))
    x_t, eps = unit_noise(0, torch.float64), unit_noise(1, torch.float64)
    said = interpret(eps, x_t, levels[0], "epsilon")
    ends = []
    for name in ("ddim", "dpm++2m", "lms", "pndm", "euler"):
        scheduler = build(name)
        timesteps = scheduler.timesteps(2)
        timesteps = type(timesteps)(levels, timesteps.initial_scale)
        ends.append(scheduler.step(timesteps, 0, x_t, said, ())[0])
    for one, other in pairwise(ends):
        assert distance(one, other) < 1e-13


def test_adams_bashforth_of_even_steps_is_the_textbook_one() -> None:
    for order in (1, 2, 3, 4):
        nodes = [7.0 + 0.5 * k for k in range(order)]  # newest first, falling sigma
        weights = linear_multistep_coefficients(nodes, 6.5)
        assert weights == pytest.approx([-0.5 * w for w in MULTISTEP_WEIGHTS[order]])
        assert sum(weights) == pytest.approx(-0.5)
    # arXiv:2202.09778, eq. 12
    assert MULTISTEP_WEIGHTS[4] == (55 / 24, -59 / 24, 37 / 24, -9 / 24)


def test_adams_bashforth_of_uneven_steps_integrates_cubics_exactly() -> None:
    nodes = [2.0, 2.7, 4.1, 9.0]
    weights = linear_multistep_coefficients(nodes, 1.2)
    for power in range(4):
        exact = (1.2 ** (power + 1) - 2.0 ** (power + 1)) / (power + 1)
        ours = sum(w * node**power for w, node in zip(weights, nodes, strict=True))
        assert ours == pytest.approx(exact)


def test_a_node_at_infinity_is_the_limit_of_a_far_one() -> None:
    far = linear_multistep_coefficients([2.0, 2.7, 1e9], 1.2)
    assert linear_multistep_coefficients([2.0, 2.7, math.inf], 1.2) == pytest.approx(far, abs=1e-6)


def test_equal_nodes_are_told_apart_by_their_index() -> None:
    """Two evaluations at one sigma have no slope between them: no weight is silently doubled."""
    with pytest.raises(ZeroDivisionError):
        linear_multistep_coefficients([2.0, 2.0], 1.2)


@pytest.mark.parametrize("name", NOT_DISTILLED)
@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_zero_terminal_snr_from_the_very_noise(name: str, prediction: str) -> None:
    keys = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    config = SD14 | keys | {"prediction_type": prediction}
    for steps in (1, 2, 25):
        scheduler = build(name, config)
        assert scheduler.timesteps(steps).levels[0].sigma == math.inf
        x0 = rollout(scheduler, model(config), unit_noise(), steps)
        assert bool(x0.isfinite().all())
    if not scheduler.stochastic:
        fine = rollout(scheduler, model(config), unit_noise(), 250)
        assert distance(x0, fine) < 0.15


def test_pndm_cannot_start_without_signal() -> None:
    keys = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    with pytest.raises(SchedulerError, match="pndm cannot start"):
        build("pndm", SD14 | keys).timesteps(20)
    assert len(build("pndm", SD14 | keys).timesteps(20, start=1)) == 20


def tensors_in(history: tuple[Any, ...]) -> list[Tensor]:
    """The tensors of a history, which may hold tuples of them."""
    found: list[Tensor] = []
    for kept in history:
        if isinstance(kept, tuple):
            found += tensors_in(kept)
        elif kept is not None:
            found.append(kept)
    return found


@pytest.mark.parametrize("name", ALL)
def test_a_step_is_pure(name: str) -> None:
    scheduler = build(name)
    timesteps = scheduler.timesteps(6)
    x_t, history = unit_noise(), ()
    for i in range(len(timesteps)):
        said = interpret(unit_noise(i + 1), x_t, timesteps.levels[i], "epsilon")
        given = [x_t, said.x0, said.eps, *tensors_in(history)]
        before = [tensor.clone() for tensor in given]
        noise = unit_noise(99) if scheduler.stochastic else None
        one = scheduler.step(timesteps, i, x_t, said, history, noise)
        other = scheduler.step(timesteps, i, x_t, said, history, noise)
        assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))
        assert torch.equal(one[0], other[0])
        kept = zip(tensors_in(one[1]), tensors_in(other[1]), strict=True)
        assert all(torch.equal(a, b) for a, b in kept)
        x_t, history = one


@pytest.mark.parametrize("name", ALL)
def test_two_runs_that_share_a_scheduler_do_not_meet(name: str) -> None:
    scheduler = build(name)
    alone = [rollout(scheduler, model(SD14), unit_noise(seed), 12) for seed in (0, 1)]

    # In turns, one step each, ...
    generators = [torch.Generator().manual_seed(5) for _ in range(2)]
    runs: list[list[Any]] = []
    for seed, steps in ((0, 12), (1, 12)):
        timesteps = scheduler.timesteps(steps)
        runs.append([timesteps, unit_noise(seed) * timesteps.initial_scale, ()])
    for i in range(len(runs[0][0])):
        for run, generator in zip(runs, generators, strict=True):
            timesteps, x_t, history = run
            level = timesteps.levels[i]
            said = interpret(model(SD14)(x_t, level.t), x_t, level, "epsilon")
            fresh = torch.randn(x_t.shape, generator=generator) if scheduler.stochastic else None
            run[1], run[2] = scheduler.step(timesteps, i, x_t, said, history, fresh)
    assert all(torch.equal(run[1], end) for run, end in zip(runs, alone, strict=True))

    # ... and at once.
    with ThreadPoolExecutor(2) as pool:
        ends = pool.map(lambda s: rollout(scheduler, model(SD14), unit_noise(s), 12), (0, 1))
        assert all(torch.equal(a, b) for a, b in zip(ends, alone, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ALL)
def test_latents_keep_their_type(name: str, dtype: torch.dtype) -> None:
    scheduler = build(name)
    timesteps = scheduler.timesteps(4)
    x_t, history = unit_noise(dtype=dtype), ()
    for i in range(len(timesteps)):
        said = interpret(unit_noise(i, dtype), x_t, timesteps.levels[i], "epsilon")
        noise = unit_noise(9, dtype) if scheduler.stochastic else None
        x_t, history = scheduler.step(timesteps, i, x_t, said, history, noise)
        assert x_t.dtype == dtype
        assert bool(x_t.isfinite().all())


def test_stochastic_solvers_say_so_and_ask_for_noise() -> None:
    wanting = {name for name in ALL if build(name).stochastic}
    assert wanting == {
        "euler-ancestral", "dpm2-ancestral", "dpm++2s-ancestral", "dpm++sde", "dpm++2m-sde",
        "dpm++3m-sde", "ddpm", "lcm", "tcd",
    }  # fmt: skip
    eta = build("ddim", eta=0.5)
    assert eta.stochastic
    for scheduler in (eta, *map(build, wanting - {"dpm2-ancestral", "dpm++2s-ancestral"})):
        timesteps = scheduler.timesteps(3)
        said = interpret(unit_noise(), unit_noise(), timesteps.levels[0], "epsilon")
        with pytest.raises(SchedulerError, match="needs noise"):
            scheduler.step(timesteps, 0, unit_noise(), said, ())


@pytest.mark.parametrize("name", ALL)
def test_gradients_flow_through_a_step(name: str) -> None:
    """Techniques that guide by a loss differentiate through it."""
    scheduler = build(name)
    timesteps = scheduler.timesteps(5)
    x_t = unit_noise().requires_grad_()
    said = interpret(unit_noise(1), x_t, timesteps.levels[0], "epsilon")
    noise = unit_noise(2) if scheduler.stochastic else None
    scheduler.step(timesteps, 0, x_t, said, (), noise)[0].sum().backward()
    assert x_t.grad is not None
    assert float(x_t.grad.abs().min()) > 0


def test_karras_is_for_solvers_in_sigma_or_lambda() -> None:
    without = {"ddim", "ddim-inverse", "pndm", "euler-ancestral", "ddpm", "lcm", "tcd"}
    for name in ALL:
        config = SD14 | {"use_karras_sigmas": True}  # in a file it says nothing to the others
        differs = build(name, config).timesteps(5).levels != build(name).timesteps(5).levels
        assert differs == (name not in without)
