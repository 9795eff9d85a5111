"""The VAE in float16: an image whose activations overflow is computed again in float32.

The activations of SD 1's VAE come close to float16's largest number (65504), and for some
images they exceed it; the result is NaN, a black image.  bfloat16 has float32's range but
8 bits of precision, which are rounded through dozens of layers.  So only the image in
question is computed in float32; the VAE keeps its dtype.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from pare.runtime.forked import check_forked
from pare.runtime.numerics import PrecisionWarning, diagnose, is_finite, non_finite_error
from pare.vae.autoencoder import AutoencoderKL

Work = Callable[[AutoencoderKL, Tensor], Tensor]


def run_vae(vae: AutoencoderKL, x: Tensor, work: Work, *, what: str, given: str) -> Tensor:
    """`work(vae, x)` in the VAE's dtype, or in float32 if float16 overflows.

    Args:
        x: float32, on the VAE's device.
        what: the output in words, as "the VAE's decoding".
        given: `x` in words, as "the latents".

    Raises:
        NonFiniteError: the output holds NaN or infinities in float32 as well.
    """
    check_forked()
    weight = next(vae.parameters())
    cast = x.to(weight.dtype)
    output = work(vae, cast)
    if is_finite(output):
        return output

    diagnosis = diagnose(vae, {given: x})
    if diagnosis.overflowed and weight.dtype == torch.float16:
        exact = work(in_float32(vae), x.float())
        if is_finite(exact):
            warnings.warn(
                f"{what} overflowed in float16 and was computed again in float32; a VAE that was "
                "fixed for float16, or `dtype=float32`, avoids the second computation",
                PrecisionWarning,
                stacklevel=3,
            )
            return exact
    raise non_finite_error(what, output, vae, diagnosis, lambda: work(vae, cast))


def in_float32(vae: AutoencoderKL) -> AutoencoderKL:
    """The same VAE with its weights in float32.

    Another module, not the given one changed and changed back: another thread may use it.
    """
    with torch.device("meta"):
        copy = AutoencoderKL(vae.config)
    weights = {name: weight.float() for name, weight in vae.state_dict().items()}
    copy.load_state_dict(weights, strict=True, assign=True)
    return copy.eval().requires_grad_(False)
