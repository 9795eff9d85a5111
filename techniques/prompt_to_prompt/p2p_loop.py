"""Prompt-to-Prompt (arXiv:2208.01626, algorithm 1): source and targets sampled side by side.

They start from the same noise.  Where a target's attention weights are computed from the
source's, its image gets the source's layout; the values, and so the content, come from the
target's own prompt.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pare.noise import Noise
from pare.pipeline import Pipeline, Progress
from pare.schedulers import History, NoiseLevel, Prediction, Timesteps
from pare.text.text_encoder import PromptEmbeddings
from techniques.prompt_to_prompt.attention_edit import BatchSlice, Injection


@torch.no_grad()
def edit_latents(
    pipe: Pipeline,
    x_t: Tensor,
    timesteps: Timesteps,
    prompts: PromptEmbeddings,
    injection: Injection,
    *,
    guidance: float,
    rescale: float = 0.0,
    noise: Noise | None = None,
    batch: int | None = None,
    progress: Progress = iter,
) -> Tensor:
    """x_t at the first of the timesteps -> latents at the last, both (B, 4, h, w).

    The rows are, for each seed, the source and then its targets, all from the same noise.

    Args:
        prompts: of every row.
        injection: edits the targets' attention inside `pipe.predict`.
        noise: needed by schedulers that are `stochastic`; one generator a row, equal for all
            rows of a seed.
        batch: rows that go through the UNet together; None is all of them.  With 1, source and
            targets take turns at every step, which needs the least memory and changes the
            images by rounding alone.

    Raises:
        SettingError: a local blend by layers that the UNet does not have.
    """
    if injection.masks is not None:
        injection.masks.require_maps(pipe.unet.sites())
    history: History = ()
    for i in progress(range(len(timesteps))):
        level = timesteps.levels[i]
        prediction = predict_in_slices(
            pipe, x_t, level, prompts, injection, guidance, rescale, i, batch or len(x_t)
        )
        fresh = pipe.fresh_noise(noise, x_t)
        x_t, history = pipe.scheduler.step(timesteps, i, x_t, prediction, history, fresh)
        if injection.masks is not None:
            x_t = injection.masks.blend(i, x_t)
    return x_t


def predict_in_slices(
    pipe: Pipeline,
    x_t: Tensor,
    level: NoiseLevel,
    prompts: PromptEmbeddings,
    injection: Injection,
    guidance: float,
    rescale: float,
    i: int,
    batch: int,
) -> Prediction:
    """`Pipeline.predict`, `batch` rows at a time.

    A source comes before its targets, which need its attention weights.
    """
    parts = []
    for first in range(0, len(x_t), batch):
        rows = slice(first, first + batch)
        control = BatchSlice(injection, first)
        parts.append(
            pipe.predict(
                x_t[rows], level, prompts[rows], guidance, rescale=rescale, control=control, step=i
            )
        )
    return Prediction(
        x0=torch.cat([part.x0 for part in parts]), eps=torch.cat([part.eps for part in parts])
    )
