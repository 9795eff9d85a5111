"""An inversion's report card: how close its reconstruction is, and whether its noise is Gaussian.

The image goes through the VAE either way, so the VAE's own round trip is the upper bound of
any reconstruction.
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

from pare.io.images import ImageLike, as_image, fit_to_multiple, to_pil, to_tensor
from pare.io.metrics import mse, psnr, ssim
from pare.pipeline import Pipeline, Progress
from techniques.inversion.invert_image import Sampled, invert, sample
from techniques.inversion.inverted import Inverted
from techniques.inversion.latent_trace import Method

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Likeness:
    """How alike two 8-bit images are."""

    psnr: float  # dB over all pixels and channels; inf if they are equal
    ssim: float  # of the luma; 1 if they are equal

    def report(self) -> dict[str, float | None]:
        """Fit for JSON, which has no infinity: the psnr of equal images is None."""
        return {"psnr": None if math.isinf(self.psnr) else self.psnr, "ssim": self.ssim}


@dataclass(frozen=True)
class Statistics:
    """Of inverted noise.  White Gaussian noise has mean 0, std 1, autocorrelation 0, kurtosis 3."""

    mean: float
    std: float
    autocorrelation: float
    """The correlation of neighbouring pixels, horizontal and vertical: near 1 in images."""
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
        """Fit for JSON."""
        likenesses = {
            "vae_alone": self.vae_alone.report(),
            "reconstruction": self.reconstruction.report(),
        }
        return dataclasses.asdict(self) | likenesses


def invert_and_report(
    pipe: Pipeline,
    image: ImageLike,
    prompt: str,
    *,
    method: Method = "ddim",
    steps: int = 50,
    guidance: float | None = None,
    seed: int = 0,
    progress: Progress = iter,
) -> tuple[Inverted, Sampled, ReportCard]:
    """`invert`, the reconstruction under the same prompt, and the report card of both."""
    original = as_image(image)
    with metered(pipe) as inverting:
        inverted = invert(
            pipe, original, prompt,
            method=method, steps=steps, guidance=guidance, seed=seed, progress=progress,
        )  # fmt: skip
    with metered(pipe) as sampling:
        again = sample(pipe, inverted, progress=progress)
    worked, restore = fit_to_multiple(original, pipe.vae.config.factor)
    through_vae = restore(to_pil(pipe.decode(pipe.encode(to_tensor(worked))))[0])
    card = ReportCard(
        vae_alone=likeness(original, through_vae),
        reconstruction=likeness(original, again[0]),
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
    # Per channel: a channel's mean is no correlation of neighbours.
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
    """Counts UNet evaluations and seconds; calling it returns both."""

    def __init__(self) -> None:
        self.evaluations = 0
        self.started = time.perf_counter()
        self.seconds = 0.0

    def __call__(self) -> Cost:
        return Cost(self.seconds, self.evaluations)


@contextlib.contextmanager
def metered(pipe: Pipeline) -> Iterator[Meter]:
    """Count the UNet's evaluations inside the `with`; the hook is removed afterwards."""
    meter = Meter()

    def count(_module: object, inputs: tuple[Any, ...]) -> None:
        meter.evaluations += len(inputs[0])

    hook = pipe.unet.register_forward_pre_hook(count)
    try:
        yield meter
    finally:
        hook.remove()
        meter.seconds = time.perf_counter() - meter.started
