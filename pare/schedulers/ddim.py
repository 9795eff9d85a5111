"""DDIM (arXiv:2010.02502): split x_t into image and noise, put them together less noisy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import Tensor

from pare.config import Pin, boolean, number
from pare.schedulers.hub_config import NO_THRESHOLDING, SOLVER_KEYS, SchedulerConfig
from pare.schedulers.schedule import CLEAN, NoiseLevel, NoiseSchedule, Prediction
from pare.schedulers.scheduler import History, Scheduler
from pare.schedulers.timesteps import Timesteps, spaced_timesteps


@dataclass(frozen=True)
class DDIMConfig(SchedulerConfig):
    """The keys of DDIM and of its inverse."""

    set_alpha_to_one: bool  # end clean; if false, at the level of timestep 0
    clip_sample: bool  # keep the predicted x0 within +-clip_sample_range
    clip_sample_range: float

    HUB_DEFAULTS: ClassVar[Mapping[str, object]] = {
        **SchedulerConfig.HUB_DEFAULTS,
        "timestep_spacing": "leading",
        "set_alpha_to_one": True,
        "clip_sample": True,
        "clip_sample_range": 1.0,
    }
    PINNED: ClassVar[Mapping[str, Pin]] = {"thresholding": NO_THRESHOLDING}
    UNUSED: ClassVar[frozenset[str]] = SOLVER_KEYS - {
        "set_alpha_to_one",
        "clip_sample",
        "clip_sample_range",
        "thresholding",
    }

    @classmethod
    def read(cls, raw: Mapping[str, Any], where: str) -> Self:
        # Clipping is for pixels; latents reach far beyond 1.  Other solvers do not clip, so a
        # file that was written for one of them is silent about it and must stay unclipped.
        if raw.get("_class_name") not in ("DDIMScheduler", "DDIMInverseScheduler"):
            raw = {"clip_sample": False, **raw}
        return super().read(raw, where)

    @classmethod
    def normalise(cls, values: dict[str, Any], where: str) -> dict[str, Any]:
        return super().normalise(values, where) | {
            "set_alpha_to_one": boolean(values, "set_alpha_to_one", where),
            "clip_sample": boolean(values, "clip_sample", where),
            "clip_sample_range": number(values, "clip_sample_range", where, 1e-6, 1e6),
        }


@dataclass(frozen=True, repr=False)
class DDIM(Scheduler):
    """`eta` 0 is deterministic; 1 adds as much fresh noise a step as DDPM does."""

    name: ClassVar[str] = "ddim"
    hub_class: ClassVar[str] = "DDIMScheduler"
    config_type: ClassVar[type[SchedulerConfig]] = DDIMConfig

    config: DDIMConfig
    eta: float = 0.0

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def levels(self, steps: int) -> tuple[NoiseLevel, ...]:
        return whole_levels(self.config, self.schedule, self.config.set_alpha_to_one, steps)

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
        # sigma_t of the paper: the standard deviation of the fresh noise, eq. 16
        fresh = self.eta * math.sqrt(
            (there.noise_rate / here.noise_rate) ** 2 * (1 - here.alpha_bar / there.alpha_bar)
        )
        old = math.sqrt(max(there.noise_rate**2 - fresh**2, 0.0))
        x0 = clipped(prediction.x0, self.config)
        x_next = there.signal_rate * x0 + old * prediction.eps  # eq. 12
        if self.stochastic:
            x_next = x_next + fresh * self.need_noise(noise)  # eq. 12, its last term
        return x_next, ()


def whole_levels(
    config: SchedulerConfig, schedule: NoiseSchedule, to_clean: bool, steps: int
) -> tuple[NoiseLevel, ...]:
    """Levels at whole timesteps, ending clean or at the level of timestep 0."""
    timesteps = spaced_timesteps(config, steps, whole=True)
    return *map(schedule.level, timesteps), CLEAN if to_clean else schedule.level(0)


def clipped(x0: Tensor, config: DDIMConfig) -> Tensor:
    if not config.clip_sample:
        return x0
    return x0.clamp(-config.clip_sample_range, config.clip_sample_range)
