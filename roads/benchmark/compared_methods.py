"""The techniques of the edit benchmark, each a function of a pipeline, a task and a seed.

Their names are a group and a mode: "p2p null-text" is prompt-to-prompt on the way back from
null-text inversion.  "tutorial" is what a well-known tutorial does, setting by setting.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from pare.errors import SettingError
from pare.io.images import to_pil, to_tensor
from pare.pipeline import Pipeline
from roads.benchmark.edit_tasks import Task
from techniques import inversion
from techniques import prompt_to_prompt as p2p
from techniques.blended import blend
from techniques.inversion import EDIT_METHODS, edit

Technique = Callable[[Pipeline, Task, int], Image.Image]

STEPS = 25
STEPS_BACK = 20  # of an inversion, each way


# --- lower and upper bounds: no edit, the truth, the truth through the VAE -------------------


def no_edit(_pipe: Pipeline, task: Task, _seed: int) -> Image.Image:
    return task.image


def truth(_pipe: Pipeline, task: Task, _seed: int) -> Image.Image:
    return Image.fromarray(task.target_pixels)


def truth_through_vae(pipe: Pipeline, task: Task, _seed: int) -> Image.Image:
    latents = pipe.encode(to_tensor(Image.fromarray(task.target_pixels)))
    return to_pil(pipe.decode(latents))[0]


# --- techniques -----------------------------------------------------------------------------


def img2img(pipe: Pipeline, task: Task, seed: int, *, strength: float) -> Image.Image:
    """The image, noised and denoised under the new prompt: no technique at all."""
    return pipe.img2img(task.image, task.target_prompt, seed, strength=strength, steps=STEPS)[0]


def blended(pipe: Pipeline, task: Task, seed: int, **choices: Any) -> Image.Image:
    """Blended latent diffusion under the mask that a person would paint."""
    solver = pipe.with_scheduler("dpm++2m", karras=True)
    edited = blend(
        solver, task.image, task.mask, task.target_prompt, [seed],
        **{"steps": STEPS} | choices,
    )  # fmt: skip
    return edited[0]


def on_the_way_back(pipe: Pipeline, task: Task, seed: int, **choices: Any) -> Image.Image:
    """An inversion, and an edit on the way back."""
    if choices["kind"] == "blend":
        choices["mask"] = task.mask
    edited = edit(
        pipe.with_scheduler("ddim"), task.image, task.source_prompt, task.target_prompt,
        **{"steps": STEPS_BACK, "seed": seed, "reconstruct": False} | choices,
    )  # fmt: skip
    return edited[0]


def replayed(pipe: Pipeline, task: Task, _seed: int) -> Image.Image:
    """The tutorial's prompt-to-prompt, from the noise of DDIM inversion: every map of a run
    under the source's prompt is stored, and put in the place of the target's."""
    solver = pipe.with_scheduler("ddim")
    inverted = inversion.invert(solver, task.image, task.source_prompt, steps=STEPS_BACK)
    _, latents = p2p.replay_latents(
        solver, inverted.trace.x_T.to(solver.device), solver.scheduler.timesteps(STEPS_BACK),
        solver.encode_prompts([task.source_prompt]), solver.encode_prompts([task.target_prompt]),
        guidance=7.5,
    )  # fmt: skip
    return to_pil(pipe.decode(latents))[0]


FRAME: dict[str, Technique] = {
    "no edit": no_edit,
    "truth": truth,
    "truth through the VAE": truth_through_vae,
}
TECHNIQUES: dict[str, Technique] = {
    "img2img 0.5": functools.partial(img2img, strength=0.5),
    "img2img 0.7": functools.partial(img2img, strength=0.7),
    "img2img 0.9": functools.partial(img2img, strength=0.9),
    "blend tutorial": functools.partial(
        blended, background="latent", guidance=12.0, rounding="up", sample=True
    ),
    **{
        f"blend {background}": functools.partial(blended, background=background)
        for background in ("latent", "paste", "poisson", "decoder")
    },
    **{
        f"blend on {method}": functools.partial(on_the_way_back, kind="blend", method=method)
        for method in ("ddim", "edit-friendly")
    },
    # Plain inversion sampled at guidance 1, as the tutorial does.
    "resample tutorial": functools.partial(
        on_the_way_back, kind="resample", method="ddim", guidance=1.0
    ),
    **{
        f"resample {method}": functools.partial(on_the_way_back, kind="resample", method=method)
        for method in EDIT_METHODS["resample"]
    },
    "p2p tutorial": replayed,
    **{
        f"p2p {method}": functools.partial(on_the_way_back, kind="p2p", method=method)
        for method in EDIT_METHODS["p2p"]
    },
}


def group(name: str) -> str:
    return name.split()[0]


def chosen_techniques(names: Sequence[str]) -> dict[str, Technique]:
    """The techniques of these names or groups; all of them where none is named.

    Raises:
        SettingError: there is no technique or group of such a name.
    """
    groups = list(dict.fromkeys(map(group, TECHNIQUES)))
    for name in names:
        if name not in TECHNIQUES and name not in groups:
            raise SettingError(
                f"there is no technique {name!r}",
                expected=f"a group ({', '.join(groups)}) or one of {', '.join(TECHNIQUES)}",
            )
    chosen = {
        name: technique
        for name, technique in TECHNIQUES.items()
        if name in names or group(name) in names
    }
    return chosen if names else TECHNIQUES
