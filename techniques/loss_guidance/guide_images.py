"""Guidance by a loss from prompts to images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pare.errors import SettingError
from pare.io.images import to_pil
from pare.pipeline import Pipeline, Progress, check_sampling, one_per_seed
from pare.results import Images
from pare.runtime import validation
from pare.runtime.calls import checked_keywords, warn_caller
from techniques.loss_guidance.loss_guided_loop import GuidedStep, Loss, check_loss, guide_latents


class LossWarning(UserWarning):
    """A guided image whose loss is not below that of the unguided one."""


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Guided(Images):
    """Images guided by a loss, one a seed, and the loss during and after the run."""

    latents: Tensor  # (B, 4, h, w), scaled
    steps: list[list[GuidedStep]]  # for each image, at each step that was guided
    losses: list[float]  # of the finished images
    unguided: list[float] | None
    """The losses of the same seeds without guidance by the loss; None if not asked for."""

    def report(self) -> dict[str, object]:
        """For each image its loss, that without guidance, and each guided step."""
        return {
            "guidance": [
                {
                    "loss": loss,
                    "unguided": None if self.unguided is None else self.unguided[k],
                    "steps": [vars(step) for step in self.steps[k]],
                }
                for k, loss in enumerate(self.losses)
            ]
        }


@checked_keywords
def guide(
    pipe: Pipeline,
    prompts: str | Sequence[str],
    loss: Loss,
    seeds: int | Sequence[int] = (0,),
    *,
    scale: float = 20.0,
    every: int = 5,
    through_unet: bool = False,
    compare: bool = True,
    steps: int = 25,
    guidance: float = 7.5,
    rescale: float = 0.0,
    negative: str | Sequence[str] = "",
    height: int | None = None,
    width: int | None = None,
    batch: int = 1,
    progress: Progress = iter,
) -> Guided:
    """Generate images from prompts, guided by a loss, under `pipe.scheduler`.

    With `scale` 0 these are the images of `pipe.generate`.

    Args:
        loss: see `Loss`; `techniques.loss_guidance.losses` has some, and any differentiable
            function of an image will do.
        scale, every, through_unet: see `guide_latents`.  The gradient of a mean over pixels is
            inversely proportional to their number: `scale` grows with the area.
        compare: also make the images without guidance by the loss, to see whether it fell.
            That is a second run, which needs no gradients.
        batch: images that go through the UNet together.

    Warns:
        LossWarning: with `compare`, images whose loss did not fall.

    Raises:
        SettingError: a setting out of range, or prompts and seeds that do not pair.
        LossError: a loss that gives no number, or one without a gradient.
        ModelError: an inpainting model.
    """
    pipe.require_channels("guide")
    pipe.require_denoising("guide")
    check_sampling(steps, guidance, rescale)
    check_guiding(scale, every)
    validation.check_batch(batch)
    seeds, shape = validation.seed_list(seeds), pipe.latent_shape(height, width)
    factor = pipe.vae.config.factor
    check_loss(on_device(loss, pipe.device), factor * shape[1], factor * shape[2])
    timesteps = pipe.timesteps(steps)
    embeddings = pipe.encode_prompts(one_per_seed(prompts, seeds), negative)
    guided_steps: list[list[GuidedStep]] = [[] for _ in seeds]

    def run(scale: float) -> Tensor:
        noise, latents = pipe.noise(seeds), []
        for first in range(0, len(noise), batch):
            some = slice(first, first + batch)

            def watch(image: int, step: GuidedStep, first: int = first) -> None:
                guided_steps[first + image].append(step)

            latents.append(
                guide_latents(
                    pipe, noise[some].draw(shape) * timesteps.initial_scale, timesteps,
                    embeddings[some], loss,
                    scale=scale, every=every, through_unet=through_unet, guidance=guidance,
                    rescale=rescale, noise=noise[some], progress=progress, watch=watch,
                )
            )  # fmt: skip
        return torch.cat(latents)

    unguided = None
    if compare and scale != 0:  # first: a recording keeps the last run, which is the guided one
        unguided = losses_of(pipe.decode(run(0.0), sliced=True), loss, pipe.device)
    latents = run(scale)
    decoded = pipe.decode(latents, sliced=True)
    losses = losses_of(decoded, loss, pipe.device)
    if unguided is not None:
        warn_of_rising(losses, unguided, seeds)
    return Guided(
        images=to_pil(decoded),
        seeds=seeds,
        decoded=decoded,
        latents=latents,
        steps=guided_steps,
        losses=losses,
        unguided=unguided,
    )


@torch.no_grad()
def losses_of(decoded: Tensor, loss: Loss, device: torch.device) -> list[float]:
    """The loss of each of the images (B, 3, H, W) in [-1, 1]."""
    images = (decoded / 2 + 0.5).to(device)
    return [float(loss(images[k : k + 1])) for k in range(len(images))]


def warn_of_rising(
    losses: Sequence[float], unguided: Sequence[float], seeds: Sequence[int]
) -> None:
    """Warn of the images whose loss did not fall."""
    risen = [
        f"{after:.4g} against {before:.4g} without guidance (seed {seed})"
        for after, before, seed in zip(losses, unguided, seeds, strict=True)
        if after >= before
    ]
    if risen:
        warn_caller(
            f"the loss did not fall: {', '.join(risen[:3])}; try another `scale`, a smaller "
            "`every`, or another scheduler",
            LossWarning,
        )


def on_device(loss: Loss, device: torch.device) -> Loss:
    return lambda image: loss(image.to(device))


def check_guiding(scale: float, every: int) -> None:
    validation.check_number("scale", scale, -1e9, 1e9)
    whole = isinstance(every, int) and not isinstance(every, bool)
    if not whole or not 1 <= every <= validation.MAX_STEPS:
        raise SettingError(
            f"`every` is {every!r}", expected=f"a whole number from 1 to {validation.MAX_STEPS}"
        )
