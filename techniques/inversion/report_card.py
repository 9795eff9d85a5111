"""An inversion's report card: how much of the image comes back, and what was found.

The image goes through the VAE either way, so what the VAE alone gives back is the most
that any inversion can.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from pare.io.images import fit_to_multiple, to_pil, to_tensor
from pare.io.metrics import mse, psnr, ssim
from pare.pipeline import Pipeline, Progress
from techniques.inversion.invert_image import Method, Sampled, invert, sample
from techniques.inversion.inverted import Inverted

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Likeness:
    """How alike two 8-bit images are."""

    psnr: float  # dB over all pixels and channels; inf if they are equal
    ssim: float  # of the luma; 1 if they are equal


@dataclass(frozen=True)
class Statistics:
    """Is it white Gaussian noise?  Then mean 0, std 1, autocorrelation 0, kurtosis 3."""

    mean: float
    std: float
    autocorrelation: float
    """The correlation of neighbours, across and down, over all channels: near 1 in images."""
    kurtosis: float


@dataclass(frozen=True)
class Cost:
    seconds: float
    evaluations: int  # of the UNet, each row of a batch counted


@dataclass(frozen=True)
class ReportCard:
    """Of one inversion and the image that it gives back."""

    vae_alone: Likeness
    reconstruction: Likeness
    latent_error: float  # root mean square, to the source's latents
    noise: Statistics
    inverting: Cost
    sampling: Cost

    def report(self) -> dict[str, Any]:
        """Fit for JSON, which has no infinity: the psnr of equal images is None."""
        card = dataclasses.asdict(self)
        for name in ("vae_alone", "reconstruction"):
            if math.isinf(card[name]["psnr"]):
                card[name]["psnr"] = None
        return card


def invert_and_report(
    pipe: Pipeline,
    image: Image.Image,
    prompt: str,
    *,
    method: Method = "ddim",
    steps: int = 50,
    guidance: float | None = None,
    seed: int = 0,
    progress: Progress = iter,
) -> tuple[Inverted, Sampled, ReportCard]:
    """`invert`, the image that its own prompt gives back, and the report card on both."""
    with metered(pipe) as inverting:
        inverted = invert(
            pipe, image, prompt,
            method=method, steps=steps, guidance=guidance, seed=seed, progress=progress,
        )  # fmt: skip
    with metered(pipe) as sampling:
        again = sample(pipe, inverted, progress=progress)
    original = image.convert("RGB")
    worked, restore = fit_to_multiple(original, pipe.vae.config.factor)
    through_vae = restore(to_pil(pipe.decode(pipe.encode(to_tensor(worked))))[0])
    card = ReportCard(
        vae_alone=likeness(original, through_vae),
        reconstruction=likeness(original, again.image),
        latent_error=rms(again.latents.cpu() - inverted.trace.source.cpu()),
        noise=statistics(inverted.trace.x_T),
        inverting=inverting(),
        sampling=sampling(),
    )
    return inverted, again, card


def likeness(one: Image.Image, other: Image.Image) -> Likeness:
    """Of two RGB images of one size."""
    a, b = np.asarray(one), np.asarray(other)
    everywhere = np.ones(a.shape[:2], bool)
    return Likeness(psnr(mse(a, b, everywhere)), ssim(a, b, everywhere))


def statistics(noise: Tensor) -> Statistics:
    """Of latents (1, 4, h, w)."""
    values = noise.cpu().double()
    unit = (values - values.mean()) / values.std()
    # Each channel by itself: one that is brighter throughout is no correlation of neighbours.
    flat = values - values.mean(dim=(2, 3), keepdim=True)
    flat = flat / flat.square().mean(dim=(2, 3), keepdim=True).sqrt()
    across = (flat[..., :, 1:] * flat[..., :, :-1]).mean()
    down = (flat[..., 1:, :] * flat[..., :-1, :]).mean()
    return Statistics(
        mean=values.mean().item(),
        std=values.std().item(),
        autocorrelation=((across + down) / 2).item(),
        kurtosis=unit.pow(4).mean().item(),
    )


def rms(values: Tensor) -> float:
    return values.square().mean().sqrt().item()


class Meter:
    """Counts the UNet's evaluations, and time; call it for what it has read."""

    def __init__(self) -> None:
        self.evaluations = 0
        self.started = time.perf_counter()
        self.seconds = 0.0

    def __call__(self) -> Cost:
        return Cost(self.seconds, self.evaluations)


@contextlib.contextmanager
def metered(pipe: Pipeline) -> Iterator[Meter]:
    """Watch the pipeline's UNet inside the `with`; nothing stays on it."""
    meter = Meter()

    def count(_module: object, inputs: tuple[Any, ...]) -> None:
        meter.evaluations += len(inputs[0])

    hook = pipe.unet.register_forward_pre_hook(count)
    try:
        yield meter
    finally:
        hook.remove()
        meter.seconds = time.perf_counter() - meter.started
