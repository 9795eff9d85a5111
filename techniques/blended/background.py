"""The background of an edited image, and how far it is from the original.

Keeping latents does not keep pixels: the VAE's round trip changes every pixel a little, and
the receptive field of its decoder reaches across the mask's edge.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from pare.io.images import feathered, to_pil, to_tensor
from pare.pipeline import Pipeline, Progress
from techniques.blended.edit_canvas import Canvas, is_edit
from techniques.blended.poisson import poisson_blend
from techniques.blended.tuned_decoder import decode_tuned

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

Background = Literal["paste", "poisson", "decoder", "latent"]


def decode_on_canvas(
    pipe: Pipeline,
    canvas: Canvas,
    latents: Tensor,
    background: Background,
    *,
    feather: float,
    decoder_steps: int,
    tile: int | None = None,
    progress: Progress = iter,
) -> list[Image.Image]:
    """Edited latents (B, 4, h, w) -> images of the user's size, with the chosen background."""
    if background == "decoder":
        decoded = torch.cat(
            [
                decode_tuned(
                    pipe, one, canvas.image, canvas.edit, steps=decoder_steps, progress=progress
                )
                for one in latents.chunk(len(latents))
            ]
        )
    else:
        decoded = pipe.decode(latents, sliced=True, tile=tile)
    return [
        put_back(canvas, canvas.restore(edited), background, feather) for edited in to_pil(decoded)
    ]


def put_back(
    canvas: Canvas, edited: Image.Image, background: Background, feather: float
) -> Image.Image:
    """The edited image, for "paste" and "poisson" with the original's pixels outside the mask."""
    if background in ("latent", "decoder"):
        return edited
    old, new = (to_tensor(image)[0].permute(1, 2, 0).numpy() for image in (canvas.original, edited))
    if background == "poisson":
        mixed = poisson_blend(old, new, is_edit(canvas.mask))
    else:
        weight = feathered(canvas.mask, feather)[..., None]
        mixed = old + weight * (new - old)  # 0 outside: old + 0 is old, exactly
    return to_pil(torch.from_numpy(mixed).permute(2, 0, 1)[None])[0]


@dataclass(frozen=True)
class Difference:
    """How far two 8-bit images differ where nothing was to change."""

    psnr: float  # dB over all pixels and channels; inf if they are equal
    largest: int  # of any channel of any pixel, 0 to 255

    def report(self) -> dict[str, float | None]:
        """Fit for JSON, which has no infinity: the psnr of equal images is None."""
        return {"psnr": None if math.isinf(self.psnr) else self.psnr, "largest": self.largest}


def difference(one: Image.Image, other: Image.Image, where: NDArray[np.bool_]) -> Difference:
    """How far two RGB images differ over the pixels `where` (H, W)."""
    apart = np.asarray(one)[where].astype(np.int64) - np.asarray(other)[where]
    mean_square = float(np.square(apart).mean())
    psnr = 10 * math.log10(255**2 / mean_square) if mean_square else math.inf
    return Difference(psnr, int(np.abs(apart).max()))
