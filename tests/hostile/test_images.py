"""Images and masks of every kind: read as what they are, or refused in a sentence."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.hostile.command import Command
from tests.hostile.damage import NO_FILES

IMG2IMG = ("x", "--steps", "1", "--strength", "1", "--out", "out")
BLEND = ("x", "--steps", "1", "--strength", "1", "--feather", "0", "--out", "out")


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def gradient(mode: str = "RGB", size: tuple[int, int] = (24, 16)) -> Image.Image:
    return Image.linear_gradient("L").resize(size).convert(mode)


# --- files made by hand --------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *, depth: int = 8, colour: int = 2, data: bytes = b"") -> bytes:
    """A PNG whose header says anything."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def bmp(width: int, height: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header


def gif(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\0\0\0;"


def tiff(*tags: tuple[int, int, int, int]) -> bytes:
    """Little-endian, with these (tag, type, count, value) and nothing behind them."""
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + bytes(4)


JPEG = encoded(gradient(size=(64, 64)), "JPEG")
PNG = encoded(gradient(size=(64, 64)), "PNG")
WEBP = encoded(gradient(size=(64, 64)), "WEBP")
GIF = encoded(gradient("P", (64, 64)), "GIF")

REFUSED: dict[str, bytes] = {
    "empty": b"",
    "one-byte": b"\x89",
    "text": b"a snowy road by night\n" * 9,
    "web-page": b"<!DOCTYPE html><html>",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "pdf": b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\n",
    "zip": b"PK\x05\x06" + bytes(18),
    "elf": b"\x7fELF" + bytes(64),
    "icon": b"\0\0\1\0\1\0\1\1\0\0\1\0\x18\0\x30\0\0\0\x16\0\0\0" + bytes(48),
    "pickle": b"\x80\x04\x95" + bytes(20),
    "psd": b"8BPS\0\1" + bytes(40),
    "heic": b"\0\0\0\x18ftypheic" + bytes(40),
    "zeros": bytes(4096),
    "jpeg-half": JPEG[: len(JPEG) // 2],
    "jpeg-header": JPEG[:20],
    "jpeg-signature": JPEG[:3],
    "jpeg-lies": JPEG.replace(b"\0\x40\0\x40", b"\xff\xff\xff\xff", 1),
    "jpeg-zero-sized": JPEG.replace(b"\0\x40\0\x40", b"\0\0\0\0", 1),
    "png-half": PNG[: len(PNG) // 2],
    "png-header": PNG[:33],
    "png-signature": PNG[:8],
    "png-bad-sum": PNG[:29] + b"\0\0\0\0" + PNG[33:],
    "png-zero-sized": png(0, 0),
    "png-zero-high": png(9, 0),
    "png-60000": png(60_000, 60_000),
    "png-2-to-31": png(2**31 - 1, 2**31 - 1),
    "png-2-to-32": png(2**32 - 1, 1),
    "png-wide": png(50_000_001, 1),
    "png-depth-3": png(4, 4, depth=3),
    "png-colour-9": png(4, 4, colour=9),
    "png-no-pixels": png(64, 64),
    "png-bomb": png(7000, 7000, data=bytes(40)),
    "png-text-bomb": PNG[:33] + chunk(b"zTXt", b"pare\0\0" + zlib.compress(bytes(10**8)))
    + png(1, 1)[33:],
    "png-profile-bomb": PNG[:33]
    + chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(10**8)))
    + PNG[33:],
    "bmp-60000": bmp(60_000, 60_000),
    "bmp-negative": bmp(-4, 4),
    "bmp-no-pixels": bmp(64, 64),
    "gif-60000": gif(60_000, 60_000),
    "gif-no-frame": gif(8, 8),
    "gif-half": GIF[: len(GIF) // 2],
    "webp-half": WEBP[: len(WEBP) // 2],
    "webp-header": WEBP[:16],
    "tiff-empty": tiff(),
    "tiff-60000": tiff((256, 4, 1, 60_000), (257, 4, 1, 60_000), (262, 3, 1, 1), (273, 4, 1, 8)),
    "tiff-no-strips": tiff((256, 3, 1, 9), (257, 3, 1, 9), (258, 3, 1, 8), (262, 3, 1, 1)),
    "tiff-loop": b"II*\0" + struct.pack("<I", 8) + b"\0\0" + struct.pack("<I", 8),
    "tiff-float": encoded(gradient("F"), "TIFF"),
    "tiff-half": encoded(gradient(), "TIFF")[:200],
    "tiff-huge-count": tiff((256, 4, 2**32 - 1, 8), (257, 4, 1, 9)),
    "ppm-60000": b"P6 60000 60000 255\n",
    "ppm-negative": b"P6 -4 4 255\n",
    "ppm-long-number": b"P6 " + b"9" * 5000 + b" 4 255\n",
    "ppm-no-pixels": b"P6 64 64 255\n",
    "ppm-maximum-0": b"P6 4 4 0\n" + bytes(48),
    "pfm": b"Pf 4 4 -1.0\n" + bytes(64),
    "32-bit": encoded(Image.fromarray(np.full((4, 4), 2**20, np.int32)), "TIFF"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_image(loaded: Command, kind: str) -> None:
    Path("image").write_bytes(REFUSED[kind])
    loaded.refuses("img2img", "image", *IMG2IMG, words="image")


@pytest.mark.parametrize("kind", list(REFUSED)[::5])
def test_what_is_no_mask(loaded: Command, kind: str) -> None:
    Path("strange").write_bytes(REFUSED[kind])
    loaded.refuses("blend", "good.png", "--mask", "strange", *BLEND, words="strange")


@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_file(loaded: Command, kind: str) -> None:
    NO_FILES[kind](Path("image"))
    loaded.refuses("img2img", "image", *IMG2IMG)
    loaded.refuses("blend", "good.png", "--mask", "image", *BLEND)


@pytest.mark.parametrize("name", ["", ".", "x" * 300, "\udcff.png", "no/such.png", "~", "-"])
def test_names_that_are_no_image(loaded: Command, name: str) -> None:
    loaded.refuses("img2img", name, *IMG2IMG)


def animation(kind: str) -> bytes:
    frames = [gradient("P"), gradient("P").rotate(180)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=9)


def with_exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(gradient(), "JPEG", exif=exif)


READ: dict[str, tuple[Callable[[], bytes], str]] = {
    "cmyk": (lambda: encoded(gradient("CMYK"), "JPEG"), ""),
    "grey": (lambda: encoded(gradient("L"), "JPEG"), ""),
    "one-bit": (lambda: encoded(gradient("1"), "PNG"), ""),
    "palette": (lambda: encoded(gradient("P"), "PNG"), ""),
    "palette-transparent": (lambda: encoded(gradient("P"), "PNG", transparency=3), ""),
    "alpha": (lambda: encoded(gradient("RGBA"), "PNG"), ""),
    "grey-alpha": (lambda: encoded(gradient("LA"), "PNG"), ""),
    "lab": (lambda: encoded(gradient().convert("LAB"), "TIFF"), ""),
    "16-bit": (lambda: encoded(gradient("I;16"), "PNG"), ""),
    "one-pixel": (lambda: encoded(gradient(size=(1, 1)), "PNG"), ""),
    "one-column": (lambda: encoded(gradient(size=(1, 40)), "PNG"), ""),
    "gif-moving": (lambda: animation("GIF"), "2 frames"),
    "webp-moving": (lambda: animation("WEBP"), "2 frames"),
    "png-moving": (lambda: animation("PNG"), "2 frames"),
    "profile-garbage": (lambda: encoded(gradient(), "PNG", icc_profile=b"garbage" * 9), ""),
    "exif-garbage": (lambda: encoded(gradient(), "JPEG", exif=b"Exif\0\0II*\0" + b"\xff" * 4), ""),
    "exif-9": (lambda: with_exif(9), ""),
    "comment": (lambda: encoded(gradient(), "JPEG", comment=b"\x1b[2J" * 99), ""),
    "tail": (lambda: PNG + b"PK\x03\x04 a zip behind it", ""),
    "jpeg-and-html": (lambda: encoded(gradient(), "JPEG", comment=b"<script>x()</script>"), ""),
} | {f"exif-{k}": (lambda k=k: with_exif(k), "") for k in range(1, 9)}  # fmt: skip


@pytest.mark.parametrize("kind", READ)
def test_images_of_every_kind(loaded: Command, kind: str) -> None:
    make, words = READ[kind]
    Path("image").write_bytes(make())
    loaded.works("img2img", "image", *IMG2IMG, words=words)
    size = Image.open("image").size
    turned = kind in {f"exif-{k}" for k in (5, 6, 7, 8)}
    assert Image.open("out/img2img-0.png").size == (size[::-1] if turned else size)


def square(mode: str, size: tuple[int, int] = (16, 16)) -> Image.Image:
    mask = Image.new("L", size)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    return mask.convert(mode)


MASKS: dict[str, tuple[Callable[[], Image.Image], str]] = {
    "palette": (lambda: square("P"), ""),
    "one-bit": (lambda: square("1"), ""),
    "rgba": (lambda: square("RGBA"), ""),
    "cmyk": (lambda: square("RGB").convert("CMYK"), ""),
    "16-bit": (lambda: Image.fromarray(np.asarray(square("L")).astype(np.uint16) * 257), ""),
    "twice": (lambda: square("L", (32, 32)), "32 x 32"),
    "half": (lambda: square("L", (8, 8)), "8 x 8"),
    "full": (lambda: Image.new("L", (16, 16), 255), "nothing is kept"),
    "one-white-pixel": (lambda: Image.new("L", (1, 1), 255), "nothing is kept"),
}


@pytest.mark.parametrize("kind", MASKS)
def test_masks_of_every_kind(loaded: Command, kind: str) -> None:
    make, words = MASKS[kind]
    image = make()
    image.save("a-mask.tiff" if image.mode in ("CMYK", "I;16") else "a-mask.png")
    name = "a-mask.tiff" if Path("a-mask.tiff").exists() else "a-mask.png"
    loaded.works("blend", "good.png", "--mask", name, *BLEND, words=words)


EMPTY_MASKS: dict[str, tuple[Callable[[], Image.Image], str]] = {
    "black": (lambda: Image.new("L", (16, 16)), "marks nothing"),
    "dark": (lambda: Image.new("L", (16, 16), 127), "marks nothing"),
    "transparent": (lambda: Image.new("RGBA", (16, 16), (0, 0, 0, 0)), "marks nothing"),
    "one-black-pixel": (lambda: Image.new("1", (1, 1)), "marks nothing"),
    "tall": (lambda: square("L", (16, 32)), "16 x 32"),
    "one-row": (lambda: square("L", (16, 1)), "16 x 1"),
    "vanishes": (lambda: dotted(), "marks nothing"),
}


def dotted() -> Image.Image:
    """A single white pixel in a corner of a large mask."""
    mask = Image.new("L", (1600, 1600))
    mask.putpixel((0, 0), 255)
    return mask


@pytest.mark.parametrize("kind", EMPTY_MASKS)
def test_masks_that_mark_nothing(loaded: Command, kind: str) -> None:
    make, words = EMPTY_MASKS[kind]
    make().save("a-mask.png")
    loaded.refuses("blend", "good.png", "--mask", "a-mask.png", *BLEND, words=words)
