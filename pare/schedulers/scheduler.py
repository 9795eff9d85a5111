"""What every solver has in common: it lays out a timestep schedule and takes pure steps along it.

    history = ()
    for i in range(len(timestep schedule)):
        level = timesteps.levels[i]
        prediction = interpret(unet(x_t, level.t, text), x_t, level, scheduler.prediction_type)
        x_t, history = scheduler.step(timestep schedule, i, x_t, prediction, history)

A scheduler keeps no state: two runs that share one cannot meet, and the same inputs give
the same outputs.  What a solver remembers of earlier steps is the `history` in your hands.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import Tensor

from pare.errors import SchedulerError, SettingError
from pare.runtime.validation import check_steps
from pare.schedulers.hub_config import PREDICTION_TYPES, SPACINGS, SchedulerConfig
from pare.schedulers.schedule import NoiseLevel, NoiseSchedule, Prediction
from pare.schedulers.timesteps import Timesteps, check_start

History = tuple[Tensor, ...]


@dataclass(frozen=True, repr=False)
class Scheduler(ABC):
    """Base of the solvers.  `build_scheduler` makes one from a model's file."""

    name: ClassVar[str]
    hub_class: ClassVar[str]  # the `_class_name` in the file of a model whose solver this is
    config_type: ClassVar[type[SchedulerConfig]]
    # A user's options and the keys of the file that they stand in for.  A solver's further
    # dataclass fields (eta, the order of LMS) are options without such a key.
    hub_options: ClassVar[Mapping[str, str]] = {
        "spacing": "timestep_spacing",
        "prediction_type": "prediction_type",
    }
    highest_order: ClassVar[int] = 1
    makes_images: ClassVar[bool] = True  # from noise; else it goes from an image to its noise

    config: SchedulerConfig
    schedule: NoiseSchedule

    def __repr__(self) -> str:
        own = "".join(f", {key}={getattr(self, key)!r}" for key in self.own_options())
        spacing, predicts = self.config.timestep_spacing, self.prediction_type
        return f"{type(self).__name__}({spacing} timesteps, {predicts}{own})"

    @property
    def prediction_type(self) -> str:
        return self.config.prediction_type

    @property
    def stochastic(self) -> bool:
        """Whether `step` wants fresh unit noise of x_t's shape."""
        return False

    def timesteps(self, steps: int, start: int = 0) -> Timesteps:
        """The levels of a run of `steps` steps, from step index `start` to its end.

        Raises:
            SettingError: `steps` is not in 1 .. T or `start` not in 0 .. steps-1.
        """
        check_steps(steps, self.config.num_train_timesteps)
        check_start(start, steps)
        levels = self.levels(steps)[start:]
        return Timesteps(levels, self.initial_scale(levels[0]), first=start)

    @abstractmethod
    def levels(self, steps: int) -> tuple[NoiseLevel, ...]:
        """The `steps` levels of a whole run, noisiest first, and the one where it ends."""

    def initial_scale(self, level: NoiseLevel) -> float:
        """What unit noise is multiplied by to start an image from nothing at `level`."""
        return 1.0

    @abstractmethod
    def step(
        self,
        timesteps: Timesteps,
        i: int,
        x_t: Tensor,
        prediction: Prediction,
        history: History,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, History]:
        """x_t at `timesteps.levels[i]` moved to `levels[i + 1]`, and the new history.

        `x_t` (B, C, h, w) is variance-preserving, before and after; `prediction` is the
        model's word on it; `history` is what the step before returned, () at the first;
        `noise`, unit and of x_t's shape, is wanted where `stochastic`.
        """

    @classmethod
    def build(cls, hub_config: Mapping[str, Any], where: str, **options: Any) -> Self:
        """This solver for the model whose `scheduler_config.json` holds `hub_config`.

        Raises:
            ConfigError: the file has an unknown key or a value that pare does not support.
            SettingError: an option that this solver does not have, or a value out of range.
        """
        given = {key: value for key, value in options.items() if value is not None}
        for key, value in given.items():
            cls.check_option(key, value)
        instead = {cls.hub_options[key]: given[key] for key in given if key in cls.hub_options}
        own = {key: given[key] for key in given if key not in cls.hub_options}
        config = cls.config_type.read({**hub_config, **instead}, where)
        return cls(config, NoiseSchedule.from_config(config), **own)

    @classmethod
    def check_option(cls, key: str, value: Any) -> None:
        known = sorted({*cls.hub_options, *cls.own_options()})
        if key not in known:
            problem = f"the scheduler {cls.name} has no option {key!r}"
            raise SettingError(problem, expected=" or ".join(known))
        whole = isinstance(value, int) and not isinstance(value, bool)
        if key == "spacing":
            good, expected = value in SPACINGS, " or ".join(SPACINGS)
        elif key == "prediction_type":
            good, expected = value in PREDICTION_TYPES, " or ".join(PREDICTION_TYPES)
        elif key == "karras":
            good, expected = isinstance(value, bool), "true or false"
        elif key == "order":
            good = whole and 1 <= value <= cls.highest_order
            expected = f"a whole number from 1 to {cls.highest_order}"
        else:  # eta
            good = (whole or isinstance(value, float)) and 0 <= value <= 1
            expected = "a number from 0 to 1"
        if not good:
            raise SettingError(f"{key} is {value!r}", expected=expected)

    @classmethod
    def own_options(cls) -> tuple[str, ...]:
        """The solver's fields beside `config` and `schedule`."""
        names = [field.name for field in dataclasses.fields(cls)]
        return tuple(name for name in names if name not in ("config", "schedule"))

    def describe(self) -> dict[str, Any]:
        """All that `rebuild_scheduler` needs to make this scheduler again; fit for JSON."""
        own = {key: getattr(self, key) for key in self.own_options()}
        return {"name": self.name, **own, "config": dataclasses.asdict(self.config)}

    def need_noise(self, noise: Tensor | None) -> Tensor:
        if noise is None:
            raise SchedulerError(
                f"a step of the scheduler {self.name} needs noise",
                expected="a tensor of unit noise, of x_t's shape",
            )
        return noise
