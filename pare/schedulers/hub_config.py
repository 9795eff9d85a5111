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
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "exp", "laplace")
FINAL_SIGMAS = ("zero", "sigma_min")
SPREADS = ("karras", "exponential", "beta")

Check = Callable[[Mapping[str, Any], str, str], Any]
"""(values, key, name of the file) -> the value in its normal form, or a ConfigError."""


@dataclass(frozen=True)
class Option:
    """A setting that a user may choose for a solver, instead of what the file says."""

    accepts: Callable[[Any], bool]
    expected: str
    key: str = ""
    """The file's key that it replaces; "" where it is a field of the solver itself."""
    keys: Callable[[Any], Mapping[str, Any]] | None = None
    """The file's keys that a value replaces, where it is not just `key`."""

    def replaced(self, value: Any) -> Mapping[str, Any]:
        """What takes the place of the file's keys."""
        return self.keys(value) if self.keys else {self.key: value}


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


def spread_keys(spread: str) -> dict[str, bool]:
    """The keys of a file under which sigmas are spread as `spread` says; "model" is none."""
    return {f"use_{name}_sigmas": name == spread for name in SPREADS} | {"use_lu_lambdas": False}


def fraction(key: str = "") -> Option:
    return Option(
        lambda value: type(value) in (int, float) and 0 <= value <= 1, "a number from 0 to 1", key
    )


# Every key that some solver of the Hub knows beside the model's own keys.
SOLVER_KEYS = frozenset(
    """
    algorithm_type clip_sample clip_sample_range disable_corrector dynamic_thresholding_ratio
    euler_at_final final_sigmas_type flow_shift interpolation_type lambda_min_clipped
    lower_order_final noise_sampler_seed original_inference_steps predict_x0 rho s_churn s_noise
    s_tmax s_tmin sample_max_value set_alpha_to_one set_alpha_to_zero shift_terminal sigma_data
    sigma_max sigma_min sigma_schedule skip_prk_steps solver_order solver_p solver_type
    thresholding time_shift_type timestep_scaling timestep_type use_beta_sigmas
    use_dynamic_shifting use_exponential_sigmas use_flow_sigmas use_karras_sigmas use_lu_lambdas
    variance_type
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

    @property
    def spread(self) -> str:
        """How sigmas are spread anew over the range of the timesteps: one of SPREADS, or ""."""
        return ""

    @classmethod
    def usual_form(cls, raw: Mapping[str, Any], where: str) -> dict[str, Any]:
        # Files of 2022 say so of models that predict x0.
        raw = dict(raw)
        if raw.pop("predict_epsilon", None) is False:
            raw.setdefault("prediction_type", "sample")
        return super().usual_form(raw, where)

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
NO_FLOW = Pin((False,), "Stable Diffusion predicts eps, v or x0, and no flow")
SD14_BETAS: Mapping[str, object] = {"beta_start": 0.00085, "beta_end": 0.012}
"""The defaults of newer classes, without the schedule that they were meant for."""


@dataclass(frozen=True)
class SpreadConfig(SchedulerConfig):
    """A solver whose sigmas may be spread anew over the range of its timesteps."""

    use_karras_sigmas: bool  # arXiv:2206.00364, eq. 5
    use_exponential_sigmas: bool  # even steps of log sigma
    use_beta_sigmas: bool  # quantiles of Beta(0.6, 0.6): arXiv:2407.12173

    HUB_DEFAULTS: ClassVar[Mapping[str, object]] = {
        **SchedulerConfig.HUB_DEFAULTS,
        "timestep_spacing": "linspace",
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
    }
    CHECKS: ClassVar[Mapping[str, Check]] = {
        **SchedulerConfig.CHECKS,
        "use_karras_sigmas": boolean,
        "use_exponential_sigmas": boolean,
        "use_beta_sigmas": boolean,
    }
    OPTIONS: ClassVar[Mapping[str, Option]] = {
        **SchedulerConfig.OPTIONS,
        "karras": Option(
            lambda value: isinstance(value, bool),
            "true or false",
            keys=lambda karras: spread_keys("karras" if karras else "model"),
        ),
        "sigmas": Option(
            lambda value: value in ("model", *SPREADS),
            " or ".join(("model", *SPREADS)),
            keys=spread_keys,
        ),
    }

    @property
    def spread(self) -> str:
        return next((name for name in SPREADS if getattr(self, f"use_{name}_sigmas")), "")

    @classmethod
    def normalise(cls, values: dict[str, Any], where: str) -> dict[str, Any]:
        values = super().normalise(values, where)
        chosen = [key for key in spread_keys("") if values.get(key)]
        if len(chosen) > 1:
            raise wrong_value(where, chosen[1], True, f"not together with {chosen[0]}")
        return values


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
    def read(cls, raw: Mapping[str, Any], where: str, *, strict: bool = False) -> Self:
        # Clipping is for pixels; latents reach far beyond 1.  Other solvers do not clip, so a
        # file that was written for one of them lacks the key and must stay unclipped.
        if raw.get("_class_name") not in ("DDIMScheduler", "DDIMInverseScheduler"):
            raw = {"clip_sample": False, **raw}
        return super().read(raw, where, strict=strict)


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
class DPMPlusPlusConfig(SpreadConfig):
    use_lu_lambdas: bool  # arXiv:2211.01095: even steps of lambda, which are those of log sigma
    solver_order: int  # 1 (which is DDIM), 2 or 3
    solver_type: str  # 'midpoint' | 'heun'
    lower_order_final: bool  # runs of fewer than 15 steps end with steps of lower orders
    euler_at_final: bool  # every run ends with a step of order 1
    final_sigmas_type: str  # 'zero': end clean | 'sigma_min': at the level of timestep 0

    HUB_CLASS: ClassVar[str] = "DPMSolverMultistepScheduler"
    HUB_DEFAULTS: ClassVar[Mapping[str, object]] = {
        **SpreadConfig.HUB_DEFAULTS,
        "use_lu_lambdas": False,
        "solver_order": 2,
        "solver_type": "midpoint",
        "lower_order_final": True,
        "euler_at_final": False,
        "final_sigmas_type": "zero",
    }
    CHECKS: ClassVar[Mapping[str, Check]] = {
        **SpreadConfig.CHECKS,
        "use_lu_lambdas": boolean,
        "solver_order": partial(integer, low=1, high=3),
        "solver_type": partial(one_of, options=("midpoint", "heun")),
        "lower_order_final": boolean,
        "euler_at_final": boolean,
        "final_sigmas_type": partial(one_of, options=FINAL_SIGMAS),
    }
    PINNED: ClassVar[Mapping[str, Pin]] = {
        "thresholding": NO_THRESHOLDING,
        "use_flow_sigmas": NO_FLOW,
        "lambda_min_clipped": Pin((-math.inf,), "every level of the schedule may be visited"),
        "variance_type": Pin(
            (None, "fixed_small", "fixed_large"), "Stable Diffusion learns no variance"
        ),
    }
    OPTIONS: ClassVar[Mapping[str, Option]] = {
        **SpreadConfig.OPTIONS,
        "order": whole_number(1, 3, "solver_order"),
    }

    @property
    def spread(self) -> str:
        return "exponential" if self.use_lu_lambdas else super().spread

    @classmethod
    def normalise(cls, values: dict[str, Any], where: str) -> dict[str, Any]:
        # UniPC and DEIS call their variants by other names, which say nothing to this solver.
        if values["solver_type"] in ("bh1", "bh2", "logrho"):
            values = values | {"solver_type": "midpoint"}
        return super().normalise(values, where)


@dataclass(frozen=True)
class DPMSinglestepConfig(DPMPlusPlusConfig):
    HUB_CLASS: ClassVar[str] = "DPMSolverSinglestepScheduler"
    HUB_DEFAULTS: ClassVar[Mapping[str, object]] = {
        **DPMPlusPlusConfig.HUB_DEFAULTS,
        "lower_order_final": False,
    }


@dataclass(frozen=True)
class UniPCConfig(SpreadConfig):
    solver_order: int  # of the predictor; the corrector's is one higher
    solver_type: str  # B(h) of the paper: 'bh1' is h, 'bh2' e^h - 1
    lower_order_final: bool  # a run ends with steps of falling orders
    disable_corrector: tuple[int, ...]  # step indices whose results are not corrected
    final_sigmas_type: str  # 'zero': end clean | 'sigma_min': at the level of timestep 0

    HUB_CLASS: ClassVar[str] = "UniPCMultistepScheduler"
    HUB_DEFAULTS: ClassVar[Mapping[str, object]] = {
        **SpreadConfig.HUB_DEFAULTS,
        "solver_order": 2,
        "solver_type": "bh2",
        "lower_order_final": True,
        "disable_corrector": (),
        "final_sigmas_type": "zero",
    }
    CHECKS: ClassVar[Mapping[str, Check]] = {
        **SpreadConfig.CHECKS,
        "solver_order": partial(integer, low=1, high=4),
        "solver_type": partial(one_of, options=("bh1", "bh2")),
        "lower_order_final": boolean,
        "final_sigmas_type": partial(one_of, options=FINAL_SIGMAS),
    }
    PINNED: ClassVar[Mapping[str, Pin]] = {
        "thresholding": NO_THRESHOLDING,
        "use_flow_sigmas": NO_FLOW,
        "predict_x0": Pin((True,), "the eps form cannot end at a clean image"),
        "solver_p": Pin((None,), "the predictor is UniPC's own"),
    }
    OPTIONS: ClassVar[Mapping[str, Option]] = {
        **SpreadConfig.OPTIONS,
        "order": whole_number(1, 4, "solver_order"),
    }

    @classmethod
    def normalise(cls, values: dict[str, Any], where: str) -> dict[str, Any]:
        if values["solver_type"] in ("midpoint", "heun", "logrho"):  # DPM-Solver's and DEIS's
            values = values | {"solver_type": "bh2"}
        steps = values["disable_corrector"]
        if not isinstance(steps, list | tuple) or not all(type(step) is int for step in steps):
            raise wrong_value(where, "disable_corrector", steps, "a list of step indices")
        return super().normalise(values, where) | {"disable_corrector": tuple(steps)}


@dataclass(frozen=True)
class DEISConfig(SpreadConfig):
    solver_order: int  # 1 (which is DDIM), 2 or 3
    lower_order_final: bool  # runs of fewer than 15 steps end with steps of lower orders

    HUB_CLASS: ClassVar[str] = "DEISMultistepScheduler"
    HUB_DEFAULTS: ClassVar[Mapping[str, object]] = {
        **SpreadConfig.HUB_DEFAULTS,
        "solver_order": 2,
        "lower_order_final": True,
    }
    CHECKS: ClassVar[Mapping[str, Check]] = {
        **SpreadConfig.CHECKS,
        "solver_order": partial(integer, low=1, high=3),
        "lower_order_final": boolean,
    }
    PINNED: ClassVar[Mapping[str, Pin]] = {
        "thresholding": NO_THRESHOLDING,
        "use_flow_sigmas": NO_FLOW,
    }
    OPTIONS: ClassVar[Mapping[str, Option]] = {
        **SpreadConfig.OPTIONS,
        "order": whole_number(1, 3, "solver_order"),
    }


@dataclass(frozen=True)
class LMSConfig(SpreadConfig):
    HUB_CLASS: ClassVar[str] = "LMSDiscreteScheduler"


@dataclass(frozen=True)
class EulerConfig(SpreadConfig):
    final_sigmas_type: str  # 'zero': end clean | 'sigma_min': at the level of timestep 0

    HUB_CLASS: ClassVar[str] = "EulerDiscreteScheduler"
    HUB_DEFAULTS: ClassVar[Mapping[str, object]] = {
        **SpreadConfig.HUB_DEFAULTS,
        "final_sigmas_type": "zero",
    }
    CHECKS: ClassVar[Mapping[str, Check]] = {
        **SpreadConfig.CHECKS,
        "final_sigmas_type": partial(one_of, options=FINAL_SIGMAS),
    }
    PINNED: ClassVar[Mapping[str, Pin]] = {
        "interpolation_type": Pin(("linear",), "between two timesteps sigma is linear in t"),
        "timestep_type": Pin(("discrete",), "Stable Diffusion is told t, not log sigma"),
        "sigma_min": Pin((None,), "spread sigmas end at the range of the timesteps"),
        "sigma_max": Pin((None,), "spread sigmas begin at the range of the timesteps"),
    }

    @classmethod
    def usual_form(cls, raw: Mapping[str, Any], where: str) -> dict[str, Any]:
        raw = dict(raw)
        if not any(raw.get(key) for key in spread_keys("")):
            raw |= {key: None for key in ("sigma_min", "sigma_max") if key in raw}
        if raw.get("prediction_type") != "v_prediction" and "timestep_type" in raw:
            raw["timestep_type"] = "discrete"  # diffusers too reads it of v-models alone
        return super().usual_form(raw, where)


@dataclass(frozen=True)
class EulerAncestralConfig(SchedulerConfig):
    HUB_CLASS: ClassVar[str] = "EulerAncestralDiscreteScheduler"
    HUB_DEFAULTS: ClassVar[Mapping[str, object]] = {
        **SchedulerConfig.HUB_DEFAULTS,
        "timestep_spacing": "linspace",
    }


@dataclass(frozen=True)
class HeunConfig(SpreadConfig):
    HUB_CLASS: ClassVar[str] = "HeunDiscreteScheduler"
    HUB_DEFAULTS: ClassVar[Mapping[str, object]] = {**SpreadConfig.HUB_DEFAULTS, **SD14_BETAS}


@dataclass(frozen=True)
class DPM2Config(HeunConfig):
    HUB_CLASS: ClassVar[str] = "KDPM2DiscreteScheduler"


@dataclass(frozen=True)
class DPM2AncestralConfig(HeunConfig):
    HUB_CLASS: ClassVar[str] = "KDPM2AncestralDiscreteScheduler"


@dataclass(frozen=True)
class DPMSDEConfig(HeunConfig):
    HUB_CLASS: ClassVar[str] = "DPMSolverSDEScheduler"


@dataclass(frozen=True)
class DPM2SAncestralConfig(HeunConfig):
    HUB_CLASS: ClassVar[str] = ""  # k-diffusion's; diffusers has none


@dataclass(frozen=True)
class DDPMConfig(SchedulerConfig):
    variance_type: str  # of the fresh noise, see `DDPM`
    clip_sample: bool  # clamp the predicted x0 to +-clip_sample_range
    clip_sample_range: float

    HUB_CLASS: ClassVar[str] = "DDPMScheduler"
    HUB_DEFAULTS: ClassVar[Mapping[str, object]] = {
        **SchedulerConfig.HUB_DEFAULTS,
        "timestep_spacing": "leading",
        "variance_type": "fixed_small",
        "clip_sample": True,
        "clip_sample_range": 1.0,
    }
    CHECKS: ClassVar[Mapping[str, Check]] = {
        **SchedulerConfig.CHECKS,
        "variance_type": partial(
            one_of,
            options=("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
        ),
        "clip_sample": boolean,
        "clip_sample_range": partial(number, low=1e-6, high=1e6),
    }
    PINNED: ClassVar[Mapping[str, Pin]] = {"thresholding": NO_THRESHOLDING}

    @classmethod
    def read(cls, raw: Mapping[str, Any], where: str, *, strict: bool = False) -> Self:
        if raw.get("_class_name") != "DDPMScheduler":  # as for DDIM
            raw = {"clip_sample": False, **raw}
        return super().read(raw, where, strict=strict)


@dataclass(frozen=True)
class LCMConfig(SchedulerConfig):
    original_inference_steps: int  # of the distillation: a run takes some of its timesteps
    timestep_scaling: float
    clip_sample: bool  # clamp the predicted x0 to +-clip_sample_range
    clip_sample_range: float

    HUB_CLASS: ClassVar[str] = "LCMScheduler"
    HUB_DEFAULTS: ClassVar[Mapping[str, object]] = {
        **SchedulerConfig.HUB_DEFAULTS,
        **SD14_BETAS,
        "beta_schedule": "scaled_linear",
        "timestep_spacing": "leading",
        "original_inference_steps": 50,
        "timestep_scaling": 10.0,
        "clip_sample": False,
        "clip_sample_range": 1.0,
    }
    CHECKS: ClassVar[Mapping[str, Check]] = {
        **SchedulerConfig.CHECKS,
        "original_inference_steps": partial(integer, low=1, high=100_000),
        "timestep_scaling": partial(number, low=0, high=1e6),
        "clip_sample": boolean,
        "clip_sample_range": partial(number, low=1e-6, high=1e6),
    }
    PINNED: ClassVar[Mapping[str, Pin]] = {"thresholding": NO_THRESHOLDING}

    @classmethod
    def normalise(cls, values: dict[str, Any], where: str) -> dict[str, Any]:
        values = super().normalise(values, where)
        if values["original_inference_steps"] > values["num_train_timesteps"]:
            most = f"at most num_train_timesteps, {values['num_train_timesteps']}"
            key = "original_inference_steps"
            raise wrong_value(where, key, values[key], most)
        return values


@dataclass(frozen=True)
class TCDConfig(LCMConfig):
    HUB_CLASS: ClassVar[str] = "TCDScheduler"
