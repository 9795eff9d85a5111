"""Euler's method in sigma (arXiv:2206.00364, algorithm 1 without its second-order part)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from pare.config import Pin, one_of
from pare.schedulers.hub_config import FINAL_SIGMAS, SchedulerConfig
from pare.schedulers.k_diffusion import KDiffusionConfig, KDiffusionScheduler, sigma_levels
from pare.schedulers.schedule import CLEAN, NoiseLevel, Prediction
from pare.schedulers.scheduler import History, Scheduler
from pare.schedulers.timesteps import Timesteps


@dataclass(frozen=True)
class EulerConfig(KDiffusionConfig):
    """The keys of Euler."""

    final_sigmas_type: str  # 'zero': end clean | 'sigma_min': at the level of timestep 0

    HUB_DEFAULTS: ClassVar[Mapping[str, object]] = {
        **KDiffusionConfig.HUB_DEFAULTS,
        "final_sigmas_type": "zero",
    }
    PINNED: ClassVar[Mapping[str, Pin]] = {
        **KDiffusionConfig.PINNED,
        "interpolation_type": Pin(("linear",), "between two timesteps sigma is linear in t"),
        "timestep_type": Pin(("discrete",), "Stable Diffusion is told t, not log sigma"),
        "sigma_min": Pin((None,), "Karras sigmas end at the range of the timesteps"),
        "sigma_max": Pin((None,), "Karras sigmas begin at the range of the timesteps"),
    }
    UNUSED: ClassVar[frozenset[str]] = KDiffusionConfig.UNUSED - {"final_sigmas_type", *PINNED}

    @classmethod
    def normalise(cls, values: dict[str, Any], where: str) -> dict[str, Any]:
        return super().normalise(values, where) | {
            "final_sigmas_type": one_of(values, "final_sigmas_type", where, FINAL_SIGMAS)
        }


@dataclass(frozen=True, repr=False)
class Euler(KDiffusionScheduler):
    """One straight step along the slope.  Between the same levels it is DDIM with eta 0."""

    name: ClassVar[str] = "euler"
    hub_class: ClassVar[str] = "EulerDiscreteScheduler"
    config_type: ClassVar[type[SchedulerConfig]] = EulerConfig
    hub_options: ClassVar[Mapping[str, str]] = {
        **Scheduler.hub_options,
        "karras": "use_karras_sigmas",
    }

    config: EulerConfig

    def levels(self, steps: int) -> tuple[NoiseLevel, ...]:
        karras = self.config.use_karras_sigmas
        end = CLEAN if self.config.final_sigmas_type == "zero" else self.schedule.level(0)
        return *sigma_levels(self.config, self.schedule, steps, karras=karras), end

    def step(
        self,
        timesteps: Timesteps,
        i: int,
        x_t: Tensor,
        prediction: Prediction,
        history: History,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, History]:
        there = timesteps.levels[i + 1]
        # x_hat + (there.sigma - here.sigma) * eps with x_hat = x0 + here.sigma * eps: here's
        # sigma cancels, so that it may be infinite.
        x_hat = prediction.x0 + there.sigma * prediction.eps
        return there.signal_rate * x_hat, ()
