"""What every solver has in common: it lays out the timesteps of a run, and its step is pure.

    timesteps, history = scheduler.timesteps(25), ()
    for i in range(len(timesteps)):
        level = timesteps.levels[i]
        prediction = interpret(unet(x_t, level.t, text), x_t, level, scheduler.prediction_type)
        x_t, history = scheduler.step(timesteps, i, x_t, prediction, history)

A scheduler keeps no state, so runs may share one, in threads as well.  What a multistep
method needs of earlier steps is the `history`, which the caller holds.
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
from pare.schedulers.hub_config import Option, SchedulerConfig
from pare.schedulers.schedule import NoiseLevel, NoiseSchedule, Prediction
from pare.schedulers.timesteps import Timesteps, check_start

History = tuple[Any, ...]
"""What a solver keeps of earlier steps: () at the first step, then a tuple of the solver's own."""


@dataclass(frozen=True, repr=False)
class Scheduler(ABC):
    """Base of the solvers.  `build_scheduler` makes one from a model's file."""

    name: ClassVar[str]
    config_type: ClassVar[type[SchedulerConfig]]
    field_options: ClassVar[Mapping[str, Option]] = {}
    """The solver's further fields (DDIM's eta, the order of LMS), which users may set."""
    makes_images: ClassVar[bool] = True  # from noise; DDIM's inverse makes noise from an image
    needs_history: ClassVar[bool] = False
    """Whether a step goes on from where an earlier evaluation began, so that it cannot be lost."""

    config: SchedulerConfig
    schedule: NoiseSchedule

    @property
    def prediction_type(self) -> str:
        return self.config.prediction_type

    @property
    def stochastic(self) -> bool:
        """Whether `step` needs fresh unit noise of x_t's shape."""
        return False

    def timesteps(self, steps: int, start: int = 0) -> Timesteps:
        """The noise levels of a run of `steps` steps, from step index `start` to its end.

        Raises:
            SettingError: `steps` is not in 1 .. T or `start` not in 0 .. steps-1.
        """
        check_steps(steps, self.config.num_train_timesteps)
        check_start(start, steps)
        levels = self.levels(steps)[start:]
        return Timesteps(levels, self.initial_scale(levels[0]), first=start)

    @abstractmethod
    def levels(self, steps: int) -> tuple[NoiseLevel, ...]:
        """The `steps` noise levels of a whole run, noisiest first, and the one where it ends."""

    def initial_scale(self, level: NoiseLevel) -> float:
        """The factor that makes unit noise into x_T, where `level` is the first one."""
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

        Args:
            x_t: (B, C, h, w), variance-preserving, as is what is returned.
            prediction: the model's output for x_t, as x0 and eps.
            history: what the step before returned, () at the first.
            noise: unit noise of x_t's shape, needed where `stochastic`.
        """

    @classmethod
    def options(cls) -> dict[str, Option]:
        """What `build` takes beside the file: the config's options and the solver's own."""
        return {**cls.config_type.OPTIONS, **cls.field_options}

    @classmethod
    def build(
        cls, hub_config: Mapping[str, Any], where: str, *, strict: bool = False, **options: Any
    ) -> Self:
        """This solver for the model whose `scheduler_config.json` holds `hub_config`.

        Raises:
            ConfigError: the file has an unknown key or a value that pare does not support.
            SettingError: an option that this solver does not have, or a value out of range.
        """
        given = {name: value for name, value in options.items() if value is not None}
        for name, value in given.items():
            cls.check_option(name, value)
        instead: dict[str, Any] = {}
        for name, option in cls.config_type.OPTIONS.items():
            instead |= option.replaced(given[name]) if name in given else {}
        fields = {name: given[name] for name in cls.field_options if name in given}
        config = cls.config_type.read({**hub_config, **instead}, where, strict=strict)
        return cls(config, NoiseSchedule.from_config(config), **fields)

    @classmethod
    def check_option(cls, name: str, value: Any) -> None:
        """Raise a SettingError unless the solver has the option and accepts the value."""
        option = cls.options().get(name)
        if option is None:
            problem = f"the scheduler {cls.name} has no option {name!r}"
            raise SettingError(problem, expected=" or ".join(sorted(cls.options())))
        if not option.accepts(value):
            raise SettingError(f"`{name}` is {value!r}", expected=option.expected)

    def describe(self) -> dict[str, Any]:
        """All that `rebuild_scheduler` needs to make this scheduler again; fit for JSON."""
        own = {name: getattr(self, name) for name in self.field_options}
        config = dataclasses.asdict(self.config)
        # Recipes of pare's before these keys mean false: they describe the same scheduler.
        for key in ("use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas"):
            if config.get(key) is False:
                del config[key]
        return {"name": self.name, **own, "config": config}

    def __repr__(self) -> str:
        own = "".join(f", {name}={getattr(self, name)!r}" for name in self.field_options)
        spacing, predicts = self.config.timestep_spacing, self.prediction_type
        return f"{type(self).__name__}({spacing} timesteps, {predicts}{own})"

    def need_noise(self, noise: Tensor | None) -> Tensor:
        if noise is None:
            raise SchedulerError(
                f"a step of the scheduler {self.name} needs noise",
                expected="a tensor of unit noise, of x_t's shape",
            )
        return noise
