"""Losses for guidance: differentiable functions of one image (1, 3, H, W) in [0, 1].

Each is a plain function, or returns one.  Write your own like this:

    def warm(image):
        return (image[:, 2] - image[:, 0]).mean()   # less blue, more red
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from PIL import Image, ImageColor
from torch import Tensor

from pare.errors import LossError
from pare.io.images import fit_to_multiple, to_tensor
from pare.pipeline import Pipeline
from pare.runtime.validation import check_number
from pare.schedulers import add_noise
from pare.vae import AutoencoderKL
from pare.vae.half_precision import in_float32
from techniques.loss_guidance.loss_guided_loop import Loss

Features = Callable[[Tensor], Sequence[Tensor]]
"""An image (1, 3, H, W) in [0, 1] -> the activations of some layers, (1, C, h, w) each."""
Statistic = Literal["gram", "moments"]


# --- colour and shape ----------------------------------------------------------------------


def blue(image: Tensor) -> Tensor:
    """The mean absolute difference of the blue channel to 0.9, as in the published notebook."""
    return (image[:, 2] - 0.9).abs().mean()


def symmetry(image: Tensor) -> Tensor:
    """The mean absolute difference of the image to its mirror image."""
    return (image - image.flip(3)).abs().mean()


def brightness(level: float) -> Loss:
    """The difference of the mean luminance to `level`, 0 (black) to 1 (white)."""
    check_number("the brightness", level, 0.0, 1.0)

    def loss(image: Tensor) -> Tensor:
        red, green, blue = image.mean(dim=(0, 2, 3))
        return (0.2126 * red + 0.7152 * green + 0.0722 * blue - level).abs()  # ITU-R BT.709

    return loss


def colour(name: str) -> Loss:
    """The mean absolute difference of all pixels to a colour: `orange`, `#ff8800`, any of CSS.

    Raises:
        LossError: no such colour.
    """
    try:
        rgb = ImageColor.getrgb(name)[:3]
    except ValueError:
        raise LossError(f"{name[:40]!r} is no colour", expected="orange, or #ff8800") from None
    wanted = torch.tensor(rgb).view(1, 3, 1, 1) / 255

    def loss(image: Tensor) -> Tensor:
        return (image - wanted.to(image)).abs().mean()

    return loss


# --- style ---------------------------------------------------------------------------------


def style(
    features: Features, reference: Image.Image, statistic: Statistic = "gram", *, factor: int = 8
) -> Loss:
    """The distance of an image's feature statistics to those of a reference image.

    The statistics do not depend on where features are: Gram matrices, the products of all
    pairs of channels averaged over places (arXiv:1508.06576, eq. 3), or each channel's mean
    and standard deviation (arXiv:1703.06868, section 5).  Each layer's error is relative to
    the reference's own magnitude, so that all have equal weight.

    Args:
        features: `vae_features(pipe)` or `unet_features(pipe)`.
        reference: any size; worked at the next multiple of `factor`.
    """
    if statistic not in get_args(Statistic):
        raise LossError(f"`statistic` is {statistic!r}", expected="gram or moments")
    measure = gram if statistic == "gram" else moments
    worked, _ = fit_to_multiple(reference.convert("RGB"), factor)
    with torch.no_grad():
        wanted = [measure(x) for x in features(to_tensor(worked) / 2 + 0.5)]

    def loss(image: Tensor) -> Tensor:
        errors = [
            F.mse_loss(measure(x), goal) / goal.square().mean()
            for x, goal in zip(features(image), wanted, strict=True)
        ]
        return torch.stack(errors).mean()

    return loss


def gram(x: Tensor) -> Tensor:
    """(1, C, h, w) -> (C, C)"""
    flat = x.float().flatten(2)[0]  # (C, h w)
    return flat @ flat.T / flat.shape[1]


def moments(x: Tensor) -> Tensor:
    """(1, C, h, w) -> (2, C): mean and standard deviation of each channel."""
    flat = x.float().flatten(2)[0]
    return torch.stack([flat.mean(1), (flat.var(1, correction=0) + 1e-8).sqrt()])


def vae_features(pipe: Pipeline) -> Features:
    """The outputs of the down blocks of the VAE's encoder."""
    vae = exact(pipe.vae)

    def features(image: Tensor) -> list[Tensor]:
        x = vae.encoder.conv_in((2 * image - 1).to(pipe.device))
        made = []
        for block in vae.encoder.down_blocks:
            x = block(x)
            made.append(x)
        return made

    return features


def unet_features(pipe: Pipeline, t: float = 100.0, prompt: str = "") -> Features:
    """The outputs of the UNet's down blocks for an image that is noised to timestep `t`.

    The noise is the same at every call, so that the loss is deterministic.
    """
    vae = exact(pipe.vae)
    level = pipe.scheduler.schedule.level(t)
    text = pipe.encode_prompts([prompt]).cond.to(pipe.dtype)

    def features(image: Tensor) -> list[Tensor]:
        latents = vae.encode((2 * image - 1).to(pipe.device)).mode() * vae.config.scaling_factor
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
        x_t = add_noise(latents, noise.to(latents), level.alpha_bar).to(pipe.dtype)
        time = pipe.unet.embed_time(level.t, x_t)
        x = pipe.unet.conv_in(x_t)
        made = []
        for down in pipe.unet.down_blocks:
            x, _ = down(x, time, text, None)
            made.append(x)
        return made

    return features


def exact(vae: AutoencoderKL) -> AutoencoderKL:
    """The VAE in float32, for its gradients."""
    return vae if vae.post_quant_conv.weight.dtype == torch.float32 else in_float32(vae)


# --- classifiers ---------------------------------------------------------------------------


def unlikely(classify: Callable[[Tensor], Tensor], index: int) -> Loss:
    """-log p of a class (arXiv:2105.05233, section 4).

    Args:
        classify: an image (1, 3, H, W) in [0, 1] -> logits (1, classes).
    """

    def loss(image: Tensor) -> Tensor:
        return -classify(image).float().log_softmax(dim=1)[0, index]

    return loss
