"""Whether a multistep solver should keep its history across a blend: a measurement.

A blend changes x_t between the solver's steps (see `blend_latents`).  Either choice is measured
by the distance of a run of few steps from one of very many, from the same noise and noise
level, over the latents inside the mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from pare.errors import SettingError
from pare.pipeline import Pipeline, Progress, one_per_seed
from techniques.blended.blended_loop import blend_latents
from techniques.blended.edit_canvas import Canvas


@dataclass(frozen=True)
class HistoryRow:
    """Root mean square distance, inside the mask, to the run of very many steps."""

    steps: int
    keep: float
    drop: float


def measure_history(
    pipe: Pipeline,
    image: Image.Image,
    mask: Image.Image,
    prompts: str | Sequence[str],
    seeds: Sequence[int] = (0,),
    *,
    steps: Sequence[int] = (10, 20, 40, 80),
    exact_steps: int = 400,
    guidance: float = 7.5,
    progress: Progress = iter,
) -> list[HistoryRow]:
    """One row a number of steps, over all seeds: the history kept, and dropped.

    Every run starts from the first level of `pipe.scheduler`, so take one whose first level
    does not depend on the number of steps: Karras sigmas, or linspace or trailing spacing.

    Raises:
        SettingError: a scheduler that draws noise, whose runs of different lengths cannot be
            compared, or one that cannot do without its history.
    """
    if pipe.scheduler.stochastic or pipe.scheduler.needs_history:
        raise SettingError(
            f"{pipe.scheduler.name} cannot be measured: it draws noise, or needs its history",
            fix="use `scheduler=dpm++2m`",
        )
    canvas = Canvas.prepare(image, mask, factor=pipe.vae.config.factor)
    embeddings = pipe.encode_prompts(one_per_seed(prompts, seeds))
    noise = pipe.noise(seeds)
    source = pipe.encode(canvas.image).expand(len(noise), -1, -1, -1)
    noises = [noise.draw(tuple(source.shape[1:])) for _ in range(2)]
    grid = canvas.grid.to(source)

    def run(number: int, keep: bool) -> Tensor:
        return blend_latents(
            pipe,
            pipe.scheduler.timesteps(number),
            embeddings,
            source,
            grid,
            *noises,
            guidance=guidance,
            keep_history=keep,
            progress=progress,
        )

    inside = grid.expand_as(source) > 0
    exact = run(exact_steps, keep=True)[inside]

    def distance(number: int, keep: bool) -> float:
        return float((run(number, keep)[inside] - exact).square().mean().sqrt())

    return [HistoryRow(n, distance(n, keep=True), distance(n, keep=False)) for n in steps]
