"""DPM-Solver++(2M) (arXiv:2211.01095): extrapolate the predicted x0 along log SNR."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from pare.config import Pin, boolean, integer, one_of
from pare.schedulers.hub_config import (
    FINAL_SIGMAS,
    KARRAS_OR_PLAIN,
    NO_THRESHOLDING,
    SOLVER_KEYS,
    SchedulerConfig,
)
from pare.schedulers.schedule import CLEAN, NoiseLevel, Prediction
from pare.schedulers.scheduler import History, Scheduler
from pare.schedulers.timesteps import Timesteps, karras_sigmas, spaced_timesteps


@dataclass(frozen=True)
class DPMPlusPlusConfig(SchedulerConfig):
    """The keys of DPM++."""

    use_karras_sigmas: bool
    solver_order: int  # 1 (which is DDIM) or 2
    solver_type: str  # 'midpoint' | 'heun'
    lower_order_final: bool  # runs of fewer than 15 steps end with a step of order 1
    euler_at_final: bool  # every run does
    final_sigmas_type: str  # 'zero': end clean | 'sigma_min': at the level of timestep 0

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
    UNUSED: ClassVar[frozenset[str]] = SOLVER_KEYS - {
        *("use_karras_sigmas", "solver_order", "solver_type", "lower_order_final"),
        *("euler_at_final", "final_sigmas_type", *PINNED),
    }

    @classmethod
    def normalise(cls, values: dict[str, Any], where: str) -> dict[str, Any]:
        # UniPC and DEIS call their variants by other names, which say nothing to this solver.
        if values["solver_type"] in ("bh1", "bh2", "logrho"):
            values = values | {"solver_type": "midpoint"}
        return super().normalise(values, where) | {
            "use_karras_sigmas": boolean(values, "use_karras_sigmas", where),
            "solver_order": integer(values, "solver_order", where, 1, 2),
            "solver_type": one_of(values, "solver_type", where, ("midpoint", "heun")),
            "lower_order_final": boolean(values, "lower_order_final", where),
            "euler_at_final": boolean(values, "euler_at_final", where),
            "final_sigmas_type": one_of(values, "final_sigmas_type", where, FINAL_SIGMAS),
        }


@dataclass(frozen=True, repr=False)
class DPMPlusPlus2M(Scheduler):
    """Two-step solver of order 2: one model evaluation a step, good from 15 steps on."""

    name: ClassVar[str] = "dpm++2m"
    hub_class: ClassVar[str] = "DPMSolverMultistepScheduler"
    config_type: ClassVar[type[SchedulerConfig]] = DPMPlusPlusConfig
    hub_options: ClassVar[Mapping[str, str]] = {
        **Scheduler.hub_options,
        "karras": "use_karras_sigmas",
        "order": "solver_order",
    }
    highest_order: ClassVar[int] = 2

    config: DPMPlusPlusConfig

    def levels(self, steps: int) -> tuple[NoiseLevel, ...]:
        schedule = self.schedule
        end = CLEAN if self.config.final_sigmas_type == "zero" else schedule.level(0)
        if not self.config.use_karras_sigmas:
            timesteps = spaced_timesteps(self.config, steps, whole=True, drop_cleanest=True)
            return *map(schedule.level, timesteps), end
        # The whole range of the training, whatever the spacing; the model is told the nearest
        # whole timestep, so that with many steps the same t comes back at another sigma.
        sigmas = karras_sigmas(steps, schedule.largest_sigma, schedule.sigmas[0])
        return *(NoiseLevel(float(round(schedule.timestep(s))), s) for s in sigmas), end

    def step(
        self,
        timesteps: Timesteps,
        i: int,
        x_t: Tensor,
        prediction: Prediction,
        history: History,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, History]:
        here, there = timesteps.levels[i], timesteps.levels[i + 1]
        x0 = prediction.x0
        h = there.lambda_t - here.lambda_t
        decay = math.expm1(-h)  # e^-h - 1
        # Order 1: x0 stays what it is for the step (the first step of algorithm 2).
        x_next = (there.noise_rate / here.noise_rate) * x_t - there.signal_rate * decay * x0

        if history and not self.ends_with_order_1(timesteps, i):
            # Order 2: x0 goes on changing as it did in the step before (algorithm 2's others).
            (earlier_x0,) = history
            h_before = here.lambda_t - timesteps.levels[i - 1].lambda_t
            change = (h / h_before) * (x0 - earlier_x0)
            if self.config.solver_type == "midpoint":
                x_next = x_next - 0.5 * there.signal_rate * decay * change
            elif h > 0:  # 'heun': x0 linear in log SNR, put into the integral of proposition 4.1
                x_next = x_next + there.signal_rate * (decay / h + 1) * change
        return x_next, (x0,) if self.config.solver_order == 2 else ()

    def ends_with_order_1(self, timesteps: Timesteps, i: int) -> bool:
        """Whether step `i` is a last one that must not extrapolate."""
        if i + 1 < len(timesteps):
            return False
        steps = timesteps.first + len(timesteps)
        few = self.config.lower_order_final and steps < 15
        # At the clean level log SNR is infinite: there is no slope to follow to it.
        return few or self.config.euler_at_final or timesteps.levels[-1].sigma == 0
