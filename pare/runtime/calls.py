"""What a caller gets wrong or is told: keywords of other libraries, and warnings at their line."""

from __future__ import annotations

import difflib
import functools
import inspect
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import ParamSpec, TypeVar

from pare.errors import ParameterError

Given = ParamSpec("Given")
Made = TypeVar("Made")

# What diffusers and web interfaces call the parameters.
OTHER_NAMES: Mapping[str, str] = {
    "cfg": "guidance", "cfg_scale": "guidance", "guidance_scale": "guidance",
    "guidance_rescale": "rescale", "num_inference_steps": "steps", "num_steps": "steps",
    "negative_prompt": "negative", "prompt": "prompts", "generator": "seeds", "seed": "seeds",
    "num_images_per_prompt": "seeds", "batch_size": "batch", "denoising_strength": "strength",
    "mask_image": "mask", "init_image": "image", "callback_on_step_end": "progress",
}  # fmt: skip
OURS = ("pare", "techniques", "roads", "torch")  # torch: the decorator `no_grad`


def checked_keywords(function: Callable[Given, Made]) -> Callable[Given, Made]:
    """Let a keyword that the function does not have end in a sentence that names the right one.

    Raises (the decorated function):
        ParameterError: there is no such parameter.
    """
    known = [name for name in inspect.signature(function).parameters if name != "self"]

    @functools.wraps(function)
    def checked(*given: Given.args, **named: Given.kwargs) -> Made:
        for name in named:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                meant = OTHER_NAMES.get(name) if OTHER_NAMES.get(name) in known else None
                meant = meant or (near[0] if near else None)
                raise ParameterError(
                    f"`{function.__name__}` has no parameter `{name}`",
                    fix=f"did you mean `{meant}`?" if meant else f"it has {', '.join(known)}",
                )
        return function(*given, **named)

    return checked


def warn_caller(message: str | Warning, category: type[Warning] = UserWarning) -> None:
    """Warn at the line, outside of this project, that led here: where a reader can change it."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and str(frame.f_globals.get("__name__")).partition(".")[0] in OURS:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
