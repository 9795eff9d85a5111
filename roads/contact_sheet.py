"""Contact sheets: many small pictures on one page, to look at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image


def contact_sheet(
    pictures: Sequence[npt.NDArray[np.uint8]], columns: int, zoom: int = 1, gap: int = 4
) -> Image.Image:
    """`pictures` (H, W, 3), all of one size, row by row."""
    height, width = pictures[0].shape[:2]
    rows = -(-len(pictures) // columns)
    page = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 255, np.uint8)
    for k, picture in enumerate(pictures):
        top = gap + (k // columns) * (height + gap)
        left = gap + (k % columns) * (width + gap)
        page[top : top + height, left : left + width] = picture
    image = Image.fromarray(page)
    return image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)
