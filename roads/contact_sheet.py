"""Contact sheets: many small images on one page."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image


def contact_sheet(
    images: Sequence[npt.NDArray[np.uint8]], columns: int, zoom: int = 1, gap: int = 4
) -> Image.Image:
    """`images` (H, W, 3), all of one size, row by row."""
    height, width = images[0].shape[:2]
    rows = -(-len(images) // columns)
    page = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 255, np.uint8)
    for k, cell in enumerate(images):
        top = gap + (k // columns) * (height + gap)
        left = gap + (k % columns) * (width + gap)
        page[top : top + height, left : left + width] = cell
    sheet = Image.fromarray(page)
    return sheet.resize((sheet.width * zoom, sheet.height * zoom), Image.Resampling.NEAREST)
