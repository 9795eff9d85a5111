"""`pare invert`: the noise that an image would have come from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pare.cli.examples import examples
from pare.cli.options import (
    checked,
    image_argument,
    model_options,
    options,
    output_options,
    prompt_argument,
    revision_option,
    scheduler_options,
    tokenizer_option,
)
from pare.cli.run_command import ImageCommand, Run, load_pipeline, warn_of_size
from pare.cli.terminal import progress
from pare.io.whole_files import check_output
from pare.runtime import validation

if TYPE_CHECKING:
    from techniques.inversion import ReportCard

METHODS = (
    "ddim", "fixed-point", "null-text", "negative", "proximal", "direct", "edit-friendly", "edict",
)  # fmt: skip

invert_options = options(
    click.option("--method", type=click.Choice(METHODS), default="ddim", show_default=True,
                 help="Plain DDIM, or one that mends it: docs/inversion.md compares them."),
    click.option("--steps", type=int, default=50, show_default=True,
                 callback=checked(validation.check_steps), help="Steps each way, 1 to 1000."),
    click.option("--guidance", type=float, callback=checked(validation.check_guidance),
                 help="At which PROMPT is to give IMAGE back; the method's usual if not given."),
)  # fmt: skip

EXAMPLES = examples(
    'pare invert photo.jpg "a road in the mountains" --out again.png',
    'pare invert photo.jpg "a road in the mountains" --method edict --guidance 3 --out again.png',
)


@click.command(cls=ImageCommand, epilog=EXAMPLES)
@image_argument
@prompt_argument
@invert_options
@scheduler_options
@model_options
@revision_option
@tokenizer_option
@output_options
def invert(image: Path, prompt: str, **given: Any) -> None:
    """Find the noise that IMAGE, which shows PROMPT, would have come from.

    Writes the image that it gives back, and beside it NAME.safetensors with the latents of
    every step, for `techniques.inversion.sample` and another prompt. Says how near the
    image is, and whether the noise is noise. Of the methods edit-friendly alone draws noise
    (--seed). The scheduler is ddim, which can be inverted.
    """
    from pare.io.images import load_image

    run = Run.plan()
    files = [path.with_suffix(".safetensors") for path in run.paths]
    if run.again is None:
        for file in files:
            check_output(file, force=run.force)
    input_image = load_image(image)

    from techniques import inversion

    pipe = load_pipeline(given, inversion.PREFERRED_SCHEDULER)
    warn_of_size(pipe, input_image.size, "scale it down first")
    results = [
        inversion.invert_and_report(
            pipe, input_image, prompt, method=given["method"], steps=given["steps"],
            guidance=given["guidance"], seed=seed, progress=progress(),
        )
        for seed in run.seeds
    ]  # fmt: skip
    if run.again is None:
        for file, (inverted, _, _) in zip(files, results, strict=True):
            inverted.save(file, force=run.force)
    cards = [card for _, _, card in results]
    run.write(
        pipe,
        [again[0] for _, again, _ in results],
        inversions=[str(file) for file in files],
        report=[card.report() for card in cards],
    )
    for path, file, card in zip(run.paths, files, cards, strict=True):
        run.say(f"{path}: {in_words(card)}")
        run.say(f"{file}: the inversion")


def in_words(card: ReportCard) -> str:
    found, noise = card.reconstruction, card.noise
    return (
        f"{found.psnr:.1f} dB from IMAGE, SSIM {found.ssim:.3f} (through the VAE alone "
        f"{card.vae_alone.psnr:.1f} dB, {card.vae_alone.ssim:.3f}); the noise has mean "
        f"{noise.mean:.2f}, std {noise.std:.2f}, autocorrelation {noise.autocorrelation:.2f}; "
        f"{card.inverting.evaluations + card.sampling.evaluations} UNet evaluations"
    )
