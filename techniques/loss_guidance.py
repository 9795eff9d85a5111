"""Guidance by a loss: any number that can be computed from an image steers how it is made.

At a step the model's answer says what the image will be: x0.  Decode it, let a loss judge
the image, and move x_t a little the way in which the loss falls.  The published notebook
does so in the space of LMS, where latents are x_hat = x_t / sqrt(alpha_bar) = x0 + sigma eps:

    x_hat <- x_hat - sigma^2 * gradient of the loss in x_hat

In x_t, where pare's latents are, the gradient is 1 / sqrt(alpha_bar) times that one, and a
move is sqrt(alpha_bar) times as long.  With sigma^2 = (1 - alpha_bar) / alpha_bar so

    x_t <- x_t - sqrt(alpha_bar) * sigma^2 * sqrt(alpha_bar) * gradient in x_t
         = x_t - (1 - alpha_bar) * gradient in x_t

which is what guidance by a classifier comes to, with exp(-loss) for its probability
(arXiv:2105.05233, eq. 14): eps + sqrt(1 - alpha_bar) * gradient in place of eps moves the x0
in x_t by as much.

x0 = (x_t - sqrt(1 - alpha_bar) * eps) / sqrt(alpha_bar) depends on x_t twice, as eps does too.
*Around the UNet* eps counts as a constant: a gradient costs one pass back through the VAE's
decoder.  *Through the UNet* it does not: exact, at the price of a pass back through the UNet
and of the memory for that (arXiv:2302.07121 takes this one).

`guide_latents` is the loop, `guide` goes from words to images around it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pare.errors import LossError, SettingError
from pare.io.images import to_pil
from pare.noise import Noise
from pare.pipeline import Pipeline, Progress, check_sampling, one_per_seed
from pare.runtime import validation
from pare.schedulers import History, Timesteps, interpret
from pare.text.text_encoder import PromptEmbeddings
from pare.vae import AutoencoderKL
from pare.vae.half_precision import in_float32

if TYPE_CHECKING:
    from PIL import Image

Loss = Callable[[Tensor], Tensor]
"""One image (1, 3, H, W), float32, about [0, 1] -> a tensor of one number, less is better.

Not clamped: an image that is not finished yet goes beyond 0 and 1."""


@dataclass(frozen=True)
class Look:
    """What a loss said about an image at one step, and how far it moved x_t."""

    step: int
    t: float
    loss: float
    """Before the move, unscaled."""
    moved: float
    """Root mean square over the latent's numbers, of which noise has 1."""


# --- the algorithm -------------------------------------------------------------------------


@torch.no_grad()
def guide_latents(
    pipe: Pipeline,
    x_t: Tensor,
    timesteps: Timesteps,
    prompts: PromptEmbeddings,
    loss: Loss,
    *,
    scale: float,
    every: int = 5,
    through_unet: bool = False,
    guidance: float,
    rescale: float = 0.0,
    noise: Noise | None = None,
    progress: Progress = iter,
    watch: Callable[[int, Look], None] | None = None,
) -> Tensor:
    """x_t at the timestep schedule's first level -> latents at its last, both (B, 4, h, w).

    Every image is judged by itself: what an image becomes does not depend on its batch.
    What a multistep solver remembers stays as it is; under PNDM a move at the second look of
    its first step is lost, as that one starts again from where the first did.

    Args:
        scale: what the loss is multiplied by.
        every: guide at each such step, the first one included.
        watch: is given the image's index and what was seen, at every step that is guided.

    Raises:
        LossError: the loss is no number, or has no gradient.
    """
    vae = (
        pipe.vae if pipe.vae.post_quant_conv.weight.dtype == torch.float32 else in_float32(pipe.vae)
    )
    history: History = ()
    for i in progress(range(len(timesteps))):
        level = timesteps.levels[i]
        # Without any signal x_t says nothing about the image, and no move would change it.
        guided = i % every == 0 and scale != 0 and level.signal_rate > 0

        with torch.set_grad_enabled(guided and through_unet):
            x_t = x_t.detach().requires_grad_(guided and through_unet)
            prediction = pipe.predict(x_t, level, prompts, guidance, rescale=rescale, step=i)

        eps = prediction.eps.detach()
        if guided:
            with torch.enable_grad():
                if through_unet:
                    x0 = prediction.x0
                else:
                    x_t = x_t.detach().requires_grad_(True)
                    x0 = interpret(eps, x_t, level, "epsilon").x0
                values, gradient = loss_and_gradient(vae, loss, scale, x0, x_t, i)
            move = (1 - level.alpha_bar) * gradient
            x_t = x_t.detach() - move  # the whole idea
            prediction = interpret(eps, x_t, level, "epsilon")
            for image, value in enumerate(values if watch else ()):
                moved = float(move[image].square().mean().sqrt())
                watch(image, Look(i, level.t, value, moved))  # type: ignore[misc]

        fresh = pipe.fresh_noise(noise, x_t)
        x_t, history = pipe.scheduler.step(timesteps, i, x_t, prediction, history, fresh)
    return x_t


def loss_and_gradient(
    vae: AutoencoderKL, loss: Loss, scale: float, x0: Tensor, x_t: Tensor, step: int
) -> tuple[list[float], Tensor]:
    """Each image's loss, and the gradient of all `scale` times the losses in x_t.

    From x0 back to each image first, one at a time, so that one decoder's memory is enough;
    then for all at once from x0 to x_t.
    """
    values, slopes = [], []
    for image in range(len(x0)):
        latents = x0[image : image + 1].detach().clone().requires_grad_(True)
        value = one_number(loss(decoded(vae, latents)), step)
        (slope,) = torch.autograd.grad(scale * value, latents)
        if not slope.isfinite().all():
            raise LossError(
                f"the loss's gradient at step {step} holds NaN or infinities",
                fix="a root or a logarithm of 0 has no slope: add a little to what is in it",
            )
        values.append(float(value.detach()))
        slopes.append(slope)
    (gradient,) = torch.autograd.grad(x0, x_t, torch.cat(slopes))
    return values, gradient


def decoded(vae: AutoencoderKL, x0: Tensor) -> Tensor:
    """Scaled latents (B, 4, h, w) -> what a loss sees: (B, 3, 8h, 8w), about [0, 1]."""
    return vae.decode(x0 / vae.config.scaling_factor) / 2 + 0.5


def one_number(value: object, step: int | None = None) -> Tensor:
    """A loss's answer, if it is a number that a gradient can be taken of.

    Raises:
        LossError: it is not.
    """
    where = "" if step is None else f" at step {step}"
    if not isinstance(value, Tensor):
        raise LossError(f"the loss is a {type(value).__name__}", expected="a tensor of one number")
    if value.numel() != 1:
        raise LossError(
            f"the loss is a tensor of shape {tuple(value.shape)}",
            expected="one number",
            fix="take its .mean()",
        )
    if not value.isfinite().all():
        raise LossError(f"the loss is {float(value.detach())}{where}", expected="a finite number")
    if not value.requires_grad:
        raise LossError(
            "the loss does not depend on the image, or in steps alone",
            expected="one that has a gradient",
        )
    return value.float().reshape(())


def check_loss(loss: Loss, height: int, width: int) -> None:
    """Try a loss on a grey image, before a model works for it.

    Raises:
        LossError: it gives no number, or one without a gradient.
    """
    grey = torch.full((1, 3, height, width), 0.5)
    # Not quite the same everywhere: a standard deviation has no slope at 0.
    grey += torch.linspace(0, 0.01, grey.numel()).view_as(grey)
    with torch.enable_grad():
        one_number(loss(grey.requires_grad_(True)))


# --- from words to images ----------------------------------------------------------------


@dataclass(frozen=True)
class Guided:
    """Images, and how their loss fell."""

    images: list[Image.Image]  # one a seed
    latents: Tensor  # (B, 4, h, w), scaled
    looks: list[list[Look]]  # for each image, at each step that was guided
    losses: list[float]  # of the finished images


def guide(
    pipe: Pipeline,
    prompts: str | Sequence[str],
    loss: Loss,
    seeds: Sequence[int] = (0,),
    *,
    scale: float = 20.0,
    every: int = 5,
    through_unet: bool = False,
    steps: int = 25,
    guidance: float = 7.5,
    rescale: float = 0.0,
    negative: str | Sequence[str] = "",
    height: int | None = None,
    width: int | None = None,
    batch: int = 1,
    progress: Progress = iter,
) -> Guided:
    """Make images as the prompts and a loss say, under `pipe.scheduler`.

    With `scale` 0 these are the images of `pipe.generate`.

    Args:
        loss: see `Loss`; `techniques.losses` has some, and any function of an image will do.
        scale, every, through_unet: see `guide_latents`.  A gradient of a mean over pixels
            is the smaller the larger the image: `scale` grows with its area.
        batch: images that go through the UNet together.

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
    shape = pipe.latent_shape(height, width)
    factor = pipe.vae.config.factor
    check_loss(on_device(loss, pipe.device), factor * shape[1], factor * shape[2])
    timesteps = pipe.timesteps(steps)
    noise = pipe.noise(seeds)
    embeddings = pipe.encode_prompts(one_per_seed(prompts, seeds), negative)

    latents: list[Tensor] = []
    looks: list[list[Look]] = [[] for _ in seeds]
    for first in range(0, len(noise), batch):
        some = slice(first, first + batch)

        def watch(image: int, look: Look, first: int = first) -> None:
            looks[first + image].append(look)

        latents.append(
            guide_latents(
                pipe,
                noise[some].draw(shape) * timesteps.initial_scale,
                timesteps,
                embeddings[some],
                loss,
                scale=scale,
                every=every,
                through_unet=through_unet,
                guidance=guidance,
                rescale=rescale,
                noise=noise[some],
                progress=progress,
                watch=watch,
            )
        )
    x0 = torch.cat(latents)
    images = pipe.decode(x0, sliced=True)
    with torch.no_grad():
        shown = (images / 2 + 0.5).to(pipe.device)
        losses = [float(loss(shown[k : k + 1])) for k in range(len(shown))]
    return Guided(to_pil(images), x0, looks, losses)


def on_device(loss: Loss, device: torch.device) -> Loss:
    return lambda image: loss(image.to(device))


def check_guiding(scale: float, every: int) -> None:
    validation.check_number("scale", scale, -1e9, 1e9)
    whole = isinstance(every, int) and not isinstance(every, bool)
    if not whole or not 1 <= every <= validation.MAX_STEPS:
        raise SettingError(
            f"every is {every!r}", expected=f"a whole number from 1 to {validation.MAX_STEPS}"
        )
