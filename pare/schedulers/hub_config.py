"""The Hub's `scheduler_config.json`: what every solver reads from it.

The file says two kinds of things.  Some belong to the *model*: how noise was added in
training and what the network predicts.  Those keys stand here and hold for every solver.
The rest are habits of the *solver* that the file happened to be written for; each solver
adds the ones that it knows in its own file, and to all others they are unused.  So any
solver can be built from any model's file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pare.config import HubConfig, Pin, boolean, integer, number, one_of, wrong_value

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
SPACINGS = ("leading", "linspace", "trailing")
FINAL_SIGMAS = ("zero", "sigma_min")

NO_THRESHOLDING = Pin((False,), "latents are not bounded, so there is nothing to threshold at")
KARRAS_OR_PLAIN = Pin((False,), "the sigmas are the model's own or Karras et al.'s")

# Every key that some solver of the Hub knows beside the model's own keys.  A solver's
# UNUSED is this set without the keys that the solver itself reads or pins.
SOLVER_KEYS = frozenset(
    """
    algorithm_type clip_sample clip_sample_range disable_corrector dynamic_thresholding_ratio
    euler_at_final final_sigmas_type flow_shift interpolation_type lambda_min_clipped
    lower_order_final original_inference_steps predict_x0 s_churn s_noise s_tmax s_tmin
    sample_max_value set_alpha_to_one set_alpha_to_zero shift_terminal sigma_data sigma_max
    sigma_min sigma_schedule skip_prk_steps solver_order solver_p solver_type thresholding
    time_shift_type timestep_scaling timestep_type use_beta_sigmas use_dynamic_shifting
    use_exponential_sigmas use_flow_sigmas use_karras_sigmas use_lu_lambdas variance_type
    """.split()  # noqa: SIM905 - one key a line would fill a screen
)


@dataclass(frozen=True)
class SchedulerConfig(HubConfig):
    """The model's own keys, and how the timesteps of a run are spread."""

    num_train_timesteps: int  # T; a training timestep t is 0 .. T-1
    beta_schedule: str  # 'linear' | 'scaled_linear' | 'squaredcos_cap_v2'
    beta_start: float
    beta_end: float
    trained_betas: tuple[float, ...] | None  # stand for the three keys above where given
    rescale_betas_zero_snr: bool  # arXiv:2305.08891, algorithm 1
    prediction_type: str  # 'epsilon' | 'v_prediction' | 'sample'
    timestep_spacing: str  # 'leading' | 'linspace' | 'trailing'
    steps_offset: int  # added to every timestep of the leading spacing

    # The spacing's default differs from solver to solver: each adds its own.
    HUB_DEFAULTS: ClassVar[Mapping[str, object]] = {
        "num_train_timesteps": 1000,
        "beta_schedule": "linear",
        "beta_start": 0.0001,
        "beta_end": 0.02,
        "trained_betas": None,
        "rescale_betas_zero_snr": False,
        "prediction_type": "epsilon",
        "steps_offset": 0,
    }

    @classmethod
    def normalise(cls, values: dict[str, Any], where: str) -> dict[str, Any]:
        count = integer(values, "num_train_timesteps", where, 1, 100_000)
        schedules = ("linear", "scaled_linear", "squaredcos_cap_v2")
        return values | {
            "num_train_timesteps": count,
            "beta_schedule": one_of(values, "beta_schedule", where, schedules),
            "beta_start": number(values, "beta_start", where, 1e-9, 0.999),
            "beta_end": number(values, "beta_end", where, 1e-9, 0.999),
            "trained_betas": betas(values, where, count),
            "rescale_betas_zero_snr": boolean(values, "rescale_betas_zero_snr", where),
            "prediction_type": one_of(values, "prediction_type", where, PREDICTION_TYPES),
            "timestep_spacing": one_of(values, "timestep_spacing", where, SPACINGS),
            "steps_offset": integer(values, "steps_offset", where, 0),
        }


def betas(values: Mapping[str, Any], where: str, count: int) -> tuple[float, ...] | None:
    """The `count` numbers under `trained_betas`, each between 0 and 1, or None."""
    listed = values["trained_betas"]
    if listed is None:
        return None
    expected = f"null or {count} numbers above 0 and below 1, one a timestep"
    if not isinstance(listed, list | tuple) or len(listed) != count:
        raise wrong_value(where, "trained_betas", listed, expected)
    for value in listed:
        good = isinstance(value, int | float) and not isinstance(value, bool)
        if not good or not 0 < value < 1:
            raise wrong_value(where, "trained_betas", value, expected)
    return tuple(float(value) for value in listed)
