"""diffusers' schedulers, rolled out to the end.  Knows nothing of pare."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor

from tests.schedulers.analytic import Model, alpha_bars

diffusers.utils.logging.set_verbosity_error()

CLASSES = {
    "ddim": diffusers.DDIMScheduler,
    "ddim-inverse": diffusers.DDIMInverseScheduler,
    "dpm++2m": diffusers.DPMSolverMultistepScheduler,
    "lms": diffusers.LMSDiscreteScheduler,
    "pndm": diffusers.PNDMScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
    "euler-ancestral": diffusers.EulerAncestralDiscreteScheduler,
}
IN_SIGMA = ("lms", "euler", "euler-ancestral")  # latents are x_t / sqrt(alpha_bar) there


def build(name: str, config: dict[str, Any]) -> Any:
    return CLASSES[name].from_config(dict(config))


def rollout(
    name: str,
    config: dict[str, Any],
    model: Model,
    noise: Tensor,
    steps: int,
    start: int = 0,
    *,
    eta: float = 0.0,
    order: int = 4,
    exact_sigmas: bool = False,
) -> Tensor:
    """The end of diffusers' run; `noise` is the unit noise, or x_t itself where `start` > 0.

    Fresh noise comes from a generator seeded with 5.  What diffusers must be told to run
    rightly from midway: the begin index, PNDM its list of timesteps, LMS the order that
    the slopes so far allow.  `exact_sigmas` has it compute its coefficients in float64.
    """
    scheduler = build(name, config)
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(5)
    timesteps = scheduler.timesteps[start:]
    if name == "pndm" and start:
        timesteps = told_midway(scheduler, start)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)
    if exact_sigmas:
        scheduler.sigmas, timesteps = in_float64(name, scheduler, config, steps, timesteps)

    x = noise * scheduler.init_noise_sigma if start == 0 else noise
    if name in IN_SIGMA and start:
        x = noise * (scheduler.sigmas[start] ** 2 + 1) ** 0.5
    for k, t in enumerate(timesteps):
        output = model(scheduler.scale_model_input(x, t), float(t))
        extra: dict[str, Any] = {}
        if name == "lms":
            extra = {"order": min(k + 1, order)}
        elif name == "euler-ancestral":
            extra = {"generator": generator}
        elif name == "ddim" and eta:
            extra = {"eta": eta, "generator": generator}
        x = scheduler.step(output, t, x, **extra).prev_sample
    return x / (float(scheduler.sigmas[-1]) ** 2 + 1) ** 0.5 if name in IN_SIGMA else x


def in_float64(
    name: str, scheduler: Any, config: dict[str, Any], steps: int, timesteps: Tensor
) -> tuple[np.ndarray, Any]:
    """The sigmas of a run, and its timesteps: diffusers rounds both to float32.

    Differences of neighbouring sigmas lose digits then, and by how much depends on the
    processor's own logarithm.
    """
    table = alpha_bars(config)
    numbers = np.arange(len(table))
    sigmas = np.sqrt((1 - table) / table)
    if not scheduler.config.get("use_karras_sigmas"):
        return np.append(np.interp(scheduler.timesteps, numbers, sigmas), 0.0), timesteps
    # arXiv:2206.00364, eq. 5 with rho = 7, between the ends of the plain run.
    plain = build(name, {**config, "use_karras_sigmas": False})
    plain.set_timesteps(steps)
    first, last = np.interp(plain.timesteps[[0, -1]], numbers, sigmas) ** (1 / 7)
    karras = (first + np.linspace(0, 1, steps) * (last - first)) ** 7
    exact = np.interp(np.log(karras), np.log(sigmas), numbers)
    return np.append(karras, 0.0), exact[steps - len(timesteps) :]


def told_midway(scheduler: Any, start: int) -> Tensor:
    """PNDM's timesteps from step `start` on, with a warm-up of their own."""
    plain = torch.from_numpy(scheduler._timesteps[::-1][start:].copy()).long()
    if scheduler.config.skip_prk_steps:
        return torch.cat([plain[:2], plain[1:]])
    half = scheduler.config.num_train_timesteps // scheduler.num_inference_steps // 2
    warm_up = []
    for here, there in zip(plain[:3].tolist(), plain[1:4].tolist(), strict=True):
        warm_up += [here, there + half, there + half, there]
    scheduler.prk_timesteps = warm_up
    return torch.cat([torch.tensor(warm_up), plain[3:]])
