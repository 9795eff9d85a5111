"""From an image and two prompts, what it shows and what it is to show, to the edited image.

edited = edit(pipe, image, "a sunny road in the forest", "a snowy road in the forest")
edited.image.save("snowy.png")
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from torch import Tensor

from pare.errors import InversionError, SettingError
from pare.io.images import fit_to_multiple, to_pil, to_tensor
from pare.pipeline import Pipeline, Progress
from pare.runtime import validation
from pare.schedulers import start_index
from techniques import inversion
from techniques import prompt_to_prompt as p2p
from techniques.blended import Background, Canvas, Difference, difference
from techniques.blended.background import decode as decode_on
from techniques.blended.tuned_decoder import TUNING_STEPS
from techniques.edit.edit_loops import (
    blend_latents,
    erase_latents,
    prompt_to_prompt_latents,
    resample_latents,
)
from techniques.edit.sampling_back import Way
from techniques.erasure import PRESETS, Concept, Gates, check_concepts, check_gates
from techniques.inversion import Inverted, Method, edict
from techniques.inversion.invert_image import check_fit
from techniques.inversion.report_card import Likeness, likeness, rms
from techniques.prompt_to_prompt.attention_edit import COARSE, EVERYWHERE

if TYPE_CHECKING:
    from PIL import Image

Kind = Literal["p2p", "resample", "blend", "erase"]

PREFERRED_SCHEDULER = inversion.PREFERRED_SCHEDULER

# Which inversion goes with which edit.  Left out is what would do nothing of its own: `direct`
# keeps the source's row, which helps a target through attention alone; `proximal` decides where
# guidance acts, which is what the gates of erasure are for; and gates that remember cannot
# follow the two latents of `edict`.
METHODS: Mapping[Kind, tuple[Method, ...]] = {
    "p2p": (
        "direct", "ddim", "fixed-point", "null-text", "negative", "proximal", "edit-friendly",
        "edict",
    ),
    "resample": (
        "edit-friendly", "ddim", "fixed-point", "null-text", "negative", "proximal", "edict",
    ),
    "blend": (
        "ddim", "fixed-point", "null-text", "negative", "proximal", "edit-friendly", "edict",
    ),
    "erase": ("edit-friendly", "ddim", "fixed-point", "null-text", "negative"),
}  # fmt: skip

USUAL_METHOD: Mapping[Kind, Method] = {kind: methods[0] for kind, methods in METHODS.items()}

# At which guidance the edit is made, if nobody says otherwise.
GUIDANCE: Mapping[Method, float] = {
    "ddim": 7.5, "fixed-point": 7.5, "null-text": 7.5, "negative": 7.5, "proximal": 7.5,
    "direct": 7.5, "edit-friendly": 9.0, "edict": edict.GUIDANCE,
}  # fmt: skip

# How much of the way back is walked anew.  edit-friendly: arXiv:2304.06140, sec. 5 leaves out
# 36 steps of 100, and 12 together with prompt-to-prompt.
STRENGTH: Mapping[tuple[Kind, Method], float] = {
    ("resample", "edit-friendly"): 0.64,
    ("erase", "edit-friendly"): 0.64,
    ("blend", "edit-friendly"): 0.88,
    ("p2p", "edit-friendly"): 0.88,
}

# An inversion for which this guidance is also that of the edit: it was trained, or solved, for it.
SAME_GUIDANCE = ("null-text", "edict")

SAME_IMAGE = 0.1
"""Root mean square of two latents, whose own is about 1, up to which they are one image's:
devices and number types round differently, and other images are further."""


@dataclass(frozen=True)
class Edited:
    """An edited image, and how well the original was understood."""

    image: Image.Image  # RGB, of the size of the image that was edited
    latents: Tensor  # (1, 4, h, w), scaled, float32
    inverted: Inverted
    reconstruction: Image.Image | None
    """What the inversion gives back under the source's prompt; None if it was not asked for."""
    reconstructed: Likeness | None  # to the image
    vae_alone: Likeness  # of the VAE's round trip: the most that any inversion can reach
    outside: Difference | None  # to the image, where the mask says keep; None without a mask
    tables: list[p2p.TokenMap]  # which word feeds which, of prompt-to-prompt

    def report(self) -> dict[str, Any]:
        """Fit for JSON, which has no infinity: the psnr of equal images is None."""

        def of(found: Likeness | None) -> dict[str, float | None] | None:
            if found is None:
                return None
            return {"psnr": finite(found.psnr), "ssim": found.ssim}

        return {
            "reconstruction": of(self.reconstructed),
            "vae_alone": of(self.vae_alone),
            "outside": self.outside and self.outside.report(),
        }


def edit(
    pipe: Pipeline,
    image: Image.Image,
    source: str,
    target: str | p2p.Edit,
    *,
    kind: Kind = "p2p",
    method: Method | None = None,
    inverted: Inverted | None = None,
    steps: int = 50,
    guidance: float | None = None,
    strength: float | None = None,
    seed: int = 0,
    cross_sites: p2p.Sites = EVERYWHERE,
    self_sites: p2p.Sites = COARSE,
    local_blend: p2p.LocalBlend | None = None,
    mask: Image.Image | None = None,
    background: Background = "paste",
    feather: float = 4.0,
    decoder_steps: int = TUNING_STEPS,
    cover: bool = False,
    concepts: Sequence[Concept] = (),
    gates: Gates = PRESETS["sega"],
    reconstruct: bool = True,
    progress: Progress = iter,
) -> Edited:
    """Invert an image, and come back to another one.

    Args:
        image: any size, worked at the next multiple of 8 and handed back at its own.
        source: what it shows, as well as can be said.
        target: what it is to show; for "p2p" an `Edit` may say more of how.  "erase" may well
            have the source again.
        kind: the edit.  "p2p": with the source's attention.  "resample": nothing but the other
            words.  "blend": only inside the mask.  "erase": pushed away from `concepts`.
        method: the inversion, one of METHODS[kind]; None: the kind's usual one.
        inverted: an inversion of this image from before; `method`, `steps` and `seed` are its.
        guidance: of the edit; None: the method's usual, or the one that `inverted` was made for
            where the two must be one.
        strength: how much of the way back is walked anew.  Less keeps more.
        cross_sites, self_sites, local_blend: of "p2p", as `prompt_to_prompt` has them.  Shares
            of the steps are of all, those that `strength` leaves out included: what acts at
            a noise level does not depend on where the way begins.
        mask: white = may change.  Needed by "blend"; "p2p" and "erase" keep to it, too.
        background: what stands outside of the mask in the end, with `feather` and
            `decoder_steps` as in `techniques.blended.blend`.
        cover: every latent that the mask touches may change, not those whose middle it covers.
        concepts, gates: of "erase", as in `techniques.erasure.erase`.
        reconstruct: also make the image again.  (For "p2p" it is there anyway.)

    Raises:
        SettingError: a setting out of range, or of another kind of edit.
        InversionError: `inverted` is of another image, model or prompt.
        ImageError: a mask that marks nothing, or of another shape than the image.
        SchedulerError: a scheduler without an exact inverse.
        ModelError: an inpainting model.
    """
    target = p2p.Edit(target) if isinstance(target, str) else target
    method = check_kind(kind, method, inverted)
    check_options(kind, method, mask, concepts, gates, local_blend)
    validation.check_prompt(source)
    validation.check_prompt(target.prompt)
    guidance = usual_guidance(method, inverted) if guidance is None else guidance
    validation.check_guidance(guidance)
    strength = usual_strength(kind, method) if strength is None else strength
    steps = inverted.trace.steps if inverted else validation.check_steps(steps)
    skip = start_index(steps, strength)
    pipe.require_channels("an edit of this kind")
    canvas = None
    if mask is not None:
        canvas = Canvas.prepare(image, mask, factor=pipe.vae.config.factor, cover=cover)
    tables = p2p.token_maps(pipe, source, [target]) if kind == "p2p" else []

    if inverted is None:
        inverted = inversion.invert(
            pipe, image, source, method=method, steps=steps, seed=seed,
            guidance=guidance if method in SAME_GUIDANCE else None, progress=progress,
        )  # fmt: skip
    else:
        check_inverted(pipe, inverted, image, source)

    grid = None if canvas is None else canvas.grid.to(pipe.device)
    words: tuple[str, ...] = (source, target.prompt) if kind == "p2p" else (target.prompt,)
    prompts = pipe.encode_prompts(words)
    injection = None
    if kind == "p2p":
        shape = inverted.trace.latents.shape
        injection = p2p.prepare(
            tables, [target], steps, (shape[2], shape[3]), device=pipe.device,
            cross_sites=cross_sites, self_sites=self_sites, blend=masked(local_blend, grid),
        )  # fmt: skip

    if method == "edict":
        latents = edict.sample_latents(
            pipe, inverted.trace, prompts, guidance,
            skip=skip, control=injection, mask=grid, progress=progress,
        ).float().to(pipe.device)  # fmt: skip
    else:
        way = Way(pipe, inverted, prompts, guidance, skip=skip)
        if injection is not None:
            latents = prompt_to_prompt_latents(way, injection, progress=progress)
        elif kind == "erase":
            latents = erase_latents(way, concepts, gates, mask=grid, progress=progress)
        elif grid is not None:
            latents = blend_latents(way, grid, progress=progress)
        else:
            latents = resample_latents(way, progress=progress)

    original = image.convert("RGB")
    latents, given = latents[-1:].float(), inverted.trace.source.to(pipe.device).float()
    if canvas is None:
        result = decoded(pipe, latents, original)
    else:
        result = decode_on(
            pipe, canvas, latents, background,
            feather=feather, decoder_steps=decoder_steps, progress=progress,
        )[0]  # fmt: skip
    again = inversion.sample(pipe, inverted, progress=progress).image if reconstruct else None
    return Edited(
        image=result,
        latents=latents,
        inverted=inverted,
        reconstruction=again,
        reconstructed=None if again is None else likeness(original, again),
        vae_alone=likeness(original, decoded(pipe, given, original)),
        outside=outside(canvas, result),
        tables=tables,
    )


def decoded(pipe: Pipeline, latents: Tensor, original: Image.Image) -> Image.Image:
    """The image of the latents (1, 4, h, w), of the original's size."""
    return to_pil(pipe.decode(latents))[0].crop((0, 0, original.width, original.height))


def masked(local_blend: p2p.LocalBlend | None, grid: Tensor | None) -> p2p.LocalBlend | None:
    """The local blend within the user's mask (1, 1, h, w), if there is one.

    A mask alone is sure of its places: it acts from the first step.
    """
    if grid is None:
        return local_blend
    if local_blend is None:
        return p2p.LocalBlend(start=0.0, mask=grid)
    return dataclasses.replace(local_blend, mask=grid)


def outside(canvas: Canvas | None, image: Image.Image) -> Difference | None:
    if canvas is None or not canvas.keep.any():
        return None
    return difference(canvas.original, image, canvas.keep)


def finite(value: float) -> float | None:
    return None if value == float("inf") else value


# --- what goes with what ------------------------------------------------------------------


def usual_guidance(method: Method, inverted: Inverted | None = None) -> float:
    if inverted is not None and method in SAME_GUIDANCE:
        return inverted.guidance
    return GUIDANCE[method]


def usual_strength(kind: Kind, method: Method) -> float:
    return STRENGTH.get((kind, method), 1.0)


def check_kind(kind: Kind, method: str | None, inverted: Inverted | None) -> Method:
    """The method, if it goes with the kind of edit.

    Raises:
        SettingError: it does not, or there is no such thing.
    """
    if kind not in METHODS:
        raise SettingError(f"the edit is {kind!r}", expected=", ".join(METHODS))
    methods = METHODS[kind]
    if inverted is not None:
        if method not in (None, inverted.method):
            raise SettingError(
                f"the method is {method!r}, and the inversion was made with {inverted.method!r}",
                fix="leave the method out",
            )
        method = inverted.method
    if method is None:
        return USUAL_METHOD[kind]
    for known in get_args(Method):
        if method == known and known in methods:
            return known
    if method in get_args(Method):
        raise SettingError(
            f"{method} inversion has nothing to give to the edit {kind!r}",
            expected=f"one of {', '.join(methods)}",
        )
    raise SettingError(f"the method is {method!r}", expected=", ".join(methods))


def check_options(
    kind: Kind,
    method: Method,
    mask: Image.Image | None,
    concepts: Sequence[Concept],
    gates: Gates,
    local_blend: p2p.LocalBlend | None,
) -> None:
    """Raise a SettingError for what an edit of this kind needs and lacks, or would pass over."""
    if kind == "blend" and mask is None:
        raise SettingError("the edit 'blend' has no mask", fix="give one, white = may change")
    if kind == "resample" and mask is not None:
        raise SettingError("the edit 'resample' has no use for a mask", fix="take 'blend'")
    if kind == "erase":
        check_concepts(concepts)
        check_gates(gates)
    elif concepts:
        raise SettingError(f"the edit {kind!r} erases no concepts", fix="take 'erase'")
    if kind != "p2p" and local_blend is not None:
        raise SettingError(
            f"the edit {kind!r} looks at no words to blend by", fix="take 'p2p', or give a mask"
        )
    if method == "edict" and local_blend is not None:
        raise SettingError(
            "a local blend by words is of one latent, and edict has two",
            fix="take another method, or give a mask",
        )


def check_inverted(pipe: Pipeline, inverted: Inverted, image: Image.Image, source: str) -> None:
    """Raise an InversionError unless the inversion is of this image, prompt and model."""
    check_fit(pipe, inverted)
    if inverted.prompt != source:
        raise InversionError(
            f"the inversion is of {inverted.prompt!r}, and the source's prompt is {source!r}",
            fix="leave the source's prompt out, or invert again",
        )
    if image.size != (inverted.width, inverted.height):
        raise InversionError(
            f"the image is {image.width} x {image.height}, and the inversion's was "
            f"{inverted.width} x {inverted.height}"
        )
    worked, _ = fit_to_multiple(image.convert("RGB"), pipe.vae.config.factor)
    apart = rms(pipe.encode(to_tensor(worked)).cpu() - inverted.trace.source.cpu().float())
    if apart > SAME_IMAGE:
        raise InversionError(
            f"the inversion is of another image (its latents are {apart:.2f} from this one's)",
            fix="give the image that was inverted",
        )
