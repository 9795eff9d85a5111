"""The image and mask of an edit, at the user's size and at the model's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pare.errors import ImageError
from pare.io.images import (
    MASK_THRESHOLD,
    ImageLike,
    ImageWarning,
    Restore,
    as_image,
    check_mask,
    fit,
    fit_to_multiple,
    mask_channel,
    match_mask,
    to_tensor,
)
from pare.runtime import validation
from pare.runtime.calls import warn_caller
from pare.runtime.short_repr import short_repr

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image


@dataclass(frozen=True)
class Canvas:
    """An image and a mask of the same size, and both as the model works on them."""

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
    """Brings an image of the size that is worked at to the user's."""

    __repr__ = short_repr

    @classmethod
    def prepare(
        cls,
        image: ImageLike,
        mask: ImageLike,
        *,
        factor: int,
        size: tuple[int, int] | None = None,
        cover: bool = False,
    ) -> Self:
        """Check the mask, and bring both to a size that the model can work at.

        Args:
            factor: pixels per latent pixel, each way.
            size: (width, height) to work at; None: the image's own, to the next multiple.
            cover: see `mask_on_grid`.

        Raises:
            SettingError: a size that is no multiple of `factor`.
            ImageError: a mask that marks nothing, or of another shape than the image.
        """
        if size is not None:
            validation.check_size(*size, factor)
        original = as_image(image)
        mask = prepare_mask(mask, original.size)
        edit = as_tensor(mask)
        if size is None or size == original.size:
            worked, restore = fit_to_multiple(original, factor)
            right, below = (side - own for side, own in zip(worked.size, mask.size, strict=True))
            edit = F.pad(edit, (0, right, 0, below), mode="replicate")
        else:
            worked, restore = fit(original, size)
            edit = resampled(edit, size, cover)
        grid = mask_on_grid(edit, factor, cover)
        return cls(original, mask, to_tensor(worked), edit, grid, restore)

    @property
    def keep(self) -> NDArray[np.bool_]:
        """(H, W) at the user's size, true where nothing is to change."""
        return ~is_edit(self.mask)


def is_edit(mask: Image.Image) -> NDArray[np.bool_]:
    """(H, W), true where the mask says edit."""
    edit: NDArray[np.bool_] = np.asarray(mask) >= MASK_THRESHOLD
    return edit


def as_tensor(mask: Image.Image) -> Tensor:
    """A one-channel mask as (1, 1, H, W), float32, 1 = edit and 0 = keep."""
    return torch.from_numpy(is_edit(mask).astype(np.float32))[None, None]


def prepare_mask(mask: ImageLike, size: tuple[int, int]) -> Image.Image:
    """The mask as one channel at the image's (width, height): white = edit, black = keep.

    Needs no model: call it early to have a wrong mask refused before a slow load.  What it
    returns it takes again unchanged.

    Warns:
        ImageWarning: the mask is white everywhere, or was scaled to the image's size.

    Raises:
        ImageError: it marks nothing, or has another shape than the image.
    """
    from PIL import Image

    image = mask if isinstance(mask, Image.Image) else as_image(mask)
    channel = image if image.mode == "L" else mask_channel(image)
    if channel.size == size:
        return check_mask(channel)
    matched = match_mask(channel, size)
    warn_caller(
        f"the mask is {channel.width} x {channel.height}: scaled to the image's "
        f"{size[0]} x {size[1]} by the nearest pixel",
        ImageWarning,
    )
    return matched


def resampled(edit: Tensor, size: tuple[int, int], cover: bool) -> Tensor:
    """The mask (1, 1, H, W) at (width, height): a pixel is edited if half of the area that it
    stands for is marked; with `cover`, if any of it is."""
    pool = F.adaptive_max_pool2d if cover else F.adaptive_avg_pool2d
    return (pool(edit, (size[1], size[0])) >= 0.5).float()


def mask_on_grid(edit: Tensor, factor: int, cover: bool) -> Tensor:
    """The mask (1, 1, H, W) on the latent grid: (1, 1, h, w), 1 = edit and 0 = keep.

    A latent pixel is edited if the mask marks its centre; with `cover`, if the mask marks any
    of its factor x factor pixels.  Nothing in between: a soft edge would mix latents that
    belong to different images.

    Warns:
        ImageWarning: more than half of a connected part of the mask is lost.

    Raises:
        ImageError: all of the mask is lost.
    """
    if cover:
        return F.max_pool2d(edit, factor)
    centre = factor // 2
    grid = edit[:, :, centre::factor, centre::factor].contiguous()
    covered = grid.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
    check_what_is_lost(edit[0, 0].numpy() > 0, covered[0, 0].numpy() > 0, factor)
    return grid


def check_what_is_lost(marked: NDArray[np.bool_], covered: NDArray[np.bool_], factor: int) -> None:
    """Warn about parts of the mask that the latent grid is too coarse for; raise if all are."""
    from scipy.ndimage import label, mean

    too_fine = f"the mask is too fine for the model's grid of {factor} x {factor} pixels"
    remedy = "widen it, or edit every grid cell that it touches (`cover=True`)"
    if not (marked & covered).any():
        raise ImageError(f"{too_fine}, and nothing of it is left there", fix=remedy)
    parts, count = label(marked, structure=np.ones((3, 3)))
    fractions = np.asarray(mean(covered, parts, np.arange(1, count + 1)))
    lost = int((fractions < 0.5).sum())
    if lost:
        warn_caller(
            f"{too_fine}: of {lost} of its {count} parts less than half is edited; {remedy}",
            ImageWarning,
        )
