"""Pictures side by side, each under its label."""

from __future__ import annotations

from collections.abc import Mapping

from PIL import Image, ImageDraw, ImageFont

GAP, LINE, TEXT = 6, 17, 12  # pixels: between pictures, of a line of text, of its letters


def gallery(pictures: Mapping[str, Image.Image], columns: int = 6) -> Image.Image:
    """The pictures row by row, on white, each with its label above it.

    A label may have several lines; what is wider than its picture is drawn smaller.  Pictures
    of different sizes stand in cells of the largest one's.
    """
    width = max(picture.width for picture in pictures.values())
    height = max(picture.height for picture in pictures.values())
    head = LINE * max(label.count("\n") + 1 for label in pictures)
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    cell = width + GAP, head + height + GAP
    page = Image.new("RGB", (columns * cell[0] + GAP, rows * cell[1] + GAP), "white")
    draw = ImageDraw.Draw(page)
    for k, (label, picture) in enumerate(pictures.items()):
        left, top = GAP + k % columns * cell[0], GAP + k // columns * cell[1]
        size = TEXT
        while size > 7 and draw.multiline_textbbox((0, 0), label, font(size))[2] > width + GAP:
            size -= 1
        draw.multiline_text((left, top), label, "black", font(size), spacing=LINE - TEXT)
        page.paste(picture.convert("RGB"), (left, top + head))
    return page


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
