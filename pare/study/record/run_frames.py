"""A run, moment by moment: what x_t is and what the model takes it for, and both as images.

    for moment in walk(pipe, "a snowy road", seed=7, steps=25, guidance=7.5):
        moment.x_t, moment.x0        latents (1, 4, h, w): before the step, and as predicted

The film of x0 alone flatters: the model's guess is an image early on, while x_t itself still
is noise and moves little at each step.  Seen side by side they say what denoising does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from pare.io.images import to_pil
from pare.pipeline import Pipeline, Progress, check_sampling
from pare.schedulers import NoiseLevel
from pare.study.record.image_grid import gallery


@dataclass(frozen=True, eq=False)
class Moment:
    """One look of the model along a run; the last moment is the image, with no look."""

    i: int
    """Step index."""
    looks: int
    """Of the whole run."""
    level: NoiseLevel
    x_t: Tensor
    """(1, 4, h, w), at `level`."""
    x0: Tensor
    """(1, 4, h, w): what the guided model takes x_t for; the image itself at the end."""

    def captions(self) -> tuple[str, str]:
        """What stands above x_t and above x0."""
        if self.i == self.looks:
            return f"x_t after {self.looks} steps", "the image"
        where = f"step {self.i + 1} of {self.looks}: t = {self.level.t:.0f}"
        return f"x_t, {where}, sigma {self.level.sigma:.2f}", "x0, as the model sees it"


@torch.no_grad()
def walk(
    pipe: Pipeline,
    prompt: str,
    *,
    seed: int = 0,
    steps: int = 25,
    guidance: float = 7.5,
    rescale: float = 0.0,
    negative: str = "",
    height: int | None = None,
    width: int | None = None,
    progress: Progress = iter,
) -> Iterator[Moment]:
    """The moments of `pipe.generate(prompt, [seed], …)`, `looks + 1` of them, as it goes.

    Raises:
        SettingError, NonFiniteError: as `Pipeline.generate`.
    """
    pipe.require_channels("this")
    pipe.require_denoising("this")
    check_sampling(steps, guidance, rescale)
    prompts = pipe.encode_prompts(prompt, negative)
    timesteps = pipe.scheduler.timesteps(steps)
    noise = pipe.noise([seed])
    x_t = noise.draw(pipe.latent_shape(height, width)) * timesteps.initial_scale
    history: tuple[Tensor, ...] = ()
    for i in progress(range(len(timesteps))):
        level = timesteps.levels[i]
        prediction = pipe.predict(x_t, level, prompts, guidance, rescale=rescale, step=i)
        yield Moment(i, len(timesteps), level, x_t, prediction.x0)
        fresh = pipe.fresh_noise(noise, x_t)
        x_t, history = pipe.scheduler.step(timesteps, i, x_t, prediction, history, fresh)
    yield Moment(len(timesteps), len(timesteps), timesteps.levels[-1], x_t, x_t)


SMALLEST = 256  # pixels: a smaller image is shown enlarged


def film_frames(pipe: Pipeline, moments: Iterable[Moment]) -> Iterator[Image.Image]:
    """For every moment x_t beside x0, both decoded, under their captions; all of one size."""
    for moment in moments:
        x_t, x0 = (enlarged(to_pil(pipe.decode(x))[0]) for x in (moment.x_t, moment.x0))
        left, right = moment.captions()
        yield gallery({left: x_t, right: x0}, columns=2)


def enlarged(image: Image.Image, smallest: int = SMALLEST) -> Image.Image:
    """A small image at a whole multiple of its size, its pixels as squares."""
    factor = max(1, smallest // min(image.size))
    size = image.width * factor, image.height * factor
    return image.resize(size, Image.Resampling.NEAREST)
