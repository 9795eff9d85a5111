"""Parity of the solvers: rolled out on a denoiser whose exact output is known."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from pare.noise import Noise
from pare.schedulers import Scheduler, build_scheduler, interpret
from pare.verify import diffusers_side
from pare.verify.analytic_denoiser import Denoiser, denoiser
from pare.verify.model_pair import KARRAS, SEED, SOLVERS, ModelPair, solver_options
from pare.verify.paired_timing import in_turns
from pare.verify.parity_table import Bound, Compared, Distance, ParityRow, Skipped

ROLLOUTS = (2, 7, 20, 25, 50)  # steps


def scheduler_rows(models: ModelPair) -> Iterator[Compared]:
    """Every solver from its start and from midway, each the worst of all its runs."""
    config = models.pipe.scheduler_config
    variants: list[tuple[str, bool, float]] = [(name, False, 0.0) for name in SOLVERS]
    variants += [("ddim", False, 1.0), ("ddim-inverse", False, 0.0)]
    variants += [(name, True, 0.0) for name in KARRAS]
    for name, karras, eta in variants:
        label = name + (" with eta 1" if eta else "") + (" with Karras sigmas" if karras else "")
        reason = diffusers_side.known_deviation(name, config, karras=karras)
        if reason:
            yield Skipped(label, reason)
            continue
        options = solver_options(name, karras) | ({"eta": eta} if eta else {})
        ours = build_scheduler(config, "the model's scheduler_config.json", name, **options)
        model = denoiser(ours.schedule, ours.prediction_type)
        distances, ratios = [], []
        for steps in ROLLOUTS:
            for start in (0, steps // 3):
                theirs = diffusers_side.build_scheduler(name, config, karras=karras)
                run = diffusers_side.SolverRun(name, theirs, steps, start)
                timing = in_turns(
                    partial(our_rollout, ours, model, steps, start),
                    partial(their_rollout, run, model, eta),
                    torch.device("cpu"),
                    pairs=1,
                )
                distances.append(Distance.between(timing.ours, timing.theirs))
                ratios.append(timing.ratio)
        worst, bound = Distance.worst(distances), Bound("relative", 1e-5)
        note = f"{len(distances)} runs of {ROLLOUTS[0]} to {ROLLOUTS[-1]} steps"
        ratio = statistics.median(ratios)
        yield ParityRow("schedulers", label, worst, bound, time_ratio=ratio, note=note)


def our_rollout(scheduler: Scheduler, model: Denoiser, steps: int, start: int) -> Tensor:
    timesteps = scheduler.timesteps(steps, start)
    noise = Noise([SEED])
    x_t = noise.draw((4, 8, 8)) * (timesteps.initial_scale if start == 0 else 1.0)
    history: tuple[Tensor, ...] = ()
    for i in range(len(timesteps)):
        level = timesteps.levels[i]
        prediction = interpret(model(x_t, level.t), x_t, level, scheduler.prediction_type)
        fresh = noise.draw((4, 8, 8)) if scheduler.stochastic else None
        x_t, history = scheduler.step(timesteps, i, x_t, prediction, history, fresh)
    return x_t


def their_rollout(run: diffusers_side.SolverRun, model: Denoiser, eta: float) -> Tensor:
    generator = torch.Generator().manual_seed(SEED)
    noise = torch.randn((1, 4, 8, 8), generator=generator)
    x = run.begin(noise) if run.start == 0 else run.from_latents(noise)
    return run.to_the_end(x, lambda x_t, t: model(x_t, float(t)), generator, eta)
