"""Images and masks: from files to PIL, from PIL to tensors in [-1, 1], and back.

Files may have any mode and orientation, and may be damaged.  In pare an image is RGB, 8 bits,
upright; a mask is one 8-bit channel: white (128 and more) = edit, black = keep.
"""

from __future__ import annotations

import contextlib
import errno
import stat
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from pare.errors import ImageError
from pare.runtime.calls import warn_caller

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

ImageLike: TypeAlias = Union[Image.Image, Path, str, "NDArray[Any]", "Tensor"]
"""What an image may be given as; see `as_image`."""

MAX_PIXELS = 50_000_000  # 150 MB as RGB; far more than any model here can work on
MASK_THRESHOLD = 128  # of 255: from here on a mask's pixel means "edit"

# The formats that Pillow decodes itself.  (For others it starts programs: Ghostscript for EPS.)
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM")

WRITTEN_FORMATS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"lossless": True}),
    ".avif": ("AVIF", {"quality": 95}),
}
"""File suffix -> Pillow's format and its settings.  PNG and WebP are lossless."""

# What Pillow's decoders raise on damaged files, apart from OSError.
DECODER_ERRORS = (
    EOFError, IndexError, SyntaxError, TypeError, ValueError, struct.error, zlib.error,
)  # fmt: skip


class ImageWarning(UserWarning):
    """An image or a mask can be used, but perhaps not as meant."""


# --- reading ---------------------------------------------------------------------------


def load_image(path: Path | str) -> Image.Image:
    """The image in `path`: RGB, upright as its EXIF orientation says.

    16-bit channels are brought to 8, CMYK and palettes to RGB; transparency is laid on
    white; of an animation the first frame is taken, with an ImageWarning.

    Raises:
        ImageError: not an image, damaged, cut off, or larger than 50 megapixels.
        OSError: the file cannot be opened.
    """
    with open_image(path) as image:
        upright = decode(image, path)
    with readable(path):
        return lay_on_white(upright)


def load_mask(path: Path | str, invert: bool = False) -> Image.Image:
    """The mask in `path` as one 8-bit channel (mode L): white = edit, black = keep.

    A transparency that varies *is* the mask (opaque = edit), as when strokes are painted
    on an empty layer; otherwise the brightness is.  `invert` swaps edit and keep.

    Raises:
        ImageError: as `load_image`; also if nothing is to be edited.
        OSError: the file cannot be opened.
    """
    with open_image(path) as image:
        upright = decode(image, path)
    with readable(path):
        mask = mask_channel(upright)
    return check_mask(ImageOps.invert(mask) if invert else mask, str(path))


def check_mask(mask: Image.Image, name: str = "the mask") -> Image.Image:
    """The mask (mode L), if it holds anything to edit; a full one brings a warning.

    Raises:
        ImageError: no pixel reaches 128.
    """
    pixels = np.asarray(mask)
    low, high = int(pixels.min()), int(pixels.max())
    if high < MASK_THRESHOLD:
        raise ImageError(
            f"{name} marks nothing to edit (its brightest pixel is {high} of 255)",
            expected="white where the image is to change",
            fix="if black marks the edit, pass `invert=True`",
        )
    if low >= MASK_THRESHOLD:
        # Without `name`, so that the mask and its resized copy warn once.
        warn_caller("the mask is white everywhere: nothing is kept", ImageWarning)
    return mask


def match_mask(mask: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The mask at an image's size (width, height): NEAREST, so that no new greys appear.

    Raises:
        ImageError: the mask has another shape than the image, so that stretching it
            would move its parts; a difference of rounding (one pixel) is none.
    """
    if mask.size == size:
        return mask
    (mask_width, mask_height), (width, height) = mask.size, size
    # Scaled to the image's width, the height must be right but for the rounding of
    # either size: half a pixel of the mask, or one of the image.
    slack = max(1.0, 0.5 * width / mask_width)
    if abs(mask_height * width / mask_width - height) > slack:
        raise ImageError(
            f"the mask is {mask_width} x {mask_height} and the image {width} x {height}",
            expected="a mask of the image's shape, at any scale",
        )
    return check_mask(mask.resize(size, Image.Resampling.NEAREST))


@contextlib.contextmanager
def open_image(path: Path | str, formats: tuple[str, ...] = FORMATS) -> Iterator[Image.Image]:
    """The image file, its header read and its pixels not yet.

    Raises:
        ImageError: not a regular file, of none of the `formats`, or too large.
    """
    if not stat.S_ISREG(Path(path).stat().st_mode):
        kind = "a folder" if Path(path).is_dir() else "not a regular file"
        raise ImageError(f"{path} is {kind}", expected="an image file")
    with open(path, "rb") as file:
        with readable(path):
            image = Image.open(file, formats=formats)
        with image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise too_large(path, f"{width} x {height}")
            yield image


def decode(image: Image.Image, path: Path | str) -> Image.Image:
    """The pixels of the first frame, 8 bits a channel, upright."""
    with readable(path):
        # An MPO is a photograph with a preview beside it, not an animation.
        frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
        image.seek(0)
        image.load()
        upright = to_8_bits(ImageOps.exif_transpose(image), path)
    if frames > 1:
        warn_caller(f"{path} has {frames} frames: the first is used", ImageWarning)
    return upright


def to_8_bits(image: Image.Image, path: Path | str) -> Image.Image:
    """Scale 16-bit grey to 8 bits; Pillow's own conversion would clip it to white."""
    if image.mode == "F":
        raise ImageError(f"{path} holds floating-point pixels", expected="8 or 16 bits a channel")
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    pixels = np.asarray(image).astype(np.int64)
    if pixels.min() < 0 or pixels.max() > 65535:
        raise ImageError(f"{path} holds 32-bit pixels", expected="8 or 16 bits a channel")
    return Image.fromarray(np.rint(pixels / 257).astype(np.uint8))


def lay_on_white(image: Image.Image) -> Image.Image:
    """The image as RGB, with white where it is transparent."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def mask_channel(image: Image.Image) -> Image.Image:
    """The channel that holds the mask: the transparency if it varies, else the brightness."""
    if not image.has_transparency_data:
        return image.convert("L")
    image = image.convert("RGBA")
    alpha = image.getchannel("A")
    low, high = alpha.getextrema()
    return alpha if low != high else image.convert("RGB").convert("L")


@contextlib.contextmanager
def readable(path: Path | str) -> Iterator[None]:
    """Turn what Pillow raises on files that it cannot read into an ImageError."""
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{path} is not an image that pare reads",
            expected="PNG, JPEG, WebP, AVIF, TIFF, GIF or BMP",
        ) from error
    except Image.DecompressionBombError as error:
        raise too_large(path, "enormous") from error
    except OSError as error:
        # An errno means that reading the disk failed, not decoding.  EINVAL is an exception: a
        # seek to an invalid offset, which stands in the file.
        if error.errno not in (None, errno.EINVAL):
            raise
        raise damaged(path, error) from error
    except DECODER_ERRORS as error:
        raise damaged(path, error) from error


def too_large(path: Path | str, size: str) -> ImageError:
    megapixels = MAX_PIXELS // 1_000_000
    return ImageError(
        f"{path} is {size}", expected=f"at most {megapixels} megapixels", fix="shrink it first"
    )


def damaged(path: Path | str, error: Exception) -> ImageError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return ImageError(f"{path} is damaged or cut off ({reason})", fix="get it again")


# --- sizes -----------------------------------------------------------------------------


Restore = Callable[[Image.Image], Image.Image]


def fit(image: Image.Image, size: tuple[int, int] | None = None) -> tuple[Image.Image, Restore]:
    """The image at a size that a model can work on, and the function that undoes it.

    With a `size` (width, height) the image is resampled, and so is what is restored.  Without
    one it is padded to multiples of 8, and no pixel changes.
    """
    if size is None or size == image.size:
        return fit_to_multiple(image)
    own_size = image.size
    return (
        image.resize(size, Image.Resampling.LANCZOS),
        lambda worked: worked.resize(own_size, Image.Resampling.LANCZOS),
    )


def fit_to_multiple(image: Image.Image, multiple: int = 8) -> tuple[Image.Image, Restore]:
    """The image padded to the next multiple of `multiple`, and the function that crops it again.

    The right and lower edges are repeated, so no pixel is resampled.  For masks as well.
    """
    width, height = image.size
    right, below = -width % multiple, -height % multiple
    if right or below:
        pixels = np.asarray(image)
        padding = [(0, below), (0, right), (0, 0)][: pixels.ndim]
        image = Image.fromarray(np.pad(pixels, padding, mode="edge"))

    def restore(worked: Image.Image) -> Image.Image:
        return worked.crop((0, 0, width, height))

    return image, restore


# --- tensors ---------------------------------------------------------------------------


def as_image(image: ImageLike) -> Image.Image:
    """The image as a PIL image: RGB, 8 bits a channel.

    Args:
        image: a path; a PIL image in any mode (transparency is laid on white); a numpy array
            (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), uint8 or floats in [0, 1]; or a tensor
            (3, H, W) or (1, 3, H, W) in [-1, 1].

    Raises:
        ImageError: something else, an array of another shape, type or range, or a path whose
            file `load_image` refuses.
        OSError: the file cannot be opened.
    """
    import torch

    if isinstance(image, str | Path):
        return load_image(image)
    if isinstance(image, Image.Image):
        return lay_on_white(to_8_bits(image, "`image`"))
    if isinstance(image, np.ndarray):
        return lay_on_white(Image.fromarray(eight_bit(image)))
    if isinstance(image, torch.Tensor):
        found = to_pil(as_batch(image))
        if len(found) == 1:
            return found[0]
        raise ImageError(f"`image` is a tensor of {len(found)} images", expected="one image")
    raise not_an_image(image)


def as_image_tensor(image: ImageLike) -> Tensor:
    """The image as a tensor (B, 3, H, W), float32, in [-1, 1]; a tensor may hold several.

    Takes what `as_image` takes; a tensor keeps its values.

    Raises:
        ImageError, OSError: as `as_image`.
    """
    import torch

    return as_batch(image) if isinstance(image, torch.Tensor) else to_tensor(as_image(image))


def as_batch(image: Tensor) -> Tensor:
    """(3, H, W) or (B, 3, H, W) as (B, 3, H, W)."""
    batch = image[None] if image.ndim == 3 else image
    if batch.ndim != 4 or batch.shape[1] != 3:
        raise ImageError(
            f"`image` is a tensor of shape {tuple(image.shape)}",
            expected="(B, 3, H, W) or (3, H, W), in [-1, 1]",
        )
    return batch


def eight_bit(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """An array of uint8, or of floats in [0, 1], as uint8: (H, W) or (H, W, 3 or 4)."""
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    good = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))
    if not good or not pixels.size:
        raise ImageError(
            f"`image` is an array of shape {pixels.shape}",
            expected="(H, W, 3), (H, W, 4) or (H, W)",
        )
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels)
    if not np.issubdtype(pixels.dtype, np.floating) or not (
        pixels.min() >= 0 and pixels.max() <= 1  # false for NaN, too
    ):
        raise ImageError(
            f"`image` is an array of {pixels.dtype} from {pixels.min():g} to {pixels.max():g}",
            expected="uint8, or floats from 0 to 1",
        )
    return np.rint(pixels * 255).astype(np.uint8)


def not_an_image(image: object) -> ImageError:
    return ImageError(
        f"`image` is a {type(image).__name__}",
        expected="a PIL image, a path, a numpy array (H, W, 3) or a tensor (B, 3, H, W)",
    )


def to_tensor(image: Image.Image) -> Tensor:
    """The image as a tensor (1, 3, H, W), float32 on the CPU, in [-1, 1]."""
    import torch

    pixels = np.asarray(image.convert("RGB")).astype(np.float32) / 255.0  # (H, W, 3)
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous() * 2.0 - 1.0


def to_pil(images: Tensor) -> list[Image.Image]:
    """Images (B, 3, H, W) in [-1, 1], clipped to that, as 8-bit RGB.

    Raises:
        ImageError: a value is not a number, as when a model overflows in half precision.
    """
    images = images.detach().float().cpu()
    if not images.isfinite().all():
        raise ImageError(
            "the image holds values that are not numbers (the model overflowed)",
            fix="use `dtype=float32`, or bfloat16 on a GPU",
        )
    pixels = (images / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()  # (B, H, W, 3)
    return [Image.fromarray(image) for image in (pixels * 255).round().astype(np.uint8)]


def mask_to_latents(mask: Image.Image, h: int, w: int) -> Tensor:
    """The mask on the latent grid: (1, 1, h, w), float32, 1 = edit and 0 = keep.

    NEAREST, because a blurred edge would mix two latents that belong to different
    images.  A stroke thinner than a latent pixel can vanish: the caller must check.
    """
    import torch

    small = mask.convert("L").resize((w, h), Image.Resampling.NEAREST)
    edit = np.asarray(small) >= MASK_THRESHOLD
    return torch.from_numpy(edit.astype(np.float32))[None, None]


def feathered(mask: Image.Image, radius: float) -> NDArray[np.float32]:
    """Weights (H, W) in [0, 1] for the edited image: a ramp *inside* the mask's edge.

    Outside the mask the weight is exactly 0, so that pasting keeps those pixels exactly;
    from the edge inwards it rises to 1 over `radius` pixels (0: a hard seam).
    """
    from scipy.ndimage import distance_transform_edt

    edit = np.asarray(mask.convert("L")) >= MASK_THRESHOLD
    if edit.all():  # no edge; the distance to nothing is undefined
        return np.ones(edit.shape, dtype=np.float32)
    # Pixels to the nearest kept one: 1 at the edge.
    depth: NDArray[np.float64] = distance_transform_edt(edit)
    return np.clip(depth / (radius + 1.0), 0.0, 1.0).astype(np.float32)
