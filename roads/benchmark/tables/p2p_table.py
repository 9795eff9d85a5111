"""Prompt-to-Prompt from noise: does the target keep the layout of its source?

A source image is made from a task's first prompt, and beside it a target from the second,
from the same noise.  Without any injection the words alone change the image: that is what
the technique has to beat, at the same success.
"""

from __future__ import annotations

import numpy as np
import torch

from pare.io.images import to_pil
from pare.io.metrics import structure_distance
from pare.pipeline import Pipeline
from roads.benchmark.edit_benchmark import Pixels
from roads.benchmark.edit_tasks import ATTRIBUTES, tasks
from roads.benchmark.tables.jobs import Job, Record, mean
from roads.judge.judge import Judge
from techniques import prompt_to_prompt as p2p
from techniques.prompt_to_prompt import Edit, prompt_to_prompt

STEPS = 20
KINDS = ("weather", "place", "clouds")  # what this model paints when it is asked to

# Name -> the shares of the steps with the source's cross- and self-attention.
VARIANTS: dict[str, tuple[float, float]] = {
    "no injection": (0.0, 0.0),
    "cross 0.8": (0.8, 0.0),
    "cross 0.8, self 0.2": (0.8, 0.2),
    "cross 0.8, self 0.4": (0.8, 0.4),
    "cross 0.8, self 0.6": (0.8, 0.6),
    "cross 0.8, self 0.8": (0.8, 0.8),
    "cross 1, self 1": (1.0, 1.0),
}
TUTORIAL = "tutorial"


def measure(job: Job, pipe: Pipeline, judge: Judge) -> tuple[Record, Pixels]:
    task = tasks(job.split)[job.case]
    solver = pipe.with_scheduler("dpm++2m", karras=True)
    with torch.no_grad():
        before, after = made(solver, job.variant, task.source_prompt, task.target_prompt, job.case)
    images = to_pil(pipe.decode(torch.cat([before, after])))
    first, second = judge(images)
    pixels = [np.asarray(image) for image in images]
    others = [name for name in ATTRIBUTES if name != task.attribute]
    record = {
        "success": float(getattr(second, task.attribute) == getattr(task.target, task.attribute)),
        "kept": mean([getattr(second, name) == getattr(first, name) for name in others]),
        "structure": structure_distance(*pixels),
    }
    return record, np.asarray(np.hstack(pixels))


def made(
    pipe: Pipeline, variant: str, source: str, target: str, seed: int, steps: int = STEPS
) -> tuple[torch.Tensor, torch.Tensor]:
    """The latents of both, (1, 4, h, w) each."""
    if variant == TUTORIAL:
        timesteps = pipe.scheduler.timesteps(steps)
        x_T = pipe.noise([seed]).draw(pipe.latent_shape()) * timesteps.initial_scale
        return p2p.replay_latents(
            pipe, x_T, timesteps, pipe.encode_prompts([source]), pipe.encode_prompts([target]),
            guidance=7.5,
        )  # fmt: skip
    cross, own = VARIANTS[variant]
    edit = Edit(target, cross_replace=cross, self_replace=own)
    latents = prompt_to_prompt(pipe, source, [edit], [seed], steps=steps).latents
    return latents[:1], latents[1:]
