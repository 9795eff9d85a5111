"""Noise schedule, timesteps, and solvers of the reverse process, one file each.

Read `schedule.py` (the forward process), `timesteps.py` (the noise levels of a run),
`scheduler.py` (what a step is), then any solver; `ddim.py` is the simplest.
`hub_config.py` reads the Hub's `scheduler_config.json`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from pare.errors import SchedulerError, SettingError
from pare.runtime.extensions import SCHEDULERS as EXTENSIONS
from pare.runtime.extensions import extensions, load_extension
from pare.schedulers.ddim import DDIM
from pare.schedulers.ddim_inverse import DDIMInverse
from pare.schedulers.ddpm import DDPM
from pare.schedulers.deis import DEIS
from pare.schedulers.dpm2 import DPM2, DPM2Ancestral
from pare.schedulers.dpmpp_2m import DPMPlusPlus2M
from pare.schedulers.dpmpp_2s import DPMPlusPlus2S
from pare.schedulers.dpmpp_ancestral import DPMPlusPlus2SAncestral, DPMPlusPlusSDE
from pare.schedulers.dpmpp_sde import DPMPlusPlus2MSDE, DPMPlusPlus3MSDE
from pare.schedulers.euler import Euler
from pare.schedulers.euler_ancestral import EulerAncestral
from pare.schedulers.heun import Heun
from pare.schedulers.hub_config import SchedulerConfig
from pare.schedulers.lcm import LCM
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
from pare.schedulers.tcd import TCD
from pare.schedulers.timesteps import Timesteps, start_index
from pare.schedulers.unipc import UniPC

__all__ = [
    "CLEAN",
    "SCHEDULERS",
    "History",
    "NoiseLevel",
    "NoiseSchedule",
    "OtherSolver",
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
    kind.name: kind
    for kind in (
        DDIM, DDIMInverse, DDPM, PNDM, LMS, Euler, EulerAncestral, Heun, DPM2, DPM2Ancestral,
        DPMPlusPlus2M, DPMPlusPlus2S, DPMPlusPlus2SAncestral, DPMPlusPlusSDE, DPMPlusPlus2MSDE,
        DPMPlusPlus3MSDE, UniPC, DEIS, LCM, TCD,
    )
}  # fmt: skip

NEAREST = {
    "CosineDPMSolverMultistepScheduler": "dpm++2m-sde",
    "DDIMParallelScheduler": "ddim",
    "DDPMParallelScheduler": "ddpm",
    "DPMSolverMultistepInverseScheduler": "ddim-inverse",
    "EDMDPMSolverMultistepScheduler": "dpm++2m",
    "EDMEulerScheduler": "euler",
    "IPNDMScheduler": "pndm",
    "KarrasVeScheduler": "euler",
    "RePaintScheduler": "ddpm",
    "SASolverScheduler": "dpm++2m-sde",
    "ScoreSdeVeScheduler": "euler-ancestral",
    "UnCLIPScheduler": "ddpm",
}
"""Solvers of the Hub that pare does not have, and the ones that come closest."""


class OtherSolver(UserWarning):
    """A model's own solver is not among pare's, and the nearest takes its place."""


def find_solver(name: str) -> type[Scheduler]:
    """The solver that a key of SCHEDULERS names, or an entry point of another package.

    Raises:
        SettingError: there is none of that name.
        ExtensionError: the other package cannot be loaded.
    """
    kind: type[Scheduler] | None = SCHEDULERS.get(name) or load_extension(EXTENSIONS, name)
    if kind is None:
        names = ", ".join([*SCHEDULERS, *extensions(EXTENSIONS)])
        raise SettingError(f"there is no scheduler {name!r}", expected=f"one of {names}")
    return kind


def build_scheduler(
    hub_config: Mapping[str, Any],
    where: str,
    name: str | None = None,
    *,
    strict: bool = False,
    **options: Any,
) -> Scheduler:
    """The scheduler of a model, or any other for the same model.

    `hub_config` is the JSON object of the model's `scheduler_config.json`, also one written
    for another solver; `where` names the file in messages.  `name` is a key of SCHEDULERS;
    None means the class that the file names.  `options`: `karras: bool`, `sigmas: str`,
    `eta: float`, `order: int`, `spacing: str`, `prediction_type: str`, where the solver has
    them; None means that the file decides.

    Args:
        strict: see `HubConfig.read`; a solver that pare does not have is refused, too.

    Raises:
        ConfigError: the file has a value that pare does not support, or an unknown key.
        SchedulerError: the file names no class, or a solver that nothing of pare's comes near.
        SettingError: an unknown name, an option that the solver does not have, or a value
            out of range.

    Warns:
        OtherSolver: the file names a solver that pare does not have: the nearest is taken.
        UnusedKeys: keys of the file that say nothing.
    """
    if name is None:
        own, nearest = own_solver(hub_config)
        name = own or ("" if strict else nearest)
        wanted = named_solver(hub_config)
        if not name:
            raise SchedulerError(
                f"{where} names the solver {wanted}, which pare does not have"
                if wanted
                else f"{where} does not name its solver",
                fix=f"choose a scheduler: {', '.join(SCHEDULERS)}",
            )
        if not own:
            warnings.warn(
                f"{where} names the solver {wanted}, which pare does not have: {name} takes its "
                "place",
                OtherSolver,
                stacklevel=2,
            )
    return find_solver(name).build(hub_config, where, strict=strict, **options)


def named_solver(hub_config: Mapping[str, Any]) -> str:
    """The solver that a file names, for messages; "" if it names none."""
    wanted, algorithm = hub_config.get("_class_name"), hub_config.get("algorithm_type")
    if wanted is None:
        return ""
    return repr(wanted) + (f" ({algorithm})" if algorithm else "")


def own_solver(hub_config: Mapping[str, Any]) -> tuple[str, str]:
    """The solver that a file names, by pare's name, and the nearest to it; "" where there is none.

    One class of the Hub is several solvers, by its `algorithm_type`.
    """
    wanted = hub_config.get("_class_name")
    algorithm = hub_config.get("algorithm_type", "dpmsolver++")
    match wanted, algorithm:
        case "DPMSolverMultistepScheduler", "sde-dpmsolver++":
            return DPMPlusPlus2MSDE.name, DPMPlusPlus2MSDE.name
        case "DPMSolverMultistepScheduler" | "DPMSolverSinglestepScheduler", (
            "sde-dpmsolver" | "sde-dpmsolver++"
        ):
            return "", DPMPlusPlus2MSDE.name
        case "DPMSolverMultistepScheduler", "dpmsolver":
            return "", DPMPlusPlus2M.name
        case "DPMSolverSinglestepScheduler", "dpmsolver":
            return "", DPMPlusPlus2S.name
    for kind in SCHEDULERS.values():
        if wanted and wanted == kind.config_type.HUB_CLASS:
            return kind.name, kind.name
    # Flow matching is another process: what predicts a flow is no Stable Diffusion.
    return "", NEAREST.get(wanted, "") if isinstance(wanted, str) else ""


def rebuild_scheduler(description: Mapping[str, Any]) -> Scheduler:
    """The scheduler whose `describe()` gave `description`, also after a way through JSON."""
    options = {key: value for key, value in description.items() if key not in ("name", "config")}
    return build_scheduler(
        description["config"],
        "the scheduler's description",
        description["name"],
        strict=True,
        **options,
    )
