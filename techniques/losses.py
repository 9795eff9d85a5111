"""Losses for `techniques.loss_guidance`: functions of one image (1, 3, H, W) in [0, 1].

Each is a plain function, or makes one.  Yours can stand beside them:

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
from techniques.loss_guidance import Loss

Features = Callable[[Tensor], Sequence[Tensor]]
"""An image (1, 3, H, W) in [0, 1] -> what some layers make of it, (1, C, h, w) each."""
Statistic = Literal["gram", "moments"]


# --- colour and shape ----------------------------------------------------------------------


def blue(image: Tensor) -> Tensor:
    """How far the blue of each pixel is from 0.9, as in the published notebook."""
    return (image[:, 2] - 0.9).abs().mean()


def symmetry(image: Tensor) -> Tensor:
    """How far the image is from its mirror image."""
    return (image - image.flip(3)).abs().mean()


def brightness(level: float) -> Loss:
    """How far the image's mean luminance is from `level`, 0 (black) to 1 (white)."""
    check_number("brightness", level, 0.0, 1.0)

    def loss(image: Tensor) -> Tensor:
        red, green, blue = image.mean(dim=(0, 2, 3))
        return (0.2126 * red + 0.7152 * green + 0.0722 * blue - level).abs()  # ITU-R BT.709

    return loss


def colour(name: str) -> Loss:
    """How far each pixel is from a colour: `orange`, `#ff8800`, or as else CSS writes one.

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
    """How far the statistics of an image's features are from a reference image's.

    Statistics forget where things are and keep how often they are, and with what: Gram
    matrices, the products of all pairs of channels averaged over places (arXiv:1508.06576,
    eq. 3), or each channel's mean and standard deviation (arXiv:1703.06868, section 5).
    Layers count alike: each error is relative to the reference's own size.

    Args:
        features: `vae_features(pipe)` or `unet_features(pipe)`.
        reference: any size; worked at the next multiple of `factor`.
    """
    if statistic not in get_args(Statistic):
        raise LossError(f"the statistic is {statistic!r}", expected="gram or moments")
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
    """What the levels of the VAE's encoder make of an image."""
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
    """What the levels on the UNet's way down make of an image, noised a little to timestep `t`.

    The noise is the same at every look, or the loss would shake.
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
    """The VAE in float32, in which its gradients are."""
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
