"""Blended latent diffusion: repaint what a mask marks, keep the rest (arXiv:2206.02779).

The foreground is denoised by the model, as ever.  Before each step, everything outside the
mask is replaced by the *original* picture, noised to the very level at which the foreground
is.  So the model always sees the whole scene, and what it paints grows into it.

`blend_latents` is the algorithm; `blend` goes from pictures to pictures around it.

Latents that are kept are not yet pixels that are kept: the way through the VAE changes every
pixel a little.  Hence the three backgrounds of `blend`, and its report of the error outside
the mask.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pare import settings
from pare.errors import ImageError, SettingError
from pare.image import (
    MASK_THRESHOLD,
    ImageWarning,
    check_mask,
    feathered,
    fit_to_multiple,
    mask_channel,
    mask_to_latents,
    match_mask,
    to_pil,
    to_tensor,
)
from pare.noise import Noise
from pare.pipeline import Pipeline, Progress, check_sampling, one_a_seed
from pare.schedulers import History, Trajectory, add_noise, start_index
from pare.text import PromptEmbeddings
from techniques.poisson import poisson_blend

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

Background = Literal["paste", "poisson", "latent"]
KeepOrDrop = Literal["keep", "drop"]
Rounding = Literal["nearest", "up"]

# The solver that suits the technique: few steps, and smooth ones.  `pare blend` starts from it.
PREFERRED_SCHEDULER: Mapping[str, object] = {"scheduler": "dpm++2m", "karras": True}

MAX_SHRINK = 16  # latent pixels; a dilation by more fills any picture


# --- the algorithm -------------------------------------------------------------------------


@torch.no_grad()
def blend_latents(
    pipe: Pipeline,
    trajectory: Trajectory,
    prompts: PromptEmbeddings,
    source: Tensor,
    mask: Tensor,
    foreground_noise: Tensor,
    background_noise: Tensor,
    *,
    guidance: float,
    rescale: float = 0.0,
    shrink: int = 0,
    keep_history: bool = True,
    noise: Noise | None = None,
    progress: Progress = iter,
) -> Tensor:
    """The latents of the edited picture: new inside the mask, exactly `source` outside.

    Args:
        trajectory: of `pipe.scheduler`; it may start midway, and then the foreground starts
            from the noised source and keeps something of it.
        prompts: what the foreground is to show.
        source: clean latents of the original picture, (B, 4, h, w).
        mask: (1, 1, h, w), 1 = edit and 0 = keep.
        foreground_noise, background_noise: (B, 4, h, w), unit, independent of each other.
            The background keeps its noise for the whole run, so that from level to level it
            moves on one smooth path, as the foreground does.
        shrink: see `shrunken`.
        keep_history: whether a multistep solver remembers earlier steps across a blend.
            A blend changes x_t behind the solver's back, but only *outside* the mask; solvers
            work pixel by pixel, and what they make of the outside is replaced anyway.  So to
            keep it is right; without, every solver becomes its first-order self.
        noise: needed by schedulers that are `stochastic`.

    Returns:
        (B, 4, h, w)
    """
    x_t = add_noise(source, foreground_noise, trajectory.levels[0].alpha_bar)
    history: History = ()
    for i in progress(range(len(trajectory))):
        level = trajectory.levels[i]

        # The whole idea.  algorithm 1 of arXiv:2206.02779
        background = add_noise(source, background_noise, level.alpha_bar)
        edit = shrunken(mask, shrink, i, len(trajectory))
        x_t = edit * x_t + (1 - edit) * background
        if not keep_history:
            history = ()

        prediction = pipe.predict(x_t, level, prompts, guidance, rescale=rescale, step=i)
        fresh = pipe.fresh_noise(noise, x_t)
        x_t, history = pipe.scheduler.step(trajectory, i, x_t, prediction, history, fresh)

    # The last step has no blend behind it: pin the background to what it was.
    return mask * x_t + (1 - mask) * source


def shrunken(mask: Tensor, shrink: int, i: int, steps: int) -> Tensor:
    """The mask of step `i` of `steps` when it starts larger and shrinks to its own size.

    A thin mask leaves the model nothing to work on: what it begins there is overruled from
    all sides.  So the first of `shrink + 1` equal segments of the run works on the mask
    dilated by `shrink` latent pixels, the next by one less, the last on the mask itself
    ("progressive mask shrinking" in arXiv:2206.02779).
    """
    radius = shrink - i * (shrink + 1) // steps
    return F.max_pool2d(mask, 2 * radius + 1, stride=1, padding=radius)


# --- from pictures to pictures -------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """How far two 8-bit pictures are apart where nothing was to change."""

    psnr: float  # dB over all pixels and channels; inf if they are equal
    largest: int  # of any channel of any pixel, 0 to 255

    def report(self) -> dict[str, float | None]:
        """Fit for JSON, which has no infinity: the psnr of equal pictures is None."""
        return {"psnr": None if math.isinf(self.psnr) else self.psnr, "largest": self.largest}


@dataclass(frozen=True)
class Blended:
    """Edited pictures, and what the edit did to what it was to leave alone."""

    images: list[Image.Image]  # one a seed, RGB, of the input's size
    latents: Tensor  # (B, 4, h, w), scaled
    outside: list[Difference] | None  # one a picture, to the input; None: the mask is full
    vae_alone: Difference | None  # what the way through the VAE costs there, without any edit

    def report(self) -> dict[str, object]:
        """The errors outside the mask, fit for JSON."""
        return {
            "outside": self.outside and [difference.report() for difference in self.outside],
            "vae_alone": self.vae_alone and self.vae_alone.report(),
        }


def blend(
    pipe: Pipeline,
    image: Image.Image,
    mask: Image.Image,
    prompts: str | Sequence[str],
    seeds: Sequence[int] = (0,),
    *,
    strength: float = 0.95,
    steps: int = 25,
    guidance: float = 7.5,
    rescale: float = 0.0,
    negative: str | Sequence[str] = "",
    background: Background = "paste",
    feather: float = 4.0,
    shrink: int = 0,
    cover: bool = False,
    history: KeepOrDrop = "keep",
    rounding: Rounding = "nearest",
    sample: bool = False,
    progress: Progress = iter,
) -> Blended:
    """Repaint the masked part of a picture as the prompt says, under `pipe.scheduler`.

    From each picture's own generator come, in this order: the foreground's noise, the
    background's, the encoder's (with `sample`), then that of each step (if the scheduler
    wants any).

    Args:
        image: any size; worked at the next multiple of 8 and handed back at its own.
        mask: white = edit, black = keep; any mode, and any size of the picture's shape.
        prompts: one for all seeds, or one each.
        strength: how much of the trajectory runs.  At 1 next to nothing is left of what was
            under the mask.
        background: what stands outside the mask in the end.  "paste": the input's pixels,
            exactly, with a seam of `feather`.  "poisson": the input's pixels, exactly,
            and inside the edit's gradients, see `techniques.poisson`.  "latent": the decoded
            picture as it is, which the VAE has changed everywhere.
        feather: width in pixels of the soft seam of "paste", inside the mask; 0: hard.
        shrink: begin with the mask dilated by so many latent pixels, see `shrunken`.
        cover: edit every latent that the mask touches, not those whose middle it covers.
        history: "keep" or "drop" a multistep solver's, see `blend_latents`.
        rounding: of the number of steps, steps * strength: "nearest", or "up" as
            `start = int(steps * (1 - strength))` does, which is also found.
        sample: draw the source's latents from the VAE's posterior instead of its mode.

    Raises:
        SettingError: a setting out of range.
        ImageError: a mask that marks nothing, or of another shape than the picture.
        ModelError: an inpainting model, whose UNet wants the mask as an input.
    """
    pipe.require_channels("blending")
    check_sampling(steps, guidance, rescale)
    check_choices(pipe, background, history, rounding, feather, shrink)
    trajectory = pipe.scheduler.trajectory(steps, first_step(steps, strength, rounding))
    mask = fitting_mask(mask, image.size)

    factor = pipe.vae.config.factor
    worked, restore = fit_to_multiple(image.convert("RGB"), factor)
    noise = pipe.noise(seeds)
    shape = pipe.vae.config.latent_channels, worked.height // factor, worked.width // factor
    foreground_noise, background_noise = noise.draw(shape), noise.draw(shape)
    source = encode(pipe, to_tensor(worked), noise.draw(shape) if sample else None)
    latent_mask = mask_on_grid(fit_to_multiple(mask, factor)[0], factor, cover)

    latents = blend_latents(
        pipe,
        trajectory,
        pipe.encode_prompts(one_a_seed(prompts, seeds), negative),
        source.expand(len(seeds), -1, -1, -1),
        latent_mask.to(source),
        foreground_noise,
        background_noise,
        guidance=guidance,
        rescale=rescale,
        shrink=shrink,
        keep_history=history == "keep",
        noise=noise,
        progress=progress,
    )

    original = image.convert("RGB")
    decoded = [restore(picture) for picture in to_pil(pipe.decode(latents))]
    through_vae = restore(to_pil(pipe.decode(source[:1]))[0])
    keep = ~is_edit(mask)
    images = [put_back(original, new, mask, background, feather) for new in decoded]
    if not keep.any():
        return Blended(images, latents, None, None)
    outside = [difference(original, edited, keep) for edited in images]
    return Blended(images, latents, outside, difference(original, through_vae, keep))


def check_choices(
    pipe: Pipeline,
    background: str,
    history: str,
    rounding: str,
    feather: float,
    shrink: int,
) -> None:
    for name, value, choices in (
        ("background", background, get_args(Background)),
        ("history", history, get_args(KeepOrDrop)),
        ("rounding", rounding, get_args(Rounding)),
    ):
        if value not in choices:
            raise SettingError(f"{name} is {value!r}", expected=" or ".join(choices))
    settings.check_number("feather", feather, 0.0, 1000.0)
    whole = isinstance(shrink, int) and not isinstance(shrink, bool)
    if not whole or not 0 <= shrink <= MAX_SHRINK:
        raise SettingError(f"shrink is {shrink!r}", expected=f"a whole number, 0 to {MAX_SHRINK}")
    if history == "drop" and pipe.scheduler.name == "pndm":
        raise SettingError(
            "pndm cannot do without its history, which holds where a step began",
            fix="keep it, or take another scheduler",
        )


def first_step(steps: int, strength: float, rounding: Rounding) -> int:
    """The step index at which the run starts; at least one step is left."""
    if rounding == "nearest":
        return start_index(steps, strength)
    return min(int(steps * (1 - settings.check_strength(strength))), steps - 1)


def encode(pipe: Pipeline, image: Tensor, noise: Tensor | None) -> Tensor:
    """image (1, 3, H, W) -> scaled latents, the posterior's mode (1, 4, h, w); with noise
    (B, 4, h, w), one sample for each."""
    if noise is None:
        return pipe.encode(image)
    with torch.no_grad():
        posterior = pipe.vae.encode(image.to(pipe.device, pipe.dtype))
    latents = posterior.mean.float() + posterior.std.float() * noise
    return latents * pipe.vae.config.scaling_factor


# --- masks ---------------------------------------------------------------------------------


def is_edit(mask: Image.Image) -> NDArray[np.bool_]:
    """(H, W), true where the mask says edit."""
    edit: NDArray[np.bool_] = np.asarray(mask) >= MASK_THRESHOLD
    return edit


def fitting_mask(mask: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The mask as one channel at the picture's size.  Says when it is full or was resized.

    Raises:
        ImageError: it marks nothing, or has another shape than the picture.
    """
    if mask.mode != "L":
        mask = mask_channel(mask)
    if mask.size == size:
        return check_mask(mask)
    fitting = match_mask(mask, size)
    warnings.warn(
        f"the mask is {mask.width} x {mask.height}: scaled to the picture's "
        f"{size[0]} x {size[1]} by the nearest pixel",
        ImageWarning,
        stacklevel=3,
    )
    return fitting


def mask_on_grid(mask: Image.Image, factor: int, cover: bool) -> Tensor:
    """The mask on the latent grid, (1, 1, h, w), float32, 1 = edit and 0 = keep.

    A latent pixel is edited if the mask marks the pixel in its middle; with `cover`, if the
    mask marks any of its factor x factor pixels.  Says if much of the mask is lost.

    Raises:
        ImageError: all of it is lost.
    """
    height, width = mask.height // factor, mask.width // factor
    pixels = is_edit(mask)
    if cover:
        touched = pixels.reshape(height, factor, width, factor).any(axis=(1, 3))
        return torch.from_numpy(touched.astype(np.float32))[None, None]
    on_grid = mask_to_latents(mask, height, width)
    reached = on_grid[0, 0].numpy().repeat(factor, axis=0).repeat(factor, axis=1) > 0
    tell_what_is_lost(pixels, reached, factor)
    return on_grid


def tell_what_is_lost(pixels: NDArray[np.bool_], reached: NDArray[np.bool_], factor: int) -> None:
    """Warn about strokes of the mask that the latent grid is too coarse for; raise if all are."""
    from scipy.ndimage import label, mean

    too_fine = f"the mask is too fine for the model's grid of {factor} x {factor} pixels"
    remedy = "widen it, or let it cover every grid cell that it touches (--cover)"
    if not (pixels & reached).any():
        raise ImageError(f"{too_fine}, and nothing of it is left there", fix=remedy)
    parts, count = label(pixels, structure=np.ones((3, 3)))
    shares = np.asarray(mean(reached, parts, np.arange(1, count + 1)))
    lost = int((shares < 0.5).sum())
    if lost:
        warnings.warn(
            f"{too_fine}: of {lost} of its {count} parts less than half is edited; {remedy}",
            ImageWarning,
            stacklevel=4,
        )


# --- backgrounds ---------------------------------------------------------------------------


def put_back(
    original: Image.Image,
    edited: Image.Image,
    mask: Image.Image,
    background: Background,
    feather: float,
) -> Image.Image:
    """The edited picture with the background that was asked for; all of one size."""
    if background == "latent":
        return edited
    old, new = (to_tensor(picture)[0].permute(1, 2, 0).numpy() for picture in (original, edited))
    if background == "poisson":
        mixed = poisson_blend(old, new, is_edit(mask))
    else:
        weight = feathered(mask, feather)[..., None]  # 0 outside: old + 0 is old, exactly
        mixed = old + weight * (new - old)
    return to_pil(torch.from_numpy(mixed).permute(2, 0, 1)[None])[0]


def difference(one: Image.Image, other: Image.Image, where: NDArray[np.bool_]) -> Difference:
    """How far two RGB pictures are apart over the pixels `where` (H, W)."""
    apart = np.asarray(one)[where].astype(np.int64) - np.asarray(other)[where]
    mean_square = float(np.square(apart).mean())
    psnr = 10 * math.log10(255**2 / mean_square) if mean_square else math.inf
    return Difference(psnr, int(np.abs(apart).max()))
