"""Where and how strongly each concept was subtracted, as an image and as numbers.

`term_sheet` draws `Erased.term_norms`: a row for each concept, a column for each step, all on
one colour scale; `save_term_norms` writes the numbers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pare.io.whole_files import write_whole
from pare.study.record.heatmap import heat_colours
from techniques.erasure.erasure_loop import Concept

MOST_COLUMNS = 12  # steps that are drawn; more of them are thinned out
CELL = 128  # pixels along the longer side of an image on the page
GAP, LINE = 4, 16
INK, PAPER = (30, 30, 34), (255, 255, 255)


def term_sheet(
    image: Image.Image, term_norms: Tensor, concepts: Sequence[Concept], first: int = 0
) -> Image.Image:
    """The maps of one image, over it.

    Args:
        image: the result; drawn dim and grey under the maps.
        term_norms: (steps, concepts, h, w), as in `Erased`.
        first: the index of the first step, where the run began midway.
    """
    scale = CELL / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    small = image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    steps = drawn_steps(len(term_norms))
    most = float(term_norms.max())
    columns, rows = 1 + len(steps), len(concepts)
    page = Image.new(
        "RGB",
        (GAP + columns * (width + GAP), LINE + rows * (LINE + height + GAP)),
        PAPER,
    )
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(11)
    unit = f"brightest: {most:.2g}" if most else "nothing was subtracted"
    draw.text((GAP, 2), unit, INK, font)
    for column, i in enumerate(steps, 1):
        draw.text((GAP + column * (width + GAP), 2), f"step {first + i}", INK, font)
    for k, concept in enumerate(concepts):
        top = LINE + k * (LINE + height + GAP)
        draw.text((GAP, top + 2), f"{concept.prompt}, {concept.weight:g}", INK, font)
        page.paste(small, (GAP, top + LINE))
        for column, i in enumerate(steps, 1):
            values = term_norms[i, k] / most if most else term_norms[i, k]
            page.paste(laid_over(small, values), (GAP + column * (width + GAP), top + LINE))
    return page


def drawn_steps(count: int) -> list[int]:
    """Which of so many steps have a column: the first, the last, and evenly between."""
    if count <= MOST_COLUMNS:
        return list(range(count))
    return [round(k * (count - 1) / (MOST_COLUMNS - 1)) for k in range(MOST_COLUMNS)]


def laid_over(image: Image.Image, values: Tensor) -> Image.Image:
    """The map (h, w) in [0, 1] over an image; where it is 0 the image is dim and grey.

    Resized by nearest neighbour: a gate acts on each latent pixel by itself.
    """
    size = (image.height, image.width)
    cells = F.interpolate(values[None, None].float(), size, mode="nearest")[0, 0]
    grey = 0.45 * np.asarray(image.convert("L")).astype(np.float32)[..., None]
    weight = cells.sqrt().clamp(0, 0.9).numpy()[..., None]
    mixed = grey + (heat_colours(cells) - grey) * weight
    return Image.fromarray(np.broadcast_to(mixed, (*size, 3)).round().astype(np.uint8))


def save_term_norms(
    path: Path,
    term_norms: Tensor,
    concepts: Sequence[Concept],
    *,
    first: int = 0,
    force: bool = False,
) -> None:
    """Write `term_norms` (steps, concepts, h, w) as safetensors; its metadata names the axes.

    Raises:
        OutputError, OSError: see `pare.io.whole_files.write_whole`.
    """
    from safetensors.torch import save

    about = {
        "axes": ["step", "concept", "row", "column"],
        "first_step": first,
        "concepts": [concept.prompt for concept in concepts],
        "weights": [concept.weight for concept in concepts],
    }
    whole = save(
        {"term_norms": term_norms.contiguous().to(torch.float32)}, {"pare": json.dumps(about)}
    )

    def write(file: BinaryIO) -> None:
        file.write(whole)

    write_whole(path, write, force=force)
