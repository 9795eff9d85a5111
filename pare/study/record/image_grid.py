"""Images side by side, each under its label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

GAP, LINE, TEXT = 6, 17, 12  # pixels: between images, of a line of text, of its letters


def gallery(images: Mapping[str, Image.Image], columns: int = 6) -> Image.Image:
    """The images row by row, on white, each with its label above it.

    A label may have several lines; one that is wider than its image is drawn smaller.  The largest
    image sets the size of the cells.
    """
    width = max(image.width for image in images.values())
    height = max(image.height for image in images.values())
    head = LINE * max(label.count("\n") + 1 for label in images)
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    cell = width + GAP, head + height + GAP
    page = Image.new("RGB", (columns * cell[0] + GAP, rows * cell[1] + GAP), "white")
    draw = ImageDraw.Draw(page)
    for k, (label, image) in enumerate(images.items()):
        left, top = GAP + k % columns * cell[0], GAP + k // columns * cell[1]
        size = TEXT
        while size > 7 and draw.multiline_textbbox((0, 0), label, font(size))[2] > width + GAP:
            size -= 1
        draw.multiline_text((left, top), label, "black", font(size), spacing=LINE - TEXT)
        page.paste(image.convert("RGB"), (left, top + head))
    return page


def stacked(pages: Sequence[Image.Image]) -> Image.Image:
    """Pages one below the other, on white."""
    whole = Image.new("RGB", (max(p.width for p in pages), sum(p.height for p in pages)), "white")
    top = 0
    for page in pages:
        whole.paste(page, (0, top))
        top += page.height
    return whole


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
