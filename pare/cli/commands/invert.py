"""`pare invert`: the latents from which an image would be sampled."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pare.cli.grouped_help import option, options
from pare.cli.image_run import ImageRun, image_command
from pare.cli.option_types import checked
from pare.cli.options import (
    image_argument,
    inversion_scheduler_options,
    model_options,
    output_options,
    prompt_argument,
)
from pare.cli.terminal import progress
from pare.runtime import validation

if TYPE_CHECKING:
    from techniques.inversion import ReportCard
    from techniques.inversion.report_card import Likeness

METHODS = (
    "ddim", "fixed-point", "null-text", "negative", "proximal", "direct", "edit-friendly", "edict",
)  # fmt: skip

invert_options = options(
    "Inversion",
    option("--method", type=click.Choice(METHODS), default="ddim", show_default=True, usual=True,
           help="DDIM inversion, or a method that corrects it: docs/inversion.md compares them."),
    option("--steps", type=int, default=50, show_default=True, usual=True,
           aliases=("--num-inference-steps",), callback=checked(validation.check_steps),
           help="Steps each way, 1 to 1000."),
    option("--guidance", type=float, callback=checked(validation.check_guidance), usual=True,
           aliases=("--cfg", "--cfg-scale", "--guidance-scale"),
           help="Guidance scale at which PROMPT is to reconstruct IMAGE. Default: the method's."),
)  # fmt: skip

EXAMPLES = (
    'pare invert photo.jpg "a road in the mountains" --out again.png',
    'pare invert photo.jpg "a road in the mountains" --method edict --guidance 3 --out again.png',
)


@image_command(section="edit", examples=EXAMPLES)
@image_argument
@prompt_argument
@invert_options
@inversion_scheduler_options
@model_options
@output_options
def invert(image: Path, prompt: str, **given: Any) -> None:
    """Inversion: find the noise from which PROMPT, which describes IMAGE, samples IMAGE.

    Writes the reconstruction, and beside it NAME.safetensors with the latents of every step, for
    `techniques.inversion.sample` and other prompts. Says how near the reconstruction is, and
    whether the noise is Gaussian. Only edit-friendly draws noise (--seed).
    """
    from pare.io.images import load_image

    run = ImageRun.start(beside=[".safetensors"])
    input_image = load_image(image)

    from techniques import inversion

    pipe = run.load_pipeline(inversion.PREFERRED_SCHEDULER)
    run.size(pipe, input_image.size)
    results = [
        inversion.invert_and_report(
            pipe, input_image, prompt, method=given["method"], steps=given["steps"],
            guidance=given["guidance"], seed=seed, progress=progress(),
        )
        for seed in run.seeds
    ]  # fmt: skip
    files = [path.with_suffix(".safetensors") for path in run.paths]
    if run.rerun is None:
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
        run.say(f"{path}: {card_in_words(card)}")
        run.say(f"{file}: the inversion")


def card_in_words(card: ReportCard) -> str:
    noise = card.noise
    return (
        f"the reconstruction is at {likeness_in_words(card.reconstruction)} (the VAE alone at "
        f"{likeness_in_words(card.vae_alone)}); the noise has mean {noise.mean:.2f}, std "
        f"{noise.std:.2f}, autocorrelation {noise.autocorrelation:.2f} (Gaussian: 0, 1, 0); "
        f"{card.inverting.evaluations + card.sampling.evaluations} UNet evaluations"
    )


def likeness_in_words(found: Likeness) -> str:
    return f"{found.psnr:.1f} dB, SSIM {found.ssim:.3f}"
