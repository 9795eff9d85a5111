"""pare's schedulers, rolled out to the end, and the config that most tests start from."""

from __future__ import annotations

import torch
from torch import Tensor

from pare.schedulers import SCHEDULERS, Scheduler, interpret
from tests.schedulers.analytic import Model

# SD 1.4's own file, which was written for PNDM.
SD14 = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.7.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
# The solvers of the first release, with a reference that starts them midway; test_more_solvers.py
# has the others.
NAMES = ("ddim", "ddim-inverse", "dpm++2m", "lms", "pndm", "euler", "euler-ancestral")
ALL = tuple(SCHEDULERS)
KARRAS = ("dpm++2m", "lms", "euler")


def rollout(
    scheduler: Scheduler, model: Model, noise: Tensor, steps: int, start: int = 0
) -> Tensor:
    """The end of pare's run; `noise` is the unit noise, or x_t itself where `start` > 0."""
    timesteps = scheduler.timesteps(steps, start)
    generator = torch.Generator().manual_seed(5)
    x_t = noise * timesteps.initial_scale if start == 0 else noise
    history: tuple[Tensor, ...] = ()
    for i in range(len(timesteps)):
        level = timesteps.levels[i]
        output = model(x_t, level.t)
        prediction = interpret(output, x_t, level, scheduler.prediction_type)
        fresh = torch.randn(x_t.shape, generator=generator) if scheduler.stochastic else None
        x_t, history = scheduler.step(timesteps, i, x_t, prediction, history, fresh)
    return x_t


def unit_noise(seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(seed)).to(dtype)


def distance(ours: Tensor, theirs: Tensor) -> float:
    """max |difference| / max |reference|; nan stays nan and passes no bound."""
    return float((ours - theirs).abs().max() / theirs.abs().max())
