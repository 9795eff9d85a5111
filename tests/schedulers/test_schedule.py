"""The noise schedule, its levels, and the conversions between x0, eps and v."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pare.errors import ConfigError, SchedulerError
from pare.schedulers import (
    CLEAN,
    NoiseLevel,
    NoiseSchedule,
    Prediction,
    add_noise,
    interpret,
    velocity,
)
from pare.schedulers.hub_config import DDIMConfig
from tests.schedulers.analytic import alpha_bars
from tests.schedulers.rollout import SD14, unit_noise

SIGMAS = st.floats(1e-3, 1e3)


def schedule(**keys: object) -> NoiseSchedule:
    return NoiseSchedule.from_config(DDIMConfig.read(SD14 | keys, "a test"))


def test_terminal_snr_is_that_of_the_literature() -> None:
    """arXiv:2305.08891, table 1: sqrt(alpha_bar) and SNR at the last timestep."""
    linear = schedule(beta_schedule="linear", beta_start=0.0001, beta_end=0.02)
    cosine = schedule(beta_schedule="squaredcos_cap_v2")
    for name, table, root, snr in (
        ("linear", linear, 0.006353, 4.035993e-05),
        ("cosine", cosine, 4.928220e-05, 2.428735e-09),
        ("Stable Diffusion", schedule(), 0.068265, 0.004682),
    ):
        last = float(table.alpha_bar[-1])
        assert math.sqrt(last) == pytest.approx(root, rel=1e-4), name
        assert last / (1 - last) == pytest.approx(snr, rel=2e-4), name


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_alpha_bar_agrees_with_a_second_derivation(kind: str, zero_snr: bool) -> None:
    keys = {"beta_schedule": kind, "rescale_betas_zero_snr": zero_snr}
    table = schedule(**keys).alpha_bar
    assert table.dtype == torch.float64
    assert bool((table[1:] < table[:-1]).all())
    expected = torch.from_numpy(alpha_bars(SD14 | keys))
    assert torch.allclose(table, expected, rtol=1e-12, atol=0)


def test_trained_betas_stand_for_the_rest() -> None:
    table = schedule(num_train_timesteps=3, trained_betas=[0.1, 0.2, 0.5])
    assert table.alpha_bar.tolist() == pytest.approx([0.9, 0.72, 0.36])


def test_zero_terminal_snr_keeps_the_first_level_and_empties_the_last() -> None:
    plain, rescaled = schedule(), schedule(rescale_betas_zero_snr=True)
    assert float(rescaled.alpha_bar[0]) == pytest.approx(float(plain.alpha_bar[0]), rel=1e-12)
    last = rescaled.level(999)
    assert (last.alpha_bar, last.signal_rate, last.noise_rate) == (0.0, 0.0, 1.0)
    assert last.lambda_t == -math.inf


def test_levels() -> None:
    table = schedule()
    for t in (0, 1, 500, 999):
        assert table.level(t).alpha_bar == pytest.approx(float(table.alpha_bar[t]), rel=1e-12)
    middle = table.level(10.25).sigma
    assert middle == pytest.approx(0.75 * table.level(10).sigma + 0.25 * table.level(11).sigma)
    assert (CLEAN.alpha_bar, CLEAN.noise_rate, CLEAN.lambda_t) == (1.0, 0.0, math.inf)
    for outside in (-1, -0.01, 999.01, math.nan, math.inf):
        with pytest.raises(SchedulerError):
            table.level(outside)


@given(st.integers(0, 999))
def test_a_timestep_is_found_again_by_its_sigma(t: int) -> None:
    table = schedule()
    assert table.timestep(table.level(t).sigma) == pytest.approx(t, abs=1e-9)


def test_a_sigma_outside_the_training_gets_its_first_or_last_timestep() -> None:
    for table in (schedule(), schedule(rescale_betas_zero_snr=True)):
        assert table.timestep(0.0) == 0.0
        assert table.timestep(1e9) == table.timestep(math.inf) == 999.0


@given(SIGMAS, st.sampled_from(["epsilon", "v_prediction", "sample"]), st.integers(0, 9))
def test_what_the_model_predicts_is_understood(sigma: float, kind: str, seed: int) -> None:
    level = NoiseLevel(0.0, sigma)
    x0, eps = unit_noise(seed, torch.float64), unit_noise(seed + 1, torch.float64)
    x_t = add_noise(x0, eps, level.alpha_bar)
    output = {"epsilon": eps, "sample": x0, "v_prediction": velocity(x0, eps, level.alpha_bar)}
    said = interpret(output[kind], x_t, level, kind)
    assert torch.allclose(said.x0, x0, atol=1e-8)
    assert torch.allclose(said.eps, eps, atol=1e-8)
    again = level.signal_rate * said.x0 + level.noise_rate * said.eps
    assert torch.allclose(again, x_t, atol=1e-8)


def test_v_models_lose_no_digits_at_either_end() -> None:
    x_t, v = unit_noise(0), unit_noise(1)
    said = interpret(v, x_t, NoiseLevel(999.0, math.inf), "v_prediction")
    assert torch.equal(said.x0, -v)
    assert torch.equal(said.eps, x_t)
    said = interpret(v, x_t, CLEAN, "v_prediction")
    assert torch.equal(said.x0, x_t)
    assert torch.equal(said.eps, v)


def test_levels_that_leave_nothing_to_say() -> None:
    x_t = unit_noise()
    with pytest.raises(SchedulerError, match="without signal"):
        interpret(x_t, x_t, NoiseLevel(999.0, math.inf), "epsilon")
    with pytest.raises(SchedulerError, match="without noise"):
        interpret(x_t, x_t, CLEAN, "sample")
    with pytest.raises(SchedulerError, match="'flow'"):
        interpret(x_t, x_t, NoiseLevel(5.0, 1.0), "flow")


@pytest.mark.parametrize("function", [add_noise, velocity])
def test_a_level_per_image(function: object) -> None:
    x0, noise = unit_noise(0), unit_noise(1)
    levels = torch.tensor([0.9991, 0.0047], dtype=torch.float64)
    together = function(x0, noise, levels)  # type: ignore[operator]
    assert together.dtype == torch.float32
    for k in range(2):
        alone = function(x0[k : k + 1], noise[k : k + 1], float(levels[k]))  # type: ignore[operator]
        assert torch.allclose(together[k], alone[0], rtol=1e-6, atol=1e-7)


def test_the_noise_near_the_clean_end_keeps_its_digits() -> None:
    """1 - alpha_bar in float32 would be off by 3 % here."""
    alpha_bar = torch.tensor([1 - 2e-6], dtype=torch.float64)
    noised = add_noise(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1), alpha_bar)
    assert float(noised) == pytest.approx(math.sqrt(2e-6), rel=1e-6)


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        ({"num_train_timesteps": "1000"}, "num_train_timesteps"),
        ({"num_train_timesteps": 0}, "num_train_timesteps"),
        ({"num_train_timesteps": -5}, "num_train_timesteps"),
        ({"num_train_timesteps": 10**12}, "num_train_timesteps"),
        ({"num_train_timesteps": True}, "num_train_timesteps"),
        ({"num_train_timesteps": 1000.0}, "num_train_timesteps"),
        ({"beta_start": math.nan}, "beta_start"),
        ({"beta_start": -0.1}, "beta_start"),
        ({"beta_end": math.inf}, "beta_end"),
        ({"beta_end": 1.5}, "beta_end"),
        ({"beta_end": "0.02"}, "beta_end"),
        ({"beta_schedule": "quadratic"}, "beta_schedule"),
        ({"beta_schedule": None}, "beta_schedule"),
        ({"beta_schedule": ["linear"]}, "beta_schedule"),
        ({"trained_betas": [0.1]}, "trained_betas"),
        ({"trained_betas": "0.1"}, "trained_betas"),
        ({"trained_betas": [0.1] * 999 + [math.nan]}, "trained_betas"),
        ({"trained_betas": [0.1] * 999 + ["x"]}, "trained_betas"),
        ({"trained_betas": [0.9] * 1000}, "noise schedule"),
        ({"beta_schedule": "linear", "beta_start": 0.9, "beta_end": 0.9}, "noise schedule"),
        ({"num_train_timesteps": 1, "rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
        ({"rescale_betas_zero_snr": 2}, "rescale_betas_zero_snr"),
        ({"prediction_type": "flow_prediction"}, "prediction_type"),
        ({"prediction_type": {"a": 1}}, "prediction_type"),
        ({"timestep_spacing": "random"}, "timestep_spacing"),
        ({"steps_offset": -1}, "steps_offset"),
        ({"steps_offset": 0.5}, "steps_offset"),
        ({"set_alpha_to_one": "yes"}, "set_alpha_to_one"),
        ({"clip_sample_range": 0}, "clip_sample_range"),
        ({"thresholding": True}, "thresholding"),
    ],
    ids=str,
)
def test_hostile_configs(keys: dict[str, object], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        schedule(**keys)


def test_a_prediction_is_a_value() -> None:
    with pytest.raises(AttributeError):
        Prediction(unit_noise(), unit_noise()).x0 = unit_noise()  # type: ignore[misc]
