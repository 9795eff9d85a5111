"""What is edited, and where: the image and its mask, at the user's size and at the model's."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pare.errors import ImageError
from pare.io.images import (
    MASK_THRESHOLD,
    ImageWarning,
    Restore,
    check_mask,
    fit,
    fit_to_multiple,
    mask_channel,
    mask_to_latents,
    match_mask,
    to_tensor,
)
from pare.runtime import validation

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image


@dataclass(frozen=True)
class Canvas:
    """An image and a mask that fit each other, and what of them the model works on."""

    original: Image.Image
    """RGB, at the user's size."""
    mask: Image.Image
    """One channel, at the same size; from 128 on: edit."""
    image: Tensor
    """At the size that is worked at: (1, 3, H, W) in [-1, 1]."""
    edit: Tensor
    """The mask there: (1, 1, H, W), 1 = edit and 0 = keep."""
    grid: Tensor
    """The mask on the latent grid: (1, 1, h, w), 1 = edit and 0 = keep."""
    restore: Restore
    """From an image of the size that is worked at to one of the user's."""

    @classmethod
    def prepare(
        cls,
        image: Image.Image,
        mask: Image.Image,
        *,
        factor: int,
        size: tuple[int, int] | None = None,
        cover: bool = False,
    ) -> Self:
        """Check the mask, and bring both to a size that the model can work at.

        Args:
            factor: pixels a latent, each way.
            size: (width, height) to work at; None: the image's own, to the next multiple.
            cover: see `mask_on_grid`.

        Raises:
            SettingError: a size that is no multiple of `factor`.
            ImageError: a mask that marks nothing, or of another shape than the image.
        """
        if size is not None:
            validation.check_size(*size, factor)
        original = image.convert("RGB")
        mask = fitting_mask(mask, original.size)
        if size is None or size == original.size:
            worked, restore = fit_to_multiple(original, factor)
            worked_mask, _ = fit_to_multiple(mask, factor)
        else:
            worked, restore = fit(original, size)
            worked_mask = resampled_mask(mask, size, cover)
        edit = torch.from_numpy(is_edit(worked_mask).astype(np.float32))[None, None]
        grid = mask_on_grid(worked_mask, factor, cover)
        return cls(original, mask, to_tensor(worked), edit, grid, restore)

    @property
    def keep(self) -> NDArray[np.bool_]:
        """(H, W) at the user's size, true where nothing is to change."""
        return ~is_edit(self.mask)


def is_edit(mask: Image.Image) -> NDArray[np.bool_]:
    """(H, W), true where the mask says edit."""
    edit: NDArray[np.bool_] = np.asarray(mask) >= MASK_THRESHOLD
    return edit


def fitting_mask(mask: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The mask as one channel at the image's size.  Says when it is full or was resized.

    Raises:
        ImageError: it marks nothing, or has another shape than the image.
    """
    if mask.mode != "L":
        mask = mask_channel(mask)
    if mask.size == size:
        return check_mask(mask)
    fitting = match_mask(mask, size)
    warnings.warn(
        f"the mask is {mask.width} x {mask.height}: scaled to the image's "
        f"{size[0]} x {size[1]} by the nearest pixel",
        ImageWarning,
        stacklevel=4,
    )
    return fitting


def resampled_mask(mask: Image.Image, size: tuple[int, int], cover: bool) -> Image.Image:
    """The mask at (width, height): a pixel is edited if half of what it stands for was marked;
    with `cover`, if any of it was."""
    from PIL import Image

    edit = torch.from_numpy(is_edit(mask).astype(np.float32))[None, None]
    pool = F.adaptive_max_pool2d if cover else F.adaptive_avg_pool2d
    marked = pool(edit, (size[1], size[0]))[0, 0] >= 0.5
    return Image.fromarray(marked.numpy().astype(np.uint8) * 255)


def mask_on_grid(mask: Image.Image, factor: int, cover: bool) -> Tensor:
    """The mask on the latent grid, (1, 1, h, w), float32, 1 = edit and 0 = keep.

    A latent pixel is edited if the mask marks the pixel in its middle; with `cover`, if the
    mask marks any of its factor x factor pixels.  Says if much of the mask is lost.

    Raises:
        ImageError: all of it is lost.
    """
    height, width = mask.height // factor, mask.width // factor
    pixels = is_edit(mask)
    if cover:
        touched = pixels.reshape(height, factor, width, factor).any(axis=(1, 3))
        return torch.from_numpy(touched.astype(np.float32))[None, None]
    on_grid = mask_to_latents(mask, height, width)
    reached = on_grid[0, 0].numpy().repeat(factor, axis=0).repeat(factor, axis=1) > 0
    tell_what_is_lost(pixels, reached, factor)
    return on_grid


def tell_what_is_lost(pixels: NDArray[np.bool_], reached: NDArray[np.bool_], factor: int) -> None:
    """Warn about strokes of the mask that the latent grid is too coarse for; raise if all are."""
    from scipy.ndimage import label, mean

    too_fine = f"the mask is too fine for the model's grid of {factor} x {factor} pixels"
    remedy = "widen it, or let it cover every grid cell that it touches (--cover)"
    if not (pixels & reached).any():
        raise ImageError(f"{too_fine}, and nothing of it is left there", fix=remedy)
    parts, count = label(pixels, structure=np.ones((3, 3)))
    shares = np.asarray(mean(reached, parts, np.arange(1, count + 1)))
    lost = int((shares < 0.5).sum())
    if lost:
        warnings.warn(
            f"{too_fine}: of {lost} of its {count} parts less than half is edited; {remedy}",
            ImageWarning,
            stacklevel=5,
        )
