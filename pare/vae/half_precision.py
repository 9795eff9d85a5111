"""The VAE in float16: what overflows is computed once more in float32.

The activations of SD 1's VAE come close to float16's end (65504) and beyond it in some
images, which then are black: NaN.  bfloat16 reaches as far as float32 but has 8 bits
for a number, as many as an image has, and rounds them through dozens of layers.  So
that one image is worked in float32; the VAE keeps its weights as they are.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from pare.runtime.numerics import PrecisionWarning, diagnose, is_finite, non_finite_error
from pare.vae.autoencoder import AutoencoderKL

Work = Callable[[AutoencoderKL, Tensor], Tensor]


def run_vae(vae: AutoencoderKL, x: Tensor, work: Work, *, what: str, given: str) -> Tensor:
    """`work(vae, x)` in the VAE's type, or in float32 if float16 is not enough for it.

    Args:
        x: float32, on the VAE's device.
        what: the answer in words, as "the VAE's decoding".
        given: `x` in words, as "the latents".

    Raises:
        NonFiniteError: the answer holds NaN or infinities that float32 would not mend.
    """
    weight = next(vae.parameters())
    cast = x.to(weight.dtype)
    answer = work(vae, cast)
    if is_finite(answer):
        return answer

    diagnosis = diagnose(vae, {given: x})
    if diagnosis.overflowed and weight.dtype == torch.float16:
        exact = work(in_float32(vae), x.float())
        if is_finite(exact):
            warnings.warn(
                f"{what} overflowed in float16 and was done again in float32; a VAE that was "
                "mended for float16, or --dtype float32, saves the second time",
                PrecisionWarning,
                stacklevel=3,
            )
            return exact
    raise non_finite_error(what, answer, vae, diagnosis, lambda: work(vae, cast))


def in_float32(vae: AutoencoderKL) -> AutoencoderKL:
    """The same VAE with its weights in float32.

    Another module, not the given one changed and changed back: another thread may use it.
    """
    with torch.device("meta"):
        copy = AutoencoderKL(vae.config)
    weights = {name: weight.float() for name, weight in vae.state_dict().items()}
    copy.load_state_dict(weights, strict=True, assign=True)
    return copy.eval().requires_grad_(False)
