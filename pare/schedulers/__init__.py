"""Noise schedule, timesteps, and solvers of the reverse process, one file each.

Read `schedule.py` (the forward process), `timesteps.py` (the noise levels of a run),
`scheduler.py` (what a step is), then any solver; `ddim.py` is the simplest.
`hub_config.py` reads the Hub's `scheduler_config.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pare.errors import SchedulerError, SettingError
from pare.schedulers.ddim import DDIM
from pare.schedulers.ddim_inverse import DDIMInverse
from pare.schedulers.dpmpp_2m import DPMPlusPlus2M
from pare.schedulers.euler import Euler
from pare.schedulers.euler_ancestral import EulerAncestral
from pare.schedulers.hub_config import SchedulerConfig
from pare.schedulers.lms import LMS
from pare.schedulers.pndm import PNDM
from pare.schedulers.schedule import (
    CLEAN,
    NoiseLevel,
    NoiseSchedule,
    Prediction,
    add_noise,
    interpret,
    velocity,
)
from pare.schedulers.scheduler import History, Scheduler
from pare.schedulers.timesteps import Timesteps, start_index

__all__ = [
    "CLEAN",
    "SCHEDULERS",
    "History",
    "NoiseLevel",
    "NoiseSchedule",
    "Prediction",
    "Scheduler",
    "SchedulerConfig",
    "Timesteps",
    "add_noise",
    "build_scheduler",
    "find_solver",
    "interpret",
    "rebuild_scheduler",
    "start_index",
    "velocity",
]

SCHEDULERS: dict[str, type[Scheduler]] = {
    kind.name: kind for kind in (DDIM, DDIMInverse, DPMPlusPlus2M, LMS, PNDM, Euler, EulerAncestral)
}


def find_solver(name: str) -> type[Scheduler]:
    """The solver that a key of SCHEDULERS names.

    Raises:
        SettingError: there is none of that name.
    """
    if name not in SCHEDULERS:
        names = ", ".join(SCHEDULERS)
        raise SettingError(f"there is no scheduler {name!r}", expected=f"one of {names}")
    return SCHEDULERS[name]


def build_scheduler(
    hub_config: Mapping[str, Any], where: str, name: str | None = None, **options: Any
) -> Scheduler:
    """The scheduler of a model, or any other for the same model.

    `hub_config` is the JSON object of the model's `scheduler_config.json`, also one written
    for another solver; `where` names the file in messages.  `name` is a key of SCHEDULERS;
    None means the class that the file names.  `options`: `karras: bool`, `eta: float`,
    `order: int`, `spacing: str`, `prediction_type: str`, where the solver has them; None
    means that the file decides.

    Raises:
        ConfigError: the file has an unknown key or a value that pare does not support.
        SchedulerError: the file names no class, or a solver that pare does not have.
        SettingError: an unknown name, an option that the solver does not have, or a value
            out of range.
    """
    if name is not None:
        return find_solver(name).build(hub_config, where, **options)
    wanted = hub_config.get("_class_name")
    for kind in SCHEDULERS.values():
        if wanted == kind.config_type.HUB_CLASS:
            return kind.build(hub_config, where, **options)
    raise SchedulerError(
        f"{where} names the solver {wanted!r}, which pare does not have"
        if wanted is not None
        else f"{where} does not name its solver",
        fix=f"choose a scheduler: {', '.join(SCHEDULERS)}",
    )


def rebuild_scheduler(description: Mapping[str, Any]) -> Scheduler:
    """The scheduler whose `describe()` gave `description`, also after a way through JSON."""
    options = {key: value for key, value in description.items() if key not in ("name", "config")}
    return build_scheduler(
        description["config"], "the scheduler's description", description["name"], **options
    )
