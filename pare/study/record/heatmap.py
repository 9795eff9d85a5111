"""Values as images: a colour scale, a map in colours, in grey, or laid over an image."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pare.study.record.attention_maps import normalised

# From cold to hot, each step brighter than the one before: it survives greyscale printing.
SCALE = np.array(
    [(8, 10, 38), (64, 24, 108), (150, 38, 104), (222, 84, 60), (250, 164, 48), (255, 246, 178)],
    dtype=np.float32,
)


def heat_colours(heat: Tensor) -> NDArray[np.uint8]:
    """(H, W) in [0, 1] -> (H, W, 3), 8-bit RGB; what is outside is clipped."""
    values = heat.detach().float().cpu().clamp(0, 1).numpy()
    places = np.linspace(0, 1, len(SCALE))
    channels = [np.interp(values, places, SCALE[:, k]) for k in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def heat_image(heat: Tensor, size: tuple[int, int] | None = None) -> Image.Image:
    """The map (h, w) in colours, from its lowest to its highest value.

    Args:
        size: (width, height) of the image, its cells as squares; as the map if None.
    """
    image = Image.fromarray(heat_colours(normalised(heat)))
    return image if size is None else image.resize(size, Image.Resampling.NEAREST)


def overlay(image: Image.Image, heat: Tensor, strength: float = 0.75) -> Image.Image:
    """The map (h, w), of any size, over the image: high values in colour, low ones in dim grey.

    Args:
        strength: opacity of the colours at the map's highest value.
    """
    size = (image.height, image.width)
    smooth = F.interpolate(heat[None, None].float().cpu(), size, mode="bicubic")[0, 0]
    warmth = normalised(smooth)
    pixels = np.asarray(image.convert("RGB")).astype(np.float32)
    grey = 0.55 * np.asarray(image.convert("L")).astype(np.float32)[..., None]
    weight = (strength * warmth).numpy()[..., None]
    # Where the map is low the image loses its colours; where it is high it keeps them.
    base = grey + (pixels - grey) * warmth.sqrt().numpy()[..., None]
    mixed = base + (heat_colours(warmth) - base) * weight
    return Image.fromarray(mixed.round().clip(0, 255).astype(np.uint8))


def grey_image(
    values: Tensor,
    size: tuple[int, int] | None = None,
    *,
    bounds: tuple[float, float] | None = None,
) -> Image.Image:
    """Values (h, w) in grey, from black to white.

    Args:
        size: see `heat_image`.
        bounds: what is black and what is white; the lowest and the highest value if None.
    """
    values = values.detach().float().cpu()
    if bounds is not None:
        low, high = bounds
        scaled = ((values - low) / (high - low)).clamp(0, 1)
    else:
        scaled = normalised(values)
    image = Image.fromarray((scaled * 255).round().to(torch.uint8).numpy())
    return image if size is None else image.resize(size, Image.Resampling.NEAREST)
