"""Blended latent diffusion from an image, a mask and a prompt to edited images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import torch
from torch import Tensor

from pare.errors import ModelError, SettingError
from pare.io.images import ImageLike, to_pil
from pare.noise import Noise
from pare.pipeline import Pipeline, Progress, check_sampling, one_per_seed
from pare.results import Images
from pare.runtime import validation
from pare.runtime.calls import checked_keywords
from pare.runtime.short_repr import short_repr
from pare.schedulers import Timesteps, start_index
from pare.text.text_encoder import PromptEmbeddings
from techniques.blended.background import Background, Difference, decode_on_canvas, difference
from techniques.blended.blended_loop import blend_latents
from techniques.blended.edit_canvas import Canvas
from techniques.blended.inpainting_model import inpaint_latents, masked_image
from techniques.blended.ranking import Rank, scores_of
from techniques.blended.tuned_decoder import TUNING_STEPS

if TYPE_CHECKING:
    from PIL import Image

    from pare.runtime.memory_plan import Plan

Method = Literal["blend", "inpaint", "both"]
KeepOrDrop = Literal["keep", "drop"]
Rounding = Literal["nearest", "up"]

# The solver that suits the technique: few steps, and smooth ones.  `pare blend` starts from it.
PREFERRED_SCHEDULER: Mapping[str, object] = {"scheduler": "dpm++2m", "karras": True}

# An inpainting model is conditioned on what stays, and was trained from pure noise.
USUAL_STRENGTH: Mapping[Method, float] = {"blend": 0.95, "inpaint": 1.0, "both": 1.0}

MAX_SHRINK = 16  # latent pixels; a dilation by more fills any image
MAX_DECODER_STEPS = 10_000


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Blended(Images):
    """Edited images, one a seed, at the input's size, and what changed outside the mask."""

    latents: Tensor  # (B, 4, h, w), scaled
    outside: list[Difference] | None  # one an image, to the input; None: the mask is full
    vae_alone: Difference | None  # what the VAE's round trip changes there, without an edit
    scores: list[float] | None  # what `rank` gave, one an image
    plan: Plan  # the batch and tile that the run was made with

    @property
    def order(self) -> list[int]:
        """The images' indices, the best first; in their own order without a `rank`."""
        scores = self.scores or [0.0] * len(self.images)
        return sorted(range(len(scores)), key=lambda index: -scores[index])

    def report(self) -> dict[str, object]:
        """The errors outside the mask, and the scores if there are any, fit for JSON."""
        found: dict[str, object] = {
            "outside": self.outside and [difference.report() for difference in self.outside],
            "vae_alone": self.vae_alone and self.vae_alone.report(),
        }
        return found if self.scores is None else found | {"scores": self.scores}


@checked_keywords
def blend(
    pipe: Pipeline,
    image: ImageLike,
    mask: ImageLike,
    prompts: str | Sequence[str],
    seeds: int | Sequence[int] = (0,),
    *,
    method: Method | None = None,
    strength: float | None = None,
    steps: int = 25,
    guidance: float = 7.5,
    rescale: float = 0.0,
    negative: str | Sequence[str] = "",
    size: tuple[int, int] | None = None,
    background: Background = "paste",
    feather: float = 4.0,
    decoder_steps: int = TUNING_STEPS,
    shrink: int = 0,
    cover: bool = False,
    history: KeepOrDrop = "keep",
    rounding: Rounding = "nearest",
    sample: bool = False,
    rank: Rank | None = None,
    batch: int | None = None,
    tile: int | None = None,
    progress: Progress = iter,
) -> Blended:
    """Repaint the masked part of an image from a prompt, under `pipe.scheduler`.

    From each image's own generator are drawn, in this order: the foreground's noise, the
    background's, the encoder's (with `sample`: the source's, then the masked image's), then
    that of each step (if the scheduler wants any).

    Args:
        image: any size; worked at the next multiple of 8 and returned at its own.
        mask: white = edit, black = keep; any mode, and any size of the image's shape, see
            `prepare_mask`.
        prompts: one for all seeds, or one each.
        method: "blend" puts the original's latents back before each step.  "inpaint" gives
            mask and masked image to an inpainting model, and puts nothing back.  "both"
            does both.  None: "inpaint" with an inpainting model, else "blend".
        strength: the fraction of the steps that runs.  At 1 next to nothing is left of what
            was under the mask.  None: 0.95, and 1 with an inpainting model.
        size: (width, height) to work at, multiples of 8.
        background: of the result outside the mask.  "paste": the input's pixels, exactly, with
            a seam of `feather`.  "poisson": the input's pixels, exactly, and inside the edit's
            gradients, see `techniques.blended.poisson`.  "decoder": the output of a decoder
            that is fine-tuned to the image for `decoder_steps`, see `decode_tuned`.
            "latent": the decoder's output as it is, which the VAE has changed everywhere.
        feather: width in pixels of the soft seam of "paste", inside the mask; 0: hard.
        shrink: begin with the mask dilated by so many latent pixels, see `shrunken`.
        cover: edit every latent pixel that the mask touches, not those whose centre it covers.
        history: "keep" or "drop" a multistep solver's, see `blend_latents`.
        rounding: of the number of steps, steps * strength: "nearest", or "up" as the common
            `start = int(steps * (1 - strength))` does.
        sample: draw the encoder's latents from the VAE's posterior instead of its mode.
        rank: scores the images; see `techniques.blended.ranking`.
        batch, tile: how a run fits into memory, as for `Pipeline.generate`.

    Raises:
        SettingError: a setting out of range.
        ImageError: a mask that marks nothing, or of another shape than the image.
        ModelError: a method that the model cannot do.
        NotEnoughMemoryError, NonFiniteError: as `Pipeline.generate`.
    """
    method = chosen_method(pipe, method)
    strength = USUAL_STRENGTH[method] if strength is None else strength
    check_sampling(steps, guidance, rescale)
    check_choices(background, history, rounding)
    check_numbers(feather, shrink, decoder_steps)
    check_combination(pipe, method, history, shrink)
    timesteps = pipe.timesteps(steps, first_step(steps, strength, rounding))
    seeds = validation.seed_list(seeds)
    prompts, noise = one_per_seed(prompts, seeds), pipe.noise(seeds)
    canvas = Canvas.prepare(image, mask, factor=pipe.vae.config.factor, size=size, cover=cover)
    height, width = canvas.image.shape[2:]
    plan = pipe.plan(len(noise), height, width, guidance=guidance, batch=batch, tile=tile)

    start = Start.draw(pipe, canvas, noise, method, sample=sample, tile=tile)
    embeddings = pipe.encode_prompts(prompts, negative)
    latents = torch.cat(
        [
            edited_latents(
                pipe, timesteps, embeddings[some], start[some], canvas.grid, method,
                shrink=shrink, keep_history=history == "keep",
                guidance=guidance, rescale=rescale, progress=progress,
            )
            for some in plan.batches
        ]
    )  # fmt: skip

    images = decode_on_canvas(
        pipe, canvas, latents, background,
        feather=feather, decoder_steps=decoder_steps, tile=plan.tile, progress=progress,
    )  # fmt: skip
    outside, vae_alone = errors_outside(pipe, canvas, start.source, images, plan.tile)
    scores = None if rank is None else scores_of(images, prompts, rank)
    return Blended(
        images=images,
        seeds=seeds,
        latents=latents,
        before=canvas.original,
        maps={"mask": canvas.mask},
        outside=outside,
        vae_alone=vae_alone,
        scores=scores,
        plan=plan,
    )


@dataclass(frozen=True)
class Start:
    """What the images of a run start from: all that the seeds and the encoder determine."""

    source: Tensor  # clean latents of the original, (B, 4, h, w)
    foreground_noise: Tensor  # (B, 4, h, w)
    background_noise: Tensor  # (B, 4, h, w)
    extra: Tensor | None  # what an inpainting model reads beside x_t, (B, 5, h, w)
    noise: Noise  # for what is still to be drawn, step by step

    __repr__ = short_repr

    @classmethod
    def draw(
        cls,
        pipe: Pipeline,
        canvas: Canvas,
        noise: Noise,
        method: Method,
        *,
        sample: bool,
        tile: int | None,
    ) -> Self:
        """Draw from each image's own generator; see `blend` for the order."""

        def encode(image: Tensor) -> Tensor:
            """(1, 3, H, W) -> (B, 4, h, w): the posterior's mode for all, or a sample each."""
            if not sample:
                return pipe.encode(image, tile=tile).expand(len(noise), -1, -1, -1)
            each = [pipe.encode(image, generator=g, tile=tile) for g in noise.generators]
            return torch.cat(each)

        shape = pipe.vae.config.latent_channels, *canvas.grid.shape[2:]
        foreground_noise, background_noise = noise.draw(shape), noise.draw(shape)
        source, extra = encode(canvas.image), None
        if method != "blend":
            masked = encode(masked_image(canvas.image, canvas.edit))
            mask = canvas.grid.to(masked).expand(len(masked), -1, -1, -1)
            extra = torch.cat([mask, masked], dim=1)
        return cls(source, foreground_noise, background_noise, extra, noise)

    def __getitem__(self, some: slice) -> Start:
        """Of some of the images."""
        extra = None if self.extra is None else self.extra[some]
        noises = self.foreground_noise[some], self.background_noise[some]
        return Start(self.source[some], *noises, extra, self.noise[some])


def edited_latents(
    pipe: Pipeline,
    timesteps: Timesteps,
    prompts: PromptEmbeddings,
    start: Start,
    grid: Tensor,
    method: Method,
    *,
    shrink: int,
    keep_history: bool,
    **sampling: Any,
) -> Tensor:
    """The edited latents (B, 4, h, w) of one batch, by the chosen method."""
    if start.extra is not None and method == "inpaint":
        return inpaint_latents(
            pipe, timesteps, prompts, start.source, start.foreground_noise,
            extra=start.extra, noise=start.noise, **sampling,
        )  # fmt: skip
    return blend_latents(
        pipe, timesteps, prompts, start.source, grid.to(start.source),
        start.foreground_noise, start.background_noise,
        shrink=shrink, keep_history=keep_history,
        extra=start.extra, noise=start.noise, **sampling,
    )  # fmt: skip


def errors_outside(
    pipe: Pipeline,
    canvas: Canvas,
    source: Tensor,
    images: Sequence[Image.Image],
    tile: int | None,
) -> tuple[list[Difference] | None, Difference | None]:
    """Of the images, and of the VAE's round trip alone; None if nothing is outside."""
    keep = canvas.keep
    if not keep.any():
        return None, None
    through_vae = canvas.restore(to_pil(pipe.decode(source[:1], tile=tile))[0])
    outside = [difference(canvas.original, edited, keep) for edited in images]
    return outside, difference(canvas.original, through_vae, keep)


# --- settings ------------------------------------------------------------------------------


def chosen_method(pipe: Pipeline, method: str | None) -> Method:
    """The method asked for, or the model's own.

    Raises:
        SettingError: no such method.
        ModelError: one that this model cannot do.
    """
    if method not in (None, *get_args(Method)):
        raise SettingError(f"`method` is {method!r}", expected=" or ".join(get_args(Method)))
    if pipe.unet.config.inpaints:
        if method == "blend":
            raise ModelError(
                f"{pipe.source.name} is an inpainting model, whose UNet must be given the mask",
                expected="`method` inpaint or both",
            )
        return "both" if method == "both" else "inpaint"
    if method in ("inpaint", "both"):
        raise ModelError(
            f"{pipe.source.name} is a text-to-image model, whose UNet reads no mask",
            expected=f"an inpainting model for `method={method}`",
            fix="leave out `method` to blend",
        )
    return "blend"


def check_choices(background: str, history: str, rounding: str) -> None:
    for name, value, choices in (
        ("background", background, get_args(Background)),
        ("history", history, get_args(KeepOrDrop)),
        ("rounding", rounding, get_args(Rounding)),
    ):
        if value not in choices:
            raise SettingError(f"`{name}` is {value!r}", expected=" or ".join(choices))


def check_numbers(feather: float, shrink: int, decoder_steps: int) -> None:
    validation.check_number("feather", feather, 0.0, 1000.0)
    for name, value, limit in (
        ("shrink", shrink, MAX_SHRINK),
        ("decoder_steps", decoder_steps, MAX_DECODER_STEPS),
    ):
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or not 0 <= value <= limit:
            raise SettingError(f"`{name}` is {value!r}", expected=f"a whole number, 0 to {limit}")


def check_combination(pipe: Pipeline, method: Method, history: KeepOrDrop, shrink: int) -> None:
    """Raise a SettingError for what has no effect with the method, or breaks the scheduler."""
    pipe.require_denoising("blending")
    if method == "inpaint" and (history == "drop" or shrink):
        asked = "`history` is 'drop'" if history == "drop" else f"`shrink` is {shrink}"
        raise SettingError(
            f"{asked}, and the method inpaint does not blend between the steps",
            fix="leave it out, or use `method=both`",
        )
    if history == "drop" and pipe.scheduler.needs_history:
        raise SettingError(
            f"{pipe.scheduler.name} needs its history, which holds the latents that a step started "
            "from",
            fix="use `history=keep`, or another `scheduler`",
        )


def first_step(steps: int, strength: float, rounding: Rounding) -> int:
    """The step index at which the run starts; at least one step is left."""
    if rounding == "nearest":
        return start_index(steps, strength)
    return min(int(steps * (1 - validation.check_strength(strength))), steps - 1)
