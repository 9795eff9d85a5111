"""Edit a real image by a prompt: an inversion, and an edit while sampling from it.

edited = edit(pipe, image, "a sunny road in the forest", "a snowy road in the forest")
edited.save("snowy.png")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from torch import Tensor

from pare.errors import InversionError, SettingError
from pare.io.images import ImageLike, as_image, fit_to_multiple, to_pil, to_tensor
from pare.pipeline import Pipeline, Progress
from pare.results import Images
from pare.runtime import validation
from pare.runtime.calls import checked_keywords
from pare.schedulers import start_index
from techniques import prompt_to_prompt as p2p
from techniques.blended import Background, Canvas, Difference, difference
from techniques.blended.background import decode_on_canvas
from techniques.blended.tuned_decoder import TUNING_STEPS
from techniques.erasure import (
    PRESETS,
    Concept,
    ErasureGuidance,
    Gates,
    check_concepts,
    check_gates,
)
from techniques.inversion import edict
from techniques.inversion.invert_image import check_fit, embedded, invert, sample
from techniques.inversion.inverted import Inverted
from techniques.inversion.inverted_sampling import sample_latents
from techniques.inversion.latent_trace import Method
from techniques.inversion.report_card import Likeness, likeness, rms
from techniques.prompt_to_prompt.attention_edit import COARSE, EVERYWHERE

if TYPE_CHECKING:
    from PIL import Image

Kind = Literal["p2p", "resample", "blend", "erase"]

# The inversions that each edit can be combined with, the default first.  Left out is what has
# no effect of its own: `direct` keeps the source's row, which helps a target through attention
# alone; `proximal` decides where guidance acts, as the gates of erasure do; and the gates'
# momentum cannot follow the two latents of `edict`.
EDIT_METHODS: Mapping[Kind, tuple[Method, ...]] = {
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

# The default guidance of an edit.
EDIT_GUIDANCE: Mapping[Method, float] = {
    "ddim": 7.5, "fixed-point": 7.5, "null-text": 7.5, "negative": 7.5, "proximal": 7.5,
    "direct": 7.5, "edit-friendly": 9.0, "edict": edict.GUIDANCE,
}  # fmt: skip

# The default strength, where it is not 1.  edit-friendly: arXiv:2304.06140, sec. 5 skips 36
# steps of 100, and 12 together with prompt-to-prompt.
EDIT_STRENGTH: Mapping[tuple[Kind, Method], float] = {
    ("resample", "edit-friendly"): 0.64,
    ("erase", "edit-friendly"): 0.64,
    ("blend", "edit-friendly"): 0.88,
    ("p2p", "edit-friendly"): 0.88,
}

# Inversions whose guidance is also that of the edit: they were optimised, or solved, for it.
SAME_GUIDANCE = ("null-text", "edict")

SAME_IMAGE = 0.1
"""The root mean square difference up to which two latents are taken to be of one image: devices
and dtypes round differently, and other images differ by about 1."""


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Edited(Images):
    """An edited image, at the size of the original, and how well the original was inverted."""

    latents: Tensor  # (1, 4, h, w), scaled, float32
    inverted: Inverted
    reconstruction: Image.Image | None
    """The inversion's reconstruction under the source prompt; None with `reconstruct=False`."""
    reconstructed: Likeness | None  # of the reconstruction to the image
    vae_alone: Likeness  # of the VAE's round trip: the most that any inversion can reach
    outside: Difference | None  # to the image, outside the mask; None without a mask
    tables: list[p2p.TokenMap]
    """Of prompt-to-prompt: the source tokens whose attention weights each target token takes."""

    def report(self) -> dict[str, object]:
        """Fit for JSON, which has no infinity: the psnr of equal images is None."""
        return {
            "reconstruction": self.reconstructed and self.reconstructed.report(),
            "vae_alone": self.vae_alone.report(),
            "outside": self.outside and self.outside.report(),
        }


@checked_keywords
def edit(
    pipe: Pipeline,
    image: ImageLike,
    source: str,
    target: str | p2p.Edit,
    *,
    kind: Kind = "p2p",
    tables: Sequence[p2p.TokenMap] | None = None,
    method: Method | None = None,
    inverted: Inverted | None = None,
    steps: int = 50,
    guidance: float | None = None,
    strength: float | None = None,
    seed: int = 0,
    cross_sites: p2p.Sites = EVERYWHERE,
    self_sites: p2p.Sites = COARSE,
    local_blend: p2p.LocalBlend | None = None,
    mask: ImageLike | None = None,
    background: Background = "paste",
    feather: float = 4.0,
    decoder_steps: int = TUNING_STEPS,
    cover: bool = False,
    concepts: Sequence[Concept] = (),
    gates: Gates = PRESETS["sega"],
    reconstruct: bool = True,
    progress: Progress = iter,
) -> Edited:
    """Invert an image, and sample an edit of it.

    Args:
        image: any size, worked at the next multiple of 8 and returned at its own.
        source: a description of the image, as exact as possible.
        target: a description of the edit; for "p2p" an `Edit` may say more.  "erase" may well
            have the source again.
        kind: the edit.  "p2p": with the source's attention.  "resample": by the target prompt
            alone.  "blend": only inside the mask.  "erase": with `concepts` erased.
        tables: of "p2p", as `prompt_to_prompt` has them.
        method: the inversion, one of EDIT_METHODS[kind]; None: the first of these.
        inverted: an earlier inversion of this image; `method`, `steps` and `seed` are its.
        guidance: of the edit; None: the method's default, or the one that `inverted` was made
            for where the two must be equal.
        strength: the fraction of the steps that is sampled anew.  Less keeps more.
        cross_sites, self_sites, local_blend: of "p2p", as `prompt_to_prompt` has them.
            Fractions of the steps are of all steps, those that `strength` skips included.
        mask: white = may change.  Needed by "blend"; "p2p" and "erase" respect it, too.
        background: of the result outside the mask, with `feather` and `decoder_steps` as in
            `techniques.blended.blend`.
        cover: edit every latent pixel that the mask touches, not those whose centre it covers.
        concepts, gates: of "erase", as in `techniques.erasure.erase`.
        reconstruct: also reconstruct the image.

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
    original, canvas, grid = as_image(image), None, None
    if mask is not None:
        canvas = Canvas.prepare(original, mask, factor=pipe.vae.config.factor, cover=cover)
        grid = canvas.grid.to(pipe.device)
    if tables is None:
        tables = p2p.token_maps(pipe, source, [target]) if kind == "p2p" else []

    if inverted is None:
        inverted = invert(
            pipe, original, source, method=method, steps=steps, seed=seed,
            guidance=guidance if method in SAME_GUIDANCE else None, progress=progress,
        )  # fmt: skip
    else:
        check_inverted(pipe, inverted, original, source)

    trace = inverted.trace
    injection, erasure = None, None
    if kind == "p2p":
        injection = p2p.prepare(
            tables, [target], steps, (trace.latents.shape[2], trace.latents.shape[3]),
            device=pipe.device, cross_sites=cross_sites, self_sites=self_sites,
            blend=p2p.within_mask(local_blend, grid),
        )  # fmt: skip
    if kind == "erase":
        erasure = ErasureGuidance(pipe, concepts, gates, guidance)
    prompts = embedded(
        pipe, inverted, [source, target.prompt] if kind == "p2p" else [target.prompt]
    )
    if method == "edict":
        latents = edict.sample_latents(
            pipe, trace, prompts, guidance,
            control=injection, mask=grid, skip=skip, progress=progress,
        ).float().to(pipe.device)  # fmt: skip
    else:
        latents = sample_latents(
            pipe, trace, prompts, guidance, method=method,
            keep_source=kind == "p2p" and method in ("direct", "edit-friendly"),
            injection=injection, erasure=erasure, mask=None if kind == "p2p" else grid,
            skip=skip, progress=progress,
        )  # fmt: skip

    latents = latents[-1:].float()
    if canvas is None:
        result = decoded(pipe, latents, original)
    else:
        (result,) = decode_on_canvas(
            pipe, canvas, latents, background,
            feather=feather, decoder_steps=decoder_steps, progress=progress,
        )  # fmt: skip
    again = sample(pipe, inverted, progress=progress)[0] if reconstruct else None
    through_vae = decoded(pipe, trace.source.to(pipe.device).float(), original)
    return Edited(
        images=[result],
        seeds=[seed] if method == "edit-friendly" else (),
        latents=latents,
        before=original,
        inverted=inverted,
        reconstruction=again,
        reconstructed=None if again is None else likeness(original, again),
        vae_alone=likeness(original, through_vae),
        outside=outside(canvas, result),
        tables=list(tables),
    )


def decoded(pipe: Pipeline, latents: Tensor, original: Image.Image) -> Image.Image:
    """The image of latents (1, 4, h, w), at the original's size."""
    return to_pil(pipe.decode(latents))[0].crop((0, 0, original.width, original.height))


def outside(canvas: Canvas | None, image: Image.Image) -> Difference | None:
    """How far an edited image is from the original where the mask says keep."""
    if canvas is None or not canvas.keep.any():
        return None
    return difference(canvas.original, image, canvas.keep)


# --- which settings go together -----------------------------------------------------------


def usual_guidance(method: Method, inverted: Inverted | None = None) -> float:
    """The default guidance of an edit by `method`, or with an earlier inversion."""
    if inverted is not None and method in SAME_GUIDANCE:
        return inverted.guidance
    return EDIT_GUIDANCE[method]


def usual_strength(kind: Kind, method: Method) -> float:
    """The default strength of an edit."""
    return EDIT_STRENGTH.get((kind, method), 1.0)


def check_kind(kind: Kind, method: str | None, inverted: Inverted | None) -> Method:
    """The inversion method of an edit of this kind; None as `method` is the default.

    Raises:
        SettingError: no such kind or method, or one that cannot be combined.
    """
    if kind not in EDIT_METHODS:
        raise SettingError(f"`kind` is {kind!r}", expected=", ".join(EDIT_METHODS))
    methods = EDIT_METHODS[kind]
    if inverted is not None:
        if method not in (None, inverted.method):
            raise SettingError(
                f"`method` is {method!r}, and the inversion was made with {inverted.method!r}",
                fix="leave out `method`",
            )
        method = inverted.method
    if method is None:
        return methods[0]
    for known in get_args(Method):
        if method == known and known in methods:
            return known
    if method in get_args(Method):
        raise SettingError(
            f"{method} inversion has no effect on the edit {kind!r}",
            expected=f"one of {', '.join(methods)}",
        )
    raise SettingError(f"`method` is {method!r}", expected=", ".join(methods))


def check_options(
    kind: Kind,
    method: Method,
    mask: ImageLike | None,
    concepts: Sequence[Concept],
    gates: Gates,
    local_blend: p2p.LocalBlend | None,
) -> None:
    """Raise a SettingError for a setting that the edit lacks, or that would have no effect."""
    if kind == "blend" and mask is None:
        raise SettingError("the edit 'blend' needs `mask`", fix="give one, white = may change")
    if kind == "resample" and mask is not None:
        raise SettingError("the edit 'resample' does not use `mask`", fix="use `kind=blend`")
    if kind == "erase":
        check_concepts(concepts)
        check_gates(gates)
    elif concepts:
        raise SettingError(f"the edit {kind!r} erases no concepts", fix="use `kind=erase`")
    if kind != "p2p" and local_blend is not None:
        raise SettingError(
            f"the edit {kind!r} has no local blend by words", fix="use `kind=p2p`, or give `mask`"
        )
    if method == "edict" and local_blend is not None:
        raise SettingError(
            "edict samples two latents, which a local blend by words cannot follow",
            fix="use another `method`, or give `mask`",
        )


def check_inverted(pipe: Pipeline, inverted: Inverted, image: Image.Image, source: str) -> None:
    """Raise an InversionError unless the inversion is of this image, prompt and model."""
    check_fit(pipe, inverted)
    if inverted.prompt != source:
        raise InversionError(
            f"the inversion is of {inverted.prompt!r}, and the source's prompt is {source!r}",
            fix="leave out `source`, or invert again",
        )
    if image.size != (inverted.width, inverted.height):
        raise InversionError(
            f"the image is {image.width} x {image.height}, and the inversion's was "
            f"{inverted.width} x {inverted.height}"
        )
    worked, _ = fit_to_multiple(image, pipe.vae.config.factor)
    apart = rms(pipe.encode(to_tensor(worked)).cpu() - inverted.trace.source.cpu().float())
    if apart > SAME_IMAGE:
        raise InversionError(
            f"the inversion is of another image (its latents are {apart:.2f} from this one's)",
            fix="give the image that was inverted as `image`",
        )
