"""The Hub's `scheduler_config.json`: every key of every solver, and the options that replace them.

The file says two kinds of things.  Some belong to the *model*: how noise was added in
training and what the network predicts.  Those keys are `SchedulerConfig`'s and hold for every
solver.  The rest are settings of the *solver* that the file was written for: each solver
has a subclass here with the keys that it reads, and keys of other solvers are unused.
So any solver can be built from any model's file.

This is bookkeeping alone: what the keys do to a run stands in each solver's own file.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Self

from pare.config import HubConfig, Pin, boolean, integer, number, one_of, wrong_value

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
SPACINGS = ("leading", "linspace", "trailing")
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
FINAL_SIGMAS = ("zero", "sigma_min")

Check = Callable[[Mapping[str, Any], str, str], Any]
"""(values, key, name of the file) -> the value in its normal form, or a ConfigError."""


@dataclass(frozen=True)
class Option:
    """A setting that a user may choose for a solver, instead of what the file says."""

    accepts: Callable[[Any], bool]
    expected: str
    key: str = ""
    """The file's key that it replaces; "" where it is a field of the solver itself."""


def choice(values: tuple[str, ...], key: str = "") -> Option:
    return Option(lambda value: value in values, " or ".join(values), key)


def switch(key: str = "") -> Option:
    return Option(lambda value: isinstance(value, bool), "true or false", key)


def whole_number(low: int, high: int, key: str = "") -> Option:
    return Option(
        lambda value: type(value) is int and low <= value <= high,
        f"a whole number from {low} to {high}",
        key,
    )


def fraction(key: str = "") -> Option:
    return Option(
        lambda value: type(value) in (int, float) and 0 <= value <= 1, "a number from 0 to 1", key
    )


# Every key that some solver of the Hub knows beside the model's own keys.
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
    trained_betas: tuple[float, ...] | None  # replace the three keys above where given
    rescale_betas_zero_snr: bool  # arXiv:2305.08891, algorithm 1
    prediction_type: str  # 'epsilon' | 'v_prediction' | 'sample'
    timestep_spacing: str  # 'leading' | 'linspace' | 'trailing'
    steps_offset: int  # added to every timestep of the leading spacing

    HUB_CLASS: ClassVar[str]
    """The `_class_name` of a file whose solver this is."""
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
    CHECKS: ClassVar[Mapping[str, Check]] = {
        "num_train_timesteps": partial(integer, low=1, high=100_000),
        "beta_schedule": partial(one_of, options=BETA_SCHEDULES),
        "beta_start": partial(number, low=1e-9, high=0.999),
        "beta_end": partial(number, low=1e-9, high=0.999),
        "rescale_betas_zero_snr": boolean,
        "prediction_type": partial(one_of, options=PREDICTION_TYPES),
        "timestep_spacing": partial(one_of, options=SPACINGS),
        "steps_offset": partial(integer, low=0),
    }
    OPTIONS: ClassVar[Mapping[str, Option]] = {
        "spacing": choice(SPACINGS, "timestep_spacing"),
        "prediction_type": choice(PREDICTION_TYPES, "prediction_type"),
    }

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        modelled = {key for base in cls.__mro__ for key in inspect.get_annotations(base)}
        cls.UNUSED = SOLVER_KEYS - modelled - cls.PINNED.keys()

    @classmethod
    def normalise(cls, values: dict[str, Any], where: str) -> dict[str, Any]:
        checked = {key: check(values, key, where) for key, check in cls.CHECKS.items()}
        count = checked["num_train_timesteps"]
        return values | checked | {"trained_betas": trained_betas(values, where, count)}


def trained_betas(values: Mapping[str, Any], where: str, count: int) -> tuple[float, ...] | None:
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


# --- the solvers' own keys ----------------------------------------------------------------

NO_THRESHOLDING = Pin((False,), "latents are not bounded, so there is nothing to threshold at")
KARRAS_OR_PLAIN = Pin((False,), "the sigmas are the model's own or Karras et al.'s")


@dataclass(frozen=True)
class DDIMConfig(SchedulerConfig):
    set_alpha_to_one: bool  # end at alpha_bar = 1; if false, at the level of timestep 0
    clip_sample: bool  # clamp the predicted x0 to +-clip_sample_range
    clip_sample_range: float

    HUB_CLASS: ClassVar[str] = "DDIMScheduler"
    HUB_DEFAULTS: ClassVar[Mapping[str, object]] = {
        **SchedulerConfig.HUB_DEFAULTS,
        "timestep_spacing": "leading",
        "set_alpha_to_one": True,
        "clip_sample": True,
        "clip_sample_range": 1.0,
    }
    CHECKS: ClassVar[Mapping[str, Check]] = {
        **SchedulerConfig.CHECKS,
        "set_alpha_to_one": boolean,
        "clip_sample": boolean,
        "clip_sample_range": partial(number, low=1e-6, high=1e6),
    }
    PINNED: ClassVar[Mapping[str, Pin]] = {"thresholding": NO_THRESHOLDING}

    @classmethod
    def read(cls, raw: Mapping[str, Any], where: str) -> Self:
        # Clipping is for pixels; latents reach far beyond 1.  Other solvers do not clip, so a
        # file that was written for one of them lacks the key and must stay unclipped.
        if raw.get("_class_name") not in ("DDIMScheduler", "DDIMInverseScheduler"):
            raw = {"clip_sample": False, **raw}
        return super().read(raw, where)


@dataclass(frozen=True)
class DDIMInverseConfig(DDIMConfig):
    HUB_CLASS: ClassVar[str] = "DDIMInverseScheduler"


@dataclass(frozen=True)
class PNDMConfig(SchedulerConfig):
    set_alpha_to_one: bool  # end at alpha_bar = 1; if false, at the level of timestep 0
    skip_prk_steps: bool  # start with one step of Heun's kind instead of three Runge-Kutta steps

    HUB_CLASS: ClassVar[str] = "PNDMScheduler"
    HUB_DEFAULTS: ClassVar[Mapping[str, object]] = {
        **SchedulerConfig.HUB_DEFAULTS,
        "timestep_spacing": "leading",
        "set_alpha_to_one": False,
        "skip_prk_steps": False,
    }
    CHECKS: ClassVar[Mapping[str, Check]] = {
        **SchedulerConfig.CHECKS,
        "set_alpha_to_one": boolean,
        "skip_prk_steps": boolean,
    }


@dataclass(frozen=True)
class DPMPlusPlusConfig(SchedulerConfig):
    use_karras_sigmas: bool
    solver_order: int  # 1 (which is DDIM) or 2
    solver_type: str  # 'midpoint' | 'heun'
    lower_order_final: bool  # runs of fewer than 15 steps end with a step of order 1
    euler_at_final: bool  # every run does
    final_sigmas_type: str  # 'zero': end clean | 'sigma_min': at the level of timestep 0

    HUB_CLASS: ClassVar[str] = "DPMSolverMultistepScheduler"
    HUB_DEFAULTS: ClassVar[Mapping[str, object]] = {
        **SchedulerConfig.HUB_DEFAULTS,
        "timestep_spacing": "linspace",
        "use_karras_sigmas": False,
        "solver_order": 2,
        "solver_type": "midpoint",
        "lower_order_final": True,
        "euler_at_final": False,
        "final_sigmas_type": "zero",
    }
    CHECKS: ClassVar[Mapping[str, Check]] = {
        **SchedulerConfig.CHECKS,
        "use_karras_sigmas": boolean,
        "solver_order": partial(integer, low=1, high=2),
        "solver_type": partial(one_of, options=("midpoint", "heun")),
        "lower_order_final": boolean,
        "euler_at_final": boolean,
        "final_sigmas_type": partial(one_of, options=FINAL_SIGMAS),
    }
    PINNED: ClassVar[Mapping[str, Pin]] = {
        "algorithm_type": Pin(("dpmsolver++", "deis"), "this solver is the deterministic ++ one"),
        "thresholding": NO_THRESHOLDING,
        "use_exponential_sigmas": KARRAS_OR_PLAIN,
        "use_beta_sigmas": KARRAS_OR_PLAIN,
        "use_lu_lambdas": KARRAS_OR_PLAIN,
        "use_flow_sigmas": KARRAS_OR_PLAIN,
        "lambda_min_clipped": Pin((-math.inf,), "every level of the schedule may be visited"),
        "variance_type": Pin(
            (None, "fixed_small", "fixed_large"), "Stable Diffusion learns no variance"
        ),
    }
    OPTIONS: ClassVar[Mapping[str, Option]] = {
        **SchedulerConfig.OPTIONS,
        "karras": switch("use_karras_sigmas"),
        "order": whole_number(1, 2, "solver_order"),
    }

    @classmethod
    def normalise(cls, values: dict[str, Any], where: str) -> dict[str, Any]:
        # UniPC and DEIS call their variants by other names, which say nothing to this solver.
        if values["solver_type"] in ("bh1", "bh2", "logrho"):
            values = values | {"solver_type": "midpoint"}
        return super().normalise(values, where)


@dataclass(frozen=True)
class LMSConfig(SchedulerConfig):
    use_karras_sigmas: bool

    HUB_CLASS: ClassVar[str] = "LMSDiscreteScheduler"
    HUB_DEFAULTS: ClassVar[Mapping[str, object]] = {
        **SchedulerConfig.HUB_DEFAULTS,
        "timestep_spacing": "linspace",
        "use_karras_sigmas": False,
    }
    CHECKS: ClassVar[Mapping[str, Check]] = {
        **SchedulerConfig.CHECKS,
        "use_karras_sigmas": boolean,
    }
    PINNED: ClassVar[Mapping[str, Pin]] = {
        "use_exponential_sigmas": KARRAS_OR_PLAIN,
        "use_beta_sigmas": KARRAS_OR_PLAIN,
    }
    OPTIONS: ClassVar[Mapping[str, Option]] = {
        **SchedulerConfig.OPTIONS,
        "karras": switch("use_karras_sigmas"),
    }


@dataclass(frozen=True)
class EulerConfig(LMSConfig):
    final_sigmas_type: str  # 'zero': end clean | 'sigma_min': at the level of timestep 0

    HUB_CLASS: ClassVar[str] = "EulerDiscreteScheduler"
    HUB_DEFAULTS: ClassVar[Mapping[str, object]] = {
        **LMSConfig.HUB_DEFAULTS,
        "final_sigmas_type": "zero",
    }
    CHECKS: ClassVar[Mapping[str, Check]] = {
        **LMSConfig.CHECKS,
        "final_sigmas_type": partial(one_of, options=FINAL_SIGMAS),
    }
    PINNED: ClassVar[Mapping[str, Pin]] = {
        **LMSConfig.PINNED,
        "interpolation_type": Pin(("linear",), "between two timesteps sigma is linear in t"),
        "timestep_type": Pin(("discrete",), "Stable Diffusion is told t, not log sigma"),
        "sigma_min": Pin((None,), "Karras sigmas end at the range of the timesteps"),
        "sigma_max": Pin((None,), "Karras sigmas begin at the range of the timesteps"),
    }


@dataclass(frozen=True)
class EulerAncestralConfig(SchedulerConfig):
    HUB_CLASS: ClassVar[str] = "EulerAncestralDiscreteScheduler"
    HUB_DEFAULTS: ClassVar[Mapping[str, object]] = {
        **SchedulerConfig.HUB_DEFAULTS,
        "timestep_spacing": "linspace",
    }
