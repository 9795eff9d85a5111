"""Images as people have them: every mode, orientation and size, and broken ones."""

from __future__ import annotations

import io
import os
import random
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from pare.errors import ImageError
from pare.io.images import (
    ImageWarning,
    feathered,
    fit,
    fit_to_multiple,
    load_image,
    load_mask,
    mask_to_latents,
    match_mask,
    to_pil,
    to_tensor,
)

SIDES = st.integers(1, 70)


def noise_image(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    shape = (height, width) if channels == 1 else (height, width, channels)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return Image.fromarray(pixels, mode)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"")), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


# --- modes -----------------------------------------------------------------------------


def test_rgb_comes_back_as_it_is(tmp_path: Path, gradient: Image.Image) -> None:
    gradient.save(tmp_path / "a.png")
    loaded = load_image(tmp_path / "a.png")
    assert loaded.mode == "RGB"
    assert np.array_equal(pixels(loaded), pixels(gradient))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_obeyed(
    tmp_path: Path, gradient: Image.Image, orientation: int
) -> None:
    """A camera turns the sensor's image and writes down how; we see what was seen."""
    undo = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE",
            6: "ROTATE_90", 7: "TRANSVERSE", 8: "ROTATE_270"}  # fmt: skip
    stored = gradient
    if orientation > 1:
        stored = gradient.transpose(Image.Transpose[undo[orientation]])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(pixels(load_image(tmp_path / "a.png")), pixels(gradient))


def test_orientation_of_16_bit_grey(tmp_path: Path) -> None:
    upright = np.arange(6, dtype=np.uint16).reshape(2, 3) * 257 * 40
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(np.rot90(upright).copy())
    stored.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(pixels(load_image(tmp_path / "a.png"))[..., 0], upright // 257)


def test_16_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    levels = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    for name in ("a.png", "a.tif"):
        Image.fromarray(levels).save(tmp_path / name)
        loaded = pixels(load_image(tmp_path / name))
        assert np.array_equal(loaded, [[[0] * 3, [1] * 3, [128] * 3, [255] * 3]])


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_beyond_16_bits_are_refused(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (4, 4), 100_000).save(tmp_path / "a.tif")
    with pytest.raises(ImageError, match="8 or 16 bits"):
        load_image(tmp_path / "a.tif")


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (3, 1))
    image.putdata([(200, 0, 0, 255), (200, 0, 0, 0), (200, 0, 0, 128)])
    image.save(tmp_path / "a.png")
    expected = [[[200, 0, 0], [255, 255, 255], [227, 127, 127]]]
    assert np.abs(pixels(load_image(tmp_path / "a.png")) - expected).max() <= 1


def test_palette_with_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    image.save(tmp_path / "a.png", transparency=1)
    assert np.array_equal(pixels(load_image(tmp_path / "a.png")), [[[10, 20, 30], [255] * 3]])


def test_cmyk(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    red, green, blue = load_image(tmp_path / "a.jpg").getpixel((4, 4))  # type: ignore[misc]
    assert red > 240
    assert max(green, blue) < 20


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB"])
def test_every_mode_reads_or_says_why(tmp_path: Path, mode: str) -> None:
    rgb = noise_image(9, 7)
    image = rgb if mode == "RGB" else Image.new(mode, rgb.size)
    image.save(tmp_path / "a.tif")
    assert load_image(tmp_path / "a.tif").mode == "RGB"


def test_the_first_frame_is_taken_and_said(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue", "lime")]
    for name in ("a.gif", "a.png", "a.webp", "a.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        with pytest.warns(ImageWarning, match="3 frames: the first is used"):
            image = load_image(tmp_path / name)
        red, green, blue = image.getpixel((4, 4))  # type: ignore[misc]
        assert red > 200
        assert max(green, blue) < 50


# --- broken files ----------------------------------------------------------------------


def test_no_image_at_all(tmp_path: Path) -> None:
    for content in (b"", b"just text\n", b"%!PS-Adobe-3.0 EPSF-3.0\n", os.urandom(100)):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(ImageError, match="is not an image"):
            load_image(tmp_path / "a.png")


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_image(tmp_path / "missing.png")
    with pytest.raises(ImageError, match="is a folder"):
        load_image(tmp_path)
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    with pytest.raises(ImageError, match="not a regular file"):
        load_image(tmp_path / "pipe")


@pytest.mark.parametrize("side", [7072, 10_000, 60_000])
def test_a_small_file_that_unpacks_to_gigabytes(tmp_path: Path, side: int) -> None:
    (tmp_path / "a.png").write_bytes(png_header(side, side))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(ImageError, match="at most 50 megapixels"):
            load_image(tmp_path / "a.png")


FORMATS = [("JPEG", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("GIF", {}), ("BMP", {}),
           ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("PPM", {})]  # fmt: skip


def encoded(file_format: str, options: dict[str, object]) -> bytes:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    if file_format in ("JPEG", "PNG", "WEBP", "TIFF"):
        options = options | {"exif": exif}
    noise_image(24, 20).save(file, file_format, **options)
    return file.getvalue()


@pytest.mark.parametrize(("file_format", "options"), FORMATS)
def test_cut_off_files(tmp_path: Path, file_format: str, options: dict[str, object]) -> None:
    whole = encoded(file_format, options)
    for length in (len(whole) // 2, 40, 12, 1):
        (tmp_path / "a").write_bytes(whole[:length])
        with pytest.raises(ImageError) as caught:
            load_image(tmp_path / "a")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("file_format", "options"), FORMATS)
def test_damaged_files_read_or_raise_an_image_error(
    tmp_path: Path, file_format: str, options: dict[str, object]
) -> None:
    whole = encoded(file_format, options)
    chance = random.Random(file_format)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(150):
            broken = bytearray(whole)
            for _ in range(chance.choice([1, 3, 20])):
                # Headers are where the decoders are most easily misled.
                broken[chance.randrange(min(len(broken), chance.choice([64, 4096])))] = (
                    chance.randrange(256)
                )
            (tmp_path / "a").write_bytes(broken)
            for load in (load_image, load_mask):
                try:
                    load(tmp_path / "a")
                except ImageError as error:
                    if "\n" in str(error):
                        pytest.fail(f"not one line: {error}")


# --- masks -----------------------------------------------------------------------------


def save_mask(tmp_path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(tmp_path / "mask.png", **options)
    return tmp_path / "mask.png"


@pytest.fixture
def square() -> Image.Image:
    """A mask: a white square on black."""
    mask = Image.new("L", (16, 12))
    mask.paste(255, (4, 4, 10, 9))
    return mask


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "LA", "RGBA", "CMYK", "I;16"])
def test_masks_of_every_mode(tmp_path: Path, square: Image.Image, mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.asarray(square).astype(np.uint16) * 257)
    else:
        image = square.convert(mode)
    path = tmp_path / "mask.tif"
    image.save(path)
    mask = load_mask(path)
    assert mask.mode == "L"
    assert np.array_equal(pixels(mask), pixels(square))
    assert np.array_equal(pixels(load_mask(path, invert=True)), 255 - pixels(square))


@pytest.mark.parametrize("colour", ["black", "white"])
def test_a_transparency_that_varies_is_the_mask(
    tmp_path: Path, square: Image.Image, colour: str
) -> None:
    image = Image.new("RGB", square.size, colour)
    image.putalpha(square)
    assert np.array_equal(pixels(load_mask(save_mask(tmp_path, image))), pixels(square))


@pytest.mark.parametrize("alpha", [255, 0, 77])
def test_a_constant_transparency_says_nothing(
    tmp_path: Path, square: Image.Image, alpha: int
) -> None:
    image = square.convert("RGB")
    image.putalpha(alpha)
    assert np.array_equal(pixels(load_mask(save_mask(tmp_path, image))), pixels(square))


def test_empty_and_full_masks_are_said(tmp_path: Path) -> None:
    # Label maps that count objects 0, 1, … look like masks and are all but black.
    for level in (0, 1, 127):
        with pytest.raises(ImageError, match=f"brightest pixel is {level} of 255"):
            load_mask(save_mask(tmp_path, Image.new("L", (8, 8), level)))
    with pytest.warns(ImageWarning, match="nothing is kept"):
        load_mask(save_mask(tmp_path, Image.new("L", (8, 8), 255)))
    with pytest.raises(ImageError, match="marks nothing"):
        load_mask(save_mask(tmp_path, Image.new("L", (8, 8), 255)), invert=True)


def test_masks_of_another_size(square: Image.Image) -> None:
    assert match_mask(square, square.size) is square
    doubled = match_mask(square, (32, 24))
    assert np.array_equal(pixels(doubled), pixels(square).repeat(2, 0).repeat(2, 1))
    assert match_mask(square, (33, 25)).size == (33, 25)  # the same shape, rounded
    for size in ((16, 16), (12, 16), (32, 30), (1600, 900)):
        with pytest.raises(ImageError, match="16 x 12 and the image"):
            match_mask(square, size)


def test_a_mask_that_vanishes_when_it_shrinks() -> None:
    line = Image.new("L", (64, 64))
    line.paste(255, (0, 1, 64, 2))
    with pytest.raises(ImageError, match="marks nothing"):
        match_mask(line, (8, 8))


@given(width=SIDES, height=SIDES, scale=st.integers(1, 9))
def test_whole_multiples_of_a_size_always_match(width: int, height: int, scale: int) -> None:
    mask = Image.new("L", (width, height), 255)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImageWarning)
        assert match_mask(mask, (width * scale, height * scale)).width == width * scale
        large = mask.resize((width * scale, height * scale))
        assert match_mask(large, (width, height)).height == height


@given(seed=st.integers(0, 999), h=st.integers(1, 9), w=st.integers(1, 9))
def test_the_latent_mask_is_the_pixel_in_the_middle(seed: int, h: int, w: int) -> None:
    mask = noise_image(8 * w, 8 * h, "L", seed)
    latents = mask_to_latents(mask, h, w)
    assert latents.shape == (1, 1, h, w)
    assert latents.dtype == torch.float32
    assert np.array_equal(latents[0, 0].numpy(), pixels(mask)[4::8, 4::8] >= 128)


@given(seed=st.integers(0, 999), width=SIDES, height=SIDES, radius=st.integers(0, 12))
def test_feathering_stays_inside(seed: int, width: int, height: int, radius: int) -> None:
    chance = np.random.default_rng(seed)
    edit = np.zeros((height, width), dtype=bool)
    top, left = chance.integers(0, height), chance.integers(0, width)
    edit[top : top + chance.integers(1, 40), left : left + chance.integers(1, 40)] = True
    mask = Image.fromarray(edit.astype(np.uint8) * 255)
    weights = feathered(mask, radius)
    assert weights.shape == (height, width)
    assert (weights[~edit] == 0).all()
    assert (weights[edit] > 0).all()
    assert weights.max() <= 1
    assert np.array_equal(feathered(mask, 0), edit)
    assert (feathered(mask, radius + 1) <= weights).all()


def test_the_feather_rises_by_equal_steps() -> None:
    mask = Image.new("L", (9, 1))
    mask.paste(255, (2, 0, 9, 1))
    assert np.allclose(feathered(mask, 3), [[0, 0, 0.25, 0.5, 0.75, 1, 1, 1, 1]])


# --- sizes and tensors -----------------------------------------------------------------


@given(width=SIDES, height=SIDES, mode=st.sampled_from(["L", "RGB"]))
def test_sizes_go_up_to_a_multiple_and_come_back(width: int, height: int, mode: str) -> None:
    image = noise_image(width, height, mode)
    worked, restore = fit_to_multiple(image, 8)
    assert (worked.width % 8, worked.height % 8) == (0, 0)
    assert 0 <= worked.width - width < 8
    assert 0 <= worked.height - height < 8
    assert worked.mode == mode
    assert np.array_equal(pixels(restore(worked)), pixels(image))
    # What was added repeats the edge.
    assert (pixels(worked)[:, width:] == pixels(worked)[:, width - 1 : width]).all()
    assert (pixels(worked)[height:] == pixels(worked)[height - 1 : height]).all()


@settings(max_examples=30)
@given(width=SIDES, height=SIDES, seed=st.integers(0, 999))
def test_to_tensor_and_back(width: int, height: int, seed: int) -> None:
    image = noise_image(width, height, seed=seed)
    tensor = to_tensor(image)
    assert tensor.shape == (1, 3, height, width)
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    assert tensor.min() >= -1
    assert tensor.max() <= 1
    [back] = to_pil(tensor)
    assert np.array_equal(pixels(back), pixels(image))


def test_all_256_levels_survive_the_round_trip() -> None:
    levels = Image.fromarray(np.arange(256, dtype=np.uint8)[None]).convert("RGB")
    assert np.array_equal(pixels(to_pil(to_tensor(levels))[0]), pixels(levels))
    assert to_tensor(levels)[0, 0, 0, [0, 255]].tolist() == [-1, 1]


def test_to_pil_agrees_with_diffusers() -> None:
    from diffusers.image_processor import VaeImageProcessor

    images = torch.randn(2, 3, 17, 23, generator=torch.Generator().manual_seed(0))
    reference = VaeImageProcessor().postprocess(images, output_type="pil")
    for ours, theirs in zip(to_pil(images), reference, strict=True):
        assert np.array_equal(pixels(ours), pixels(theirs))
    image = noise_image(24, 16)
    assert torch.equal(to_tensor(image), VaeImageProcessor().preprocess(image))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_overflow_is_said(value: float) -> None:
    images = torch.zeros(1, 3, 8, 8)
    images[0, 1, 2, 3] = value
    with pytest.raises(ImageError, match="overflowed"):
        to_pil(images)


def test_exif_transpose_is_what_pillow_calls_upright(gradient: Image.Image) -> None:
    """The table of `test_exif_orientation_is_obeyed` is Pillow's, not ours alone."""
    exif = gradient.getexif()
    exif[0x0112] = 6
    assert ImageOps.exif_transpose(gradient).size == (gradient.height, gradient.width)


def test_an_image_fitted_to_a_size_is_resampled_there_and_back() -> None:
    """A smooth image survives; at its own size it is only padded, to the pixel."""
    ramp = Image.fromarray(np.tile(np.arange(100, 220, 2, dtype=np.uint8), (40, 1))).convert("RGB")
    smaller, restore = fit(ramp, (32, 24))
    assert smaller.size == (32, 24)
    back = restore(smaller)
    assert back.size == ramp.size == (60, 40)
    inside = np.s_[4:-4, 4:-4]
    assert np.abs(np.asarray(back, int)[inside] - np.asarray(ramp, int)[inside]).max() <= 4
    padded, restore = fit(ramp, ramp.size)
    assert padded.size == (64, 40)
    assert restore(padded).tobytes() == ramp.tobytes()
