"""One prompt and one seed under many settings: what a setting does, seen side by side.

    pages = sweep(pipe, "a snowy road", {"guidance": [0, 1, 3, 7.5, 15, 40]}, seed=7)
    gallery(pages, columns=6)

With two settings every value of the one meets every value of the other.  With an image the
runs start from it (img2img), and `start` says at which step: the later, the less changes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from pare.errors import PromptError, SettingError
from pare.pipeline import Pipeline, Progress
from pare.runtime import validation
from pare.schedulers import SCHEDULERS

MOST = 100  # images
Value = float | int | str


def scheduler_name(value: Any) -> str:
    if value not in SCHEDULERS:
        raise SettingError(f"there is no scheduler {value!r}", expected=", ".join(SCHEDULERS))
    return str(value)


# What can be swept, and what each of its values must be.
SETTINGS: Mapping[str, Callable[[Any], Value]] = {
    "guidance": validation.check_guidance,
    "rescale": validation.check_rescale,
    "steps": validation.check_steps,
    "scheduler": scheduler_name,
    "strength": validation.check_strength,
    "start": lambda value: validation.check_steps(value + 1) - 1,
    "seed": validation.check_seed,
    "replace": validation.check_prompt,
    "model": str,
}
NEED_IMAGE = ("strength", "start")


def check_sweep(over: Mapping[str, Sequence[Value]], prompt: str, has_image: bool) -> None:
    """
    Raises:
        PromptError: `prompt` does not hold what is to be replaced.
        SettingError: no or more than two settings, one that cannot be swept, a value out of
            range, or more images than fit on a page.
    """
    if not 1 <= len(over) <= 2:
        raise SettingError(f"{len(over)} settings are to change", expected="one, or two")
    for name, values in over.items():
        if name not in SETTINGS:
            raise SettingError(f"{name!r} cannot be swept", expected=", ".join(SETTINGS))
        if name in NEED_IMAGE and not has_image:
            raise SettingError(f"{name} needs an image to start from", fix="pass `image`")
        if not values:
            raise SettingError(f"{name} has no values", expected="at least one")
        for value in values:
            SETTINGS[name](value)
    if "replace" in over and str(over["replace"][0]) not in prompt:
        raise PromptError(
            f"{over['replace'][0]!r} is not in the prompt {prompt!r}",
            expected="the first value of replace to be what stands in the prompt",
        )
    if set(NEED_IMAGE) <= set(over):
        raise SettingError("strength and start are one setting", fix="sweep one of them")
    count = len(list(itertools.product(*over.values())))
    if count > MOST:
        raise SettingError(f"{count} images are asked for", expected=f"at most {MOST}")


def sweep(
    pipe: Pipeline,
    prompt: str,
    over: Mapping[str, Sequence[Value]],
    *,
    seed: int = 0,
    image: Tensor | None = None,
    height: int | None = None,
    width: int | None = None,
    load: Callable[[str], Pipeline] = Pipeline.from_pretrained,
    progress: Progress = iter,
    **fixed: Any,
) -> dict[str, Image.Image]:
    """Label -> image, the values of the last setting changing fastest.

    Args:
        over: setting -> its values; one setting or two, of `SETTINGS`.  `replace` puts each of
            its values in the place of the first one in the prompt.
        image: (1, 3, H, W) in [-1, 1] to start from; None: noise alone.
        load: a model's pipeline by its name, where `model` is swept.
        progress: wraps the numbers of the images.
        fixed: the other settings, as for `Pipeline.generate` or `Pipeline.img2img`.

    Raises:
        SettingError: see `check_sweep`.
    """
    check_sweep(over, prompt, image is not None)

    def make(**swept: Any) -> Image.Image:
        chosen = {**fixed, **swept}
        under = load(chosen.pop("model")) if "model" in chosen else pipe
        if "scheduler" in chosen:
            under = under.with_scheduler(chosen.pop("scheduler"))
        if "start" in chosen:
            chosen["strength"] = strength_from(chosen.pop("start"), chosen.get("steps", 25))
        text = prompt
        if "replace" in chosen:
            text = prompt.replace(str(over["replace"][0]), chosen.pop("replace"))
        seeds = [chosen.pop("seed", seed)]
        if image is None:
            made = under.generate(text, seeds, height=height, width=width, **chosen)
        else:
            made = under.img2img(image, text, seeds, **chosen)
        return made[0]

    return sweep_function(make, over, progress=progress)


def strength_from(start: int, steps: int) -> float:
    """The strength with which a run of `steps` begins at step index `start`.

    Raises:
        SettingError: `start` is no step of the run.
    """
    if not 0 <= start < steps:
        raise SettingError(f"start is {start}", expected=f"a step from 0 to {steps - 1}")
    return (steps - start) / steps


def label(chosen: Mapping[str, Value]) -> str:
    shown = {n: f"{v:g}" if isinstance(v, float) else str(v) for n, v in chosen.items()}
    return "\n".join(f"{name} {value}" for name, value in shown.items())


def sweep_function(
    make: Callable[..., Image.Image],
    over: Mapping[str, Sequence[Any]],
    *,
    progress: Progress = iter,
) -> dict[str, Image.Image]:
    """Label -> `make(**settings)` of each combination, the last setting changing fastest.

        def make(**given):
            edit = Edit("a snowy road", **given)
            return prompt_to_prompt(pipe, "a sunny road", [edit], 7).targets[0][0]

        sweep_function(make, {"cross_replace": [0, 0.2, 1], "self_replace": [0, 0.4]})

    For settings of any function, those of a technique included; `make` checks their values.

    Raises:
        SettingError: no or more than two settings, no values, or more images than fit on a page.
    """
    if not 1 <= len(over) <= 2 or not all(over.values()):
        raise SettingError(f"`over` is {dict(over)}", expected="one setting or two, with values")
    combinations = [
        dict(zip(over, values, strict=True)) for values in itertools.product(*over.values())
    ]
    if len(combinations) > MOST:
        raise SettingError(
            f"`over` asks for {len(combinations)} images", expected=f"at most {MOST}"
        )
    return {label(combinations[k]): make(**combinations[k])
            for k in progress(range(len(combinations)))}  # fmt: skip


# --- without a scheduler ------------------------------------------------------------------


@torch.no_grad()
def one_leap(pipe: Pipeline, prompt: str, *, seed: int = 0, guidance: float = 7.5) -> Tensor:
    """What a scheduler is for, shown without: all noise taken away at once, latents (1, 4, h, w).

    One look at pure noise, and its x0 as the answer.  The best guess under so much noise is the
    mean of all that the prompt could mean, so it is a blur.
    """
    prompts, noise = pipe.encode_prompts(prompt), pipe.noise([seed])
    schedule = pipe.scheduler.schedule
    noisiest = schedule.level(len(schedule.sigmas) - 1)
    return pipe.predict(noise.draw(pipe.latent_shape()), noisiest, prompts, guidance).x0


@torch.no_grad()
def subtract_noise(
    pipe: Pipeline, prompt: str, *, seed: int = 0, steps: int = 25, guidance: float = 7.5,
    ratio: float = 1.0,
) -> Tensor:  # fmt: skip
    """Another way without: at every step the same share of the predicted noise is taken away.

    x = x - ratio / steps * eps, whatever the level: the model is told that x is as noisy as
    step i should be, which it is not, and the signal is never scaled up.  Latents (1, 4, h, w).
    """
    prompts, noise = pipe.encode_prompts(prompt), pipe.noise([seed])
    timesteps = pipe.scheduler.timesteps(steps)
    x = noise.draw(pipe.latent_shape()) * timesteps.initial_scale
    for i in range(len(timesteps)):
        eps = pipe.predict(x, timesteps.levels[i], prompts, guidance, step=i).eps
        x = x - ratio / len(timesteps) * eps
    return x
