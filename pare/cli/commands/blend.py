"""`pare blend`: what a mask marks, painted anew."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pare.cli.examples import examples
from pare.cli.options import (
    InputFile,
    aside,
    checked,
    image_argument,
    memory_options,
    model_options,
    noted,
    options,
    output_options,
    prompt_argument,
    revision_option,
    sampling_options,
    scheduler_options,
    tokenizer_option,
)
from pare.cli.run_command import (
    ImageCommand,
    Run,
    load_pipeline,
    sampling,
    warn_of_size,
)
from pare.cli.terminal import progress
from pare.cli.text_options import noting_words, read_edits, text_options, under_edits
from pare.runtime import validation

if TYPE_CHECKING:
    from PIL import Image

    from techniques.blended import Difference, Rank

blend_options = options(
    click.option("--mask", required=True, type=InputFile(),
                 help="White is edited, black is kept; of IMAGE's shape, in any size and mode."),
    click.option("--invert-mask", is_flag=True, help="Black is edited, white is kept."),
    click.option("--method", type=click.Choice(["blend", "inpaint", "both"]),
                 help="Put IMAGE back before each step (blend), or give an inpainting model the "
                      "mask and the masked IMAGE (inpaint), or both; as the model is if not "
                      "given."),
    click.option("--strength", type=float, callback=checked(validation.check_strength),
                 help="How much of the timestep schedule runs: 1 forgets what was under the mask. "
                      "0.95 if not given; 1 with an inpainting model."),
    click.option("--size", metavar="WxH", callback=checked(validation.parse_size),
                 help="Work at this size (multiples of 8); IMAGE's own if not given."),
    click.option("--background", type=click.Choice(["paste", "poisson", "decoder", "latent"]),
                 default="paste", show_default=True,
                 help="Outside the mask: IMAGE's pixels, exactly, with a soft seam inside it "
                      "(paste) or with the edit's gradients (poisson); what a decoder gives that "
                      "is tuned to IMAGE (decoder); or what the VAE makes of them (latent)."),
    click.option("--decoder-steps", type=click.IntRange(0, 10_000), default=75,
                 show_default=True, help="How long the decoder is tuned."),
    click.option("--feather", type=float, default=4.0, show_default=True,
                 callback=checked(lambda width: validation.check_number("feather", width, 0, 1000)),
                 help="Width of paste's seam in pixels; 0: hard."),
    click.option("--shrink", type=click.IntRange(0, 16), default=0, show_default=True,
                 help="For thin masks: begin with one that is larger by so many latent pixels."),
    click.option("--cover", is_flag=True, help="Edit every latent pixel that the mask touches."),
    click.option("--history", type=click.Choice(["keep", "drop"]), default="keep",
                 show_default=True, help="Whether a multistep solver remembers across a blend."),
    click.option("--rounding", type=click.Choice(["nearest", "up"]), default="nearest",
                 show_default=True, help="Of steps x strength to whole steps."),
    click.option("--sample", is_flag=True, help="Draw IMAGE's latents from the VAE's posterior."),
    click.option("--rank", metavar="judge|FOLDER", expose_value=False, callback=aside("rank"),
                 help="With several seeds: say which image shows PROMPT best, by the built-in "
                      "world's judge, or by the CLIP model in FOLDER, which sees the rectangle "
                      "around the mask."),
)  # fmt: skip

# What `blend` calls as the options are called.
KNOBS = (
    "method", "strength", "size", "background", "decoder_steps", "feather", "shrink", "cover",
    "history", "rounding", "sample",
)  # fmt: skip

EXAMPLES = examples(
    'pare blend photo.jpg "a red car" --mask mask.png --out car.png',
    'pare blend photo.jpg "a tree" --mask mask.png --count 4 --background poisson --out trees.png',
    'pare blend photo.jpg "a road with clouds" --mask mask.png --count 4 --rank judge',
    'pare blend photo.jpg "a tree" --mask mask.png --model inpainting.safetensors --size 512x512',
)


@click.command(cls=ImageCommand, epilog=EXAMPLES)
@image_argument
@prompt_argument
@blend_options
@sampling_options
@text_options
@memory_options
@scheduler_options
@model_options
@revision_option
@tokenizer_option
@output_options
def blend(image: Path, mask: Path, invert_mask: bool, prompt: str, **given: Any) -> None:
    """Repaint what the mask marks in IMAGE as PROMPT says; keep the rest.

    The scheduler is dpm++2m with Karras sigmas if none is given.
    """
    from pare.io.images import fit, load_image, load_mask
    from techniques.blended import prepare_mask

    run, edits = Run.plan(), read_edits(given)
    input_image = load_image(image)
    marked = prepare_mask(load_mask(mask, invert_mask), input_image.size)
    rank = None if run.again else ranking(prompt, marked)

    from techniques import blended

    pipe = under_edits(
        load_pipeline(given, blended.PREFERRED_SCHEDULER), edits, [prompt, given["negative"]]
    )
    width, height = fit(input_image, given["size"])[0].size
    warn_of_size(pipe, (width, height), "--size works smaller")
    result = blended.blend(
        pipe, input_image, marked, prompt, run.seeds,
        rank=rank, progress=progress(), batch=given["batch"], tile=given["tile"],
        **sampling(given), **{name: given[name] for name in KNOBS},
    )  # fmt: skip
    chosen = {"batch": result.plan.batch, "tile": result.plan.tile}
    run = noting_words(run.noting(**chosen), given, edits)
    run.write(pipe, result.images, **result.report())
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
    """What is to judge the images, if anything; ready, so that it fails before the model loads.

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
