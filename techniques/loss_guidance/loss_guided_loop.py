"""Guidance by a loss: sampling steered by the gradient of any differentiable function of the image.

At a step the model's prediction gives x0.  Decode it, compute a loss of the image, and move
x_t against the loss's gradient.  The published notebook does so in the space of LMS, where
latents are x_hat = x_t / sqrt(alpha_bar) = x0 + sigma eps:

    x_hat <- x_hat - sigma^2 * gradient of the loss in x_hat

In x_t, where pare's latents are, the gradient is 1 / sqrt(alpha_bar) times that one, and a
step is sqrt(alpha_bar) times as long.  With sigma^2 = (1 - alpha_bar) / alpha_bar so

    x_t <- x_t - sqrt(alpha_bar) * sigma^2 * sqrt(alpha_bar) * gradient in x_t
         = x_t - (1 - alpha_bar) * gradient in x_t

which is classifier guidance with exp(-loss) for the classifier's probability
(arXiv:2105.05233, eq. 14): eps + sqrt(1 - alpha_bar) * gradient in place of eps changes x0 by
as much.

x0 = (x_t - sqrt(1 - alpha_bar) * eps) / sqrt(alpha_bar) depends on x_t directly and through
eps.  *Around the UNet* eps counts as a constant: a gradient costs one backward pass of the
VAE's decoder.  *Through the UNet* the gradient is exact, and costs a backward pass of the UNet
and its memory (arXiv:2302.07121 does this).

`guide_latents` is the loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pare.errors import LossError
from pare.noise import Noise
from pare.pipeline import Pipeline, Progress
from pare.schedulers import History, Timesteps, interpret
from pare.text.text_encoder import PromptEmbeddings
from pare.vae import AutoencoderKL
from pare.vae.half_precision import in_float32

Loss = Callable[[Tensor], Tensor]
"""One image (1, 3, H, W), float32, about [0, 1] -> a tensor of one number, less is better.

Not clamped: a predicted x0 goes beyond 0 and 1."""


@dataclass(frozen=True)
class GuidedStep:
    """The loss of an image at one guided step, and how far x_t was moved."""

    step: int
    t: float
    loss: float
    """Of the predicted x0, before the move, unscaled."""
    moved: float
    """Root mean square over the latents' elements; that of unit noise is 1."""


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
    watch: Callable[[int, GuidedStep], None] | None = None,
) -> Tensor:
    """x_t at the first of the timesteps -> latents at the last, both (B, 4, h, w).

    Each image has its own loss and gradient: it does not depend on its batch.  The history of
    a multistep solver is kept; under PNDM a move at the second evaluation of its first step is
    lost, as that evaluation restarts from the first one's x_t.

    Args:
        scale: the factor of the loss.
        every: guide at each such step, the first one included.
        watch: is given the image's index and its `GuidedStep`, at every step that is guided.

    Raises:
        LossError: the loss is no number, or has no gradient.
    """
    vae = (
        pipe.vae if pipe.vae.post_quant_conv.weight.dtype == torch.float32 else in_float32(pipe.vae)
    )
    history: History = ()
    for i in progress(range(len(timesteps))):
        level = timesteps.levels[i]
        # At zero signal-to-noise ratio x0 does not depend on x_t.
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
            x_t = x_t.detach() - move  # the technique
            prediction = interpret(eps, x_t, level, "epsilon")
            for image, value in enumerate(values if watch else ()):
                moved = float(move[image].square().mean().sqrt())
                watch(image, GuidedStep(i, level.t, value, moved))  # type: ignore[misc]

        fresh = pipe.fresh_noise(noise, x_t)
        x_t, history = pipe.scheduler.step(timesteps, i, x_t, prediction, history, fresh)
    return x_t


def loss_and_gradient(
    vae: AutoencoderKL, loss: Loss, scale: float, x0: Tensor, x_t: Tensor, step: int
) -> tuple[list[float], Tensor]:
    """Each image's loss, and the gradient in x_t of `scale` times the sum of the losses.

    First the gradient in x0, one image at a time, so that the decoder's activations of one are
    kept; then from x0 to x_t, for all at once.
    """
    values, gradients = [], []
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
        gradients.append(slope)
    (gradient,) = torch.autograd.grad(x0, x_t, torch.cat(gradients))
    return values, gradient


def decoded(vae: AutoencoderKL, x0: Tensor) -> Tensor:
    """Scaled latents (B, 4, h, w) -> the images that a loss takes: (B, 3, 8h, 8w), about [0, 1]."""
    return vae.decode(x0 / vae.config.scaling_factor) / 2 + 0.5


def one_number(value: object, step: int | None = None) -> Tensor:
    """A loss's value, if it is one finite number with a gradient.

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
            "the loss does not depend on the image, or is piecewise constant",
            expected="one that has a gradient",
        )
    return value.float().reshape(())


def check_loss(loss: Loss, height: int, width: int) -> None:
    """Try a loss on a grey image, before the model runs.

    Raises:
        LossError: it gives no number, or one without a gradient.
    """
    grey = torch.full((1, 3, height, width), 0.5)
    # Not constant: a standard deviation has no gradient at 0.
    grey += torch.linspace(0, 0.01, grey.numel()).view_as(grey)
    with torch.enable_grad():
        one_number(loss(grey.requires_grad_(True)))
