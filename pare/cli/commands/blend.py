"""`pare blend`: blended latent diffusion, and inpainting models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pare.cli.embedding_options import embedding_options
from pare.cli.grouped_help import option, options
from pare.cli.image_run import ImageRun, image_command
from pare.cli.option_types import InputFile, checked, not_in_recipe, noted, number
from pare.cli.options import (
    edit_run_options,
    image_argument,
    image_size_option,
    memory_options,
    prompt_argument,
)
from pare.cli.terminal import progress
from pare.runtime import validation

if TYPE_CHECKING:
    from PIL import Image

    from techniques.blended import Difference, Rank

background_options = options(
    "Outside the mask",
    option("--background", type=click.Choice(["paste", "poisson", "decoder", "latent"]),
           default="paste", show_default=True,
           help="IMAGE's pixels, with a soft seam inside the mask (paste) or with the edit's "
                "gradients (poisson); the output of a decoder fine-tuned to IMAGE (decoder); or of "
                "the VAE (latent)."),
    option("--decoder-steps", type=click.IntRange(0, 10_000), default=75, show_default=True,
           help="Fine-tuning steps of --background decoder."),
    option("--feather", type=float, default=4.0, show_default=True,
           callback=number("feather", 0.0, 1000.0),
           help="Width in pixels of paste's seam; 0: hard."),
    option("--cover", is_flag=True,
           help="Edit every latent that the mask touches. Default: those at whose centre it is."),
)  # fmt: skip

blend_options = options(
    "Blending",
    option("--mask", required=True, type=InputFile(), usual=True,
           help="An image of IMAGE's shape, of any size and mode: white is edited, black is kept."),
    option("--invert-mask", is_flag=True, usual=True, help="Black is edited, white is kept."),
    option("--strength", type=float, callback=checked(validation.check_strength), usual=True,
           aliases=("--denoising-strength",),
           help="How much of the schedule runs, above 0 to 1. Default: 0.95; 1 with an inpainting "
                "model."),
    option("--method", type=click.Choice(["blend", "inpaint", "both"]),
           help="Replace the background with the noised IMAGE before each step (blend), give an "
                "inpainting model the mask and the masked IMAGE (inpaint), or both. Default: what "
                "the model is made for."),
    option("--shrink", type=click.IntRange(0, 16), default=0, show_default=True,
           help="For thin masks: start with a mask that is larger by this many latents, and shrink "
                "it over the schedule."),
    option("--history", type=click.Choice(["keep", "drop"]), default="keep", show_default=True,
           help="Whether a multistep solver keeps its earlier predictions across a blend."),
    option("--rounding", type=click.Choice(["nearest", "up"]), default="nearest",
           show_default=True, help="How steps x strength becomes a whole number."),
    option("--sample", is_flag=True,
           help="Encode IMAGE as a sample of the VAE's posterior. Default: its mode."),
    option("--rank", metavar="judge|FOLDER", **not_in_recipe("rank"),
           help="Of several seeds name the image that shows PROMPT best: by the judge of the "
                "built-in world, or by the CLIP model in FOLDER within the mask's rectangle."),
)  # fmt: skip

# The arguments that the technique has under the same names.
SETTINGS = (
    "method", "strength", "size", "background", "decoder_steps", "feather", "shrink", "cover",
    "history", "rounding", "sample",
)  # fmt: skip

EXAMPLES = (
    'pare blend photo.jpg "a red car" --mask mask.png --out car.png',
    'pare blend photo.jpg "a tree" --mask mask.png --count 4 --background poisson --out trees.png',
    'pare blend photo.jpg "a road with clouds" --mask mask.png --count 4 --rank judge',
    'pare blend photo.jpg "a tree" --mask mask.png --model inpainting.safetensors --size 512x512',
)


@image_command(section="edit", examples=EXAMPLES)
@image_argument
@prompt_argument
@blend_options
@background_options
@image_size_option
@edit_run_options
@embedding_options
@memory_options
def blend(image: Path, mask: Path, invert_mask: bool, prompt: str, **given: Any) -> None:
    """Blended latent diffusion: paint PROMPT into the masked part of IMAGE, keep the rest.

    Before every step the latents outside the mask are replaced by IMAGE's, noised to the step's
    noise level (arXiv:2206.02779). With an inpainting model the UNet also reads the mask and the
    masked IMAGE.
    """
    from pare.io.images import fit, load_image, load_mask
    from techniques.blended import prepare_mask

    run = ImageRun.start()
    input_image = load_image(image)
    marked = prepare_mask(load_mask(mask, invert_mask), input_image.size)
    rank = None if run.rerun else ranking(prompt, marked)

    from techniques import blended

    pipe = run.load_pipeline(blended.PREFERRED_SCHEDULER, [prompt, given["negative"]])
    run.size(pipe, fit(input_image, given["size"])[0].size)
    result = blended.blend(
        pipe, input_image, marked, prompt, run.seeds,
        rank=rank, progress=progress(), batch=given["batch"], tile=given["tile"], **run.sampling,
        **{name: given[name] for name in SETTINGS},
    )  # fmt: skip
    run.note(batch=result.plan.batch, tile=result.plan.tile)
    judged = [run.judge(pipe, one, before=input_image, prompt=prompt) for one in result]
    run.write(pipe, result.images, judged, **result.report())
    if result.outside and result.vae_alone:
        for path, difference in zip(run.paths, result.outside, strict=True):
            run.say(f"{path}, outside the mask: {difference_in_words(difference)}")
        alone = difference_in_words(result.vae_alone)
        run.say(f"(through the VAE and back, without an edit: {alone})")

    if result.scores:
        best, *others = [f"{run.paths[k]} ({result.scores[k]:.3g})" for k in result.order]
        rest = f", then {', '.join(others)}" if others else ""
        run.say(f"{best} shows {prompt!r} best by {noted('rank')}{rest}")


def ranking(prompt: str, mask: Image.Image) -> Rank | None:
    """What ranks the images, if --rank is given; loaded here, so that it fails before the model.

    Raises:
        LossError: a prompt that says nothing that the judge knows.
        ModelError, ConfigError, WeightsError: the folder holds no whole CLIP.
    """
    who = noted("rank")
    if who is None:
        return None
    from techniques.blended import at_mask, by_loss

    if who == "judge":
        from roads.judge.judge import load_judge
        from roads.judge.judge_loss import caption_loss

        loss = caption_loss(load_judge(), prompt)
        return by_loss(lambda _: loss)
    from techniques.loss_guidance.clip_loss import clip_loss

    likeness = clip_loss(Path(who), prompt)
    return at_mask(by_loss(lambda _: likeness), mask)


def difference_in_words(difference: Difference) -> str:
    if difference.largest == 0:
        return "IMAGE's pixels, exactly"
    return f"{difference.psnr:.1f} dB from IMAGE, at most {difference.largest} of 255"
