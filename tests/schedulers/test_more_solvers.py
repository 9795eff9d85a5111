"""The solvers of newer files and presets, against diffusers and against k-diffusion's formulas."""

from __future__ import annotations

import importlib
import math
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from pare.schedulers import Scheduler, build_scheduler, interpret
from tests.references import k_diffusion_solvers
from tests.schedulers.analytic import Model, alpha_bars, model, posterior_mean
from tests.schedulers.rollout import SD14, distance, unit_noise

# diffusers turns tensors into arrays in a way that NumPy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

BOUND = 1e-5
RUNS = [(2, 0), (7, 2), (20, 0), (50, 16)]
CLASSES = {
    "heun": diffusers.HeunDiscreteScheduler,
    "dpm2": diffusers.KDPM2DiscreteScheduler,
    "dpm2-ancestral": diffusers.KDPM2AncestralDiscreteScheduler,
    "dpm++2m": diffusers.DPMSolverMultistepScheduler,
    "dpm++2m-sde": diffusers.DPMSolverMultistepScheduler,
    "dpm++2s": diffusers.DPMSolverSinglestepScheduler,
    "unipc": diffusers.UniPCMultistepScheduler,
    "deis": diffusers.DEISMultistepScheduler,
    "ddpm": diffusers.DDPMScheduler,
    "lcm": diffusers.LCMScheduler,
    "tcd": diffusers.TCDScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
    "lms": diffusers.LMSDiscreteScheduler,
}
IN_K_DIFFUSION = {
    "dpm++2s-ancestral": k_diffusion_solvers.dpmpp_2s_ancestral,
    "dpm++sde": k_diffusion_solvers.dpmpp_sde,
    "dpm++3m-sde": k_diffusion_solvers.dpmpp_3m_sde,
}
IN_SIGMA = ("heun", "dpm2", "dpm2-ancestral", "euler", "lms")
TWO_EVALUATIONS = ("heun", "dpm2", "dpm2-ancestral")
ALGORITHMS = {"dpm++2m-sde": "sde-dpmsolver++", "dpm++2m": "dpmsolver++", "dpm++2s": "dpmsolver++"}


def fresh(k: int) -> Tensor:
    """The noise of evaluation k."""
    return unit_noise(1000 + k, torch.float64)


def ours(scheduler: Scheduler, denoise: Model, noise: Tensor, steps: int, start: int) -> Tensor:
    timesteps = scheduler.timesteps(steps, start)
    x_t = noise * timesteps.initial_scale if start == 0 else noise
    history: tuple[Any, ...] = ()
    for i in range(len(timesteps)):
        level = timesteps.levels[i]
        said = interpret(denoise(x_t, level.t), x_t, level, scheduler.prediction_type)
        x_t, history = scheduler.step(timesteps, i, x_t, said, history, fresh(i).to(x_t))
    return x_t


def theirs(
    name: str, config: dict[str, Any], denoise: Model, noise: Tensor, steps: int, start: int,
    **extra: Any,
) -> Tensor:  # fmt: skip
    """diffusers' run on the same noise, its sigmas and timesteps not rounded to float32."""
    told = {**config, "algorithm_type": ALGORITHMS.get(name, "deis")}
    scheduler: Any = CLASSES[name].from_config(told)
    scheduler.alphas_cumprod = torch.from_numpy(alpha_bars(config)).to(torch.float64)
    table = np.sqrt((1 - alpha_bars(config)) / alpha_bars(config))
    scheduler.set_timesteps(steps)
    first = 2 * start if name in TWO_EVALUATIONS else start
    timesteps = scheduler.timesteps[first:]
    if hasattr(scheduler, "sigmas"):
        in_float64(scheduler, table, steps)
        # Spread timesteps are rounded, and not cut off: see docs/deviations.md.
        if timesteps.dtype == torch.int64 and any(
            config.get(f"use_{spread}_sigmas") for spread in ("exponential", "beta")
        ):
            sigmas = scheduler.sigmas[:-1].numpy()
            exact = scheduler._sigma_to_t(sigmas, np.log(table))
            timesteps = torch.from_numpy(exact.round()).long()[first:]
            scheduler.timesteps = torch.from_numpy(exact.round()).long()
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    x = noise * scheduler.init_noise_sigma if start == 0 else noise
    if name in IN_SIGMA and start:
        x = noise * (scheduler.sigmas[first] ** 2 + 1) ** 0.5
    module = importlib.import_module(type(scheduler).__module__)
    with pytest.MonkeyPatch.context() as patch:
        for k, t in enumerate(timesteps):
            if hasattr(module, "randn_tensor"):
                patch.setattr(module, "randn_tensor", lambda *_, k=k, **__: fresh(k))
            if name == "lms":
                extra = {"order": min(k + 1, 4)}
            if name in ALGORITHMS and name != "dpm++2s":
                extra = {"variance_noise": fresh(k)}
            output = denoise(scheduler.scale_model_input(x, t), float(t))
            x = scheduler.step(output, t, x, **extra).prev_sample
    return x


def in_float64(scheduler: Any, table: np.ndarray, steps: int) -> None:
    """Give a scheduler the sigmas of its run again, as they are before rounding."""
    kept = scheduler.sigmas.double().numpy()
    rounded = table.astype(np.float32).astype(np.float64)
    config = scheduler.config
    spread = next(
        (s for s in ("karras", "exponential", "beta") if config.get(f"use_{s}_sigmas")), None
    )
    spread = "exponential" if config.get("use_lu_lambdas") else spread
    if spread is None:
        # Each is the table's at a timestep, or between two.
        numbers = np.interp(kept, rounded, np.arange(len(table)))
        near = numbers.round()
        numbers = np.where(abs(numbers - near) < 2e-3, near, numbers)
        exact = np.interp(numbers, np.arange(len(table)), table)
    else:
        high, low = max(kept), min(kept[kept > 0])
        high, low = (table[abs(table - end).argmin()] for end in (high, low))
        ramp = np.linspace(0, 1, steps)
        if spread == "karras":
            values = (high ** (1 / 7) + ramp * (low ** (1 / 7) - high ** (1 / 7))) ** 7
        elif spread == "exponential":
            values = np.exp(np.log(high) + ramp * np.log(low / high))
        else:
            from scipy.stats import beta

            values = low + beta.ppf(1 - ramp, 0.6, 0.6) * (high - low)
        exact = values[abs(values[None] - kept[:, None]).argmin(axis=1)]
    scheduler.sigmas = torch.from_numpy(np.where(kept == 0, 0.0, exact))
    if hasattr(scheduler, "sigmas_interpol"):  # what DPM2 computes from them
        sigmas = torch.cat([scheduler.sigmas[:1], scheduler.sigmas[1:-1:2]])
        repeat = lambda x: torch.cat([x[:1], x[1:].repeat_interleave(2), x[-1:]])  # noqa: E731
        if hasattr(scheduler, "sigmas_up"):
            later = sigmas.roll(-1)
            later[-1] = 0.0
            up = (later**2 * (sigmas**2 - later**2) / sigmas**2) ** 0.5
            down = (later**2 - up**2) ** 0.5
            down[-1] = 0.0
            middle = sigmas.log().lerp(down.log(), 0.5).exp()
            middle[-2:] = 0.0
            scheduler.sigmas_up, scheduler.sigmas_down = repeat(up), repeat(down)
        else:
            middle = sigmas.log().lerp(sigmas.roll(1).log(), 0.5).exp()
        scheduler.sigmas_interpol = repeat(middle)


def check(name: str, config: dict[str, Any], steps: int, start: int = 0, **options: Any) -> None:
    noise = unit_noise(dtype=torch.float64)
    scheduler = build_scheduler(config, "a test", name, **options)
    mine = ours(scheduler, model(config), noise, steps, start)
    reference = theirs(name, config, model(config), noise, steps, start, **options)
    if name in IN_SIGMA:  # ends at sigma 0, where both scales are one
        assert scheduler.timesteps(steps).levels[-1].sigma == 0
    assert distance(mine, reference) < BOUND


SPREADS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
SPREADABLE = [name for name in CLASSES if name not in ("ddpm", "lcm", "tcd")]


@pytest.mark.parametrize("name", CLASSES)
def test_every_solver_from_the_start_and_from_midway(name: str) -> None:
    for steps, start in RUNS:
        check(name, SD14, steps, start)
    check(name, SD14 | {"prediction_type": "v_prediction"}, 20)


@pytest.mark.parametrize("key", SPREADS)
@pytest.mark.parametrize("name", SPREADABLE)
def test_spread_sigmas(name: str, key: str) -> None:
    for steps, start in ((7, 0), (20, 7)):
        check(name, SD14 | {key: True}, steps, start)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("name", [n for n in CLASSES if n not in ("dpm++2s", "lcm", "tcd")])
def test_spacings(name: str, spacing: str) -> None:
    for steps, start in ((2, 0), (25, 8)):
        check(name, SD14 | {"timestep_spacing": spacing}, steps, start)


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("dpm++2m", {"solver_order": 3}),
        ("dpm++2m", {"solver_order": 3, "lower_order_final": False}),
        ("dpm++2m", {"use_lu_lambdas": True}),
        ("dpm++2m-sde", {"solver_order": 1}),
        ("dpm++2m-sde", {"solver_type": "heun"}),
        ("dpm++2m-sde", {"final_sigmas_type": "sigma_min"}),
        ("dpm++2s", {"solver_order": 1}),
        ("dpm++2s", {"solver_order": 3}),
        ("dpm++2s", {"solver_order": 3, "solver_type": "heun"}),
        ("dpm++2s", {"solver_type": "heun", "lower_order_final": True}),
        ("dpm++2s", {"final_sigmas_type": "sigma_min"}),
        ("dpm++2s", {"final_sigmas_type": "sigma_min", "solver_order": 3}),
        ("unipc", {"solver_order": 1}),
        ("unipc", {"solver_order": 3}),
        # With bh1 diffusers cannot end clean: it multiplies infinity by 0.
        ("unipc", {"solver_type": "bh1", "solver_order": 3, "final_sigmas_type": "sigma_min"}),
        ("unipc", {"disable_corrector": [0, 3]}),
        ("unipc", {"final_sigmas_type": "sigma_min"}),
        ("unipc", {"final_sigmas_type": "sigma_min", "lower_order_final": False}),
        ("deis", {"solver_order": 1}),
        ("deis", {"solver_order": 3}),
        ("deis", {"solver_order": 3, "lower_order_final": False}),
        ("ddpm", {"variance_type": "fixed_large"}),
        ("ddpm", {"variance_type": "fixed_small_log"}),
        ("ddpm", {"clip_sample": True, "clip_sample_range": 1.1}),
        ("lcm", {"original_inference_steps": 100}),
        ("lcm", {"timestep_scaling": 1.0}),
        ("lcm", {"clip_sample": True, "clip_sample_range": 1.1}),
        ("tcd", {"original_inference_steps": 200}),
    ],
    ids=str,
)
def test_variants(name: str, keys: dict[str, Any]) -> None:
    for steps, start in ((2, 0), (7, 0), (14, 3), (20, 7), (21, 0)):
        check(name, SD14 | keys, steps, start)


@pytest.mark.parametrize(
    ("name", "schedule"), [("ddpm", "sigmoid"), ("ddpm", "laplace"), ("heun", "exp")]
)
def test_rare_noise_schedules(name: str, schedule: str) -> None:
    config = SD14 | {"beta_schedule": schedule}
    theirs = CLASSES[name].from_config(config).alphas_cumprod
    mine = build_scheduler(config, "a test", name).schedule.alpha_bar
    assert float((mine - theirs.double()).abs().max()) < 1e-5


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_tcd_at_every_gamma(eta: float) -> None:
    for steps in (1, 2, 4, 8):
        check("tcd", SD14, steps, eta=eta)


def denoise(x: Tensor, sigma: float) -> Tensor:
    """The exact x0 of k-diffusion's x and sigma."""
    return posterior_mean(x / math.hypot(1, sigma), 1 / (1 + sigma**2))


def path(sigmas: list[float]) -> Any:
    """A Brownian motion over sigma, whose increments between `sigmas` are those of `fresh`."""
    steps = [
        math.sqrt(high - low) * fresh(k)
        for k, (high, low) in enumerate(zip(sigmas, sigmas[1:], strict=False))
    ]

    def increment(high: float, low: float) -> Tensor:
        first, last = (
            min(range(len(sigmas)), key=lambda k: abs(sigmas[k] - s)) for s in (high, low)
        )
        return torch.stack(steps[first:last]).sum(0) / math.sqrt(high - low)

    return increment


@pytest.mark.parametrize("karras", [False, True])
@pytest.mark.parametrize("name", IN_K_DIFFUSION)
def test_k_diffusions_solvers_with_fresh_noise(name: str, karras: bool) -> None:
    for steps in (2, 7, 20, 50):
        scheduler = build_scheduler(SD14, "a test", name, karras=karras)
        timesteps = scheduler.timesteps(steps)
        sigmas = [level.sigma for level in timesteps.levels]
        solver = IN_K_DIFFUSION[name]
        ends = sigmas if name == "dpm++3m-sde" else [*sigmas[:-1:2], 0.0]
        if name == "dpm++2s-ancestral":  # whose noise is all of a step's second evaluation
            numbers = {high: 2 * k + 1 for k, high in enumerate(ends[:-1])}
            noise = lambda high, low, numbers=numbers: fresh(numbers[high])  # noqa: E731
        else:
            noise = path(sigmas)

        x_t = unit_noise(dtype=torch.float64) * timesteps.initial_scale
        theirs = solver(x_t * math.hypot(1, sigmas[0]), ends, denoise, noise)
        history: tuple[Any, ...] = ()
        for i, level in enumerate(timesteps.levels[:-1]):
            said = interpret(posterior_mean(x_t, level.alpha_bar), x_t, level, "sample")
            x_t, history = scheduler.step(timesteps, i, x_t, said, history, fresh(i))
        assert distance(x_t, theirs) < BOUND
