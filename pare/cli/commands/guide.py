"""`pare guide`: loss guidance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pare.cli.embedding_options import embedding_options
from pare.cli.grouped_help import option, options
from pare.cli.image_run import ImageRun, image_command
from pare.cli.option_types import InputFile, number
from pare.cli.options import prompt_argument, run_options, size_option
from pare.cli.terminal import progress
from pare.errors import LossError
from pare.runtime import validation
from pare.runtime.extensions import LOSSES, extensions, load_extension

if TYPE_CHECKING:
    from pare.pipeline import Pipeline
    from techniques.loss_guidance import GuidedStep, Loss
    from techniques.loss_guidance.loss_language import Makers

WEIGHTS = "model.safetensors"


class ClipFolder(InputFile):
    """A folder of which the recipe keeps the weights' SHA-256."""

    name = "folder"

    def file(self, value: Any) -> Path:
        return Path(value) / WEIGHTS

    def with_file(self, value: Any, path: str) -> str:
        return str(Path(path).parent)

    def bare_name(self, path: Path) -> Path:
        return Path(path.resolve().parent.name, path.name)


guide_options = options(
    "Loss guidance",
    option("--loss", required=True, metavar="LINE", usual=True,
           help="What to minimise: blue, symmetry, style, brightness(0.8), colour('orange'), "
                "judge('snowy'), clip('a painting'), or arithmetic on the image and on these, as "
                "'(image[:, 2] - 0.9).abs().mean()'."),
    option("--scale", type=float, default=20.0, show_default=True, usual=True,
           callback=number("scale", -1e9, 1e9),
           help="Weight of the loss; larger for larger images."),
    option("--every", type=click.IntRange(1, validation.MAX_STEPS), default=5, show_default=True,
           usual=True, help="Guide at every N-th step."),
    option("--through-unet", is_flag=True,
           help="Take the gradient through the UNet, too: exact, slow, much memory."),
    option("--style", type=InputFile(), metavar="IMAGE",
           help="The image whose statistics the loss `style` compares."),
    option("--style-of", type=click.Choice(["vae", "unet"]), default="vae", show_default=True,
           help="Whose layers' statistics."),
    option("--style-by", type=click.Choice(["gram", "moments"]), default="gram", show_default=True,
           help="Gram matrices, or means and deviations of the channels."),
    option("--clip", type=ClipFolder(), metavar="FOLDER",
           help="A CLIP model for the loss `clip`, of PROMPT or of clip('another text')."),
    option("--batch", type=click.IntRange(1, validation.MAX_IMAGES), default=1, show_default=True,
           help="Images that go through the UNet together."),
)  # fmt: skip

EXAMPLES = (
    'pare guide "a sunny road in the mountains with a red car" --loss blue --scale 60 --every 2',
    'pare guide "a road" --loss style --style photo.jpg --scale 5 --out style.png',
    'pare guide "a road in the forest" --loss "brightness(0.15)" --scale 5 --out dark.png',
)


@image_command(section="edit", examples=EXAMPLES)
@prompt_argument
@guide_options
@size_option
@run_options
@embedding_options
def guide(prompt: str, **given: Any) -> None:
    """Loss guidance: generate PROMPT, guided at some of the steps by the gradient of a loss.

    The loss is a line of arithmetic over `image`, of shape (1, 3, height, width), red, green and
    blue from 0 to 1; docs/guide.md has its grammar. It is interpreted, never run as code, so that
    an image from someone else may be run again.
    """
    run = ImageRun.start()

    from techniques import loss_guidance
    from techniques.loss_guidance.loss_language import read_loss

    check_loss(prompt, given)
    pipe = run.load_pipeline(texts=[prompt, given["negative"]])
    width, height = run.size(pipe)
    result = loss_guidance.guide(
        pipe, prompt, read_loss(given["loss"], vocabulary(prompt, given, pipe)), run.seeds,
        scale=given["scale"], every=given["every"], through_unet=given["through_unet"],
        width=width, height=height, batch=given["batch"], progress=progress(), **run.sampling,
    )  # fmt: skip
    run.write(pipe, result.images, **result.report())
    for k, path in enumerate(run.paths):
        unguided = None if result.unguided is None else result.unguided[k]
        run.say(f"{path}: {losses_in_words(result.steps[k], result.losses[k], unguided)}")


def losses_in_words(steps: Sequence[GuidedStep], loss: float, unguided: float | None) -> str:
    if not steps:
        return f"the loss is {loss:.4g}; no step was guided"
    seen = ", ".join(f"{step.loss:.4g}" for step in steps[:12])
    more = ", …" if len(steps) > 12 else ""
    without = "" if unguided is None else f", without guidance {unguided:.4g}"
    return f"the loss was {seen}{more} at the guided steps, and is {loss:.4g}{without}"


def vocabulary(prompt: str, given: Mapping[str, Any], pipe: Pipeline | None = None) -> Makers:
    """What --loss may name; without the model a line can be checked, but not computed."""
    from techniques.loss_guidance.loss_language import USUAL

    def style() -> Loss:
        from pare.io.images import load_image
        from techniques.loss_guidance import losses

        if given["style"] is None:
            raise LossError("the loss asks for a style", fix="name an image: `style=IMAGE`")
        image = load_image(given["style"])
        if pipe is None:
            return losses.symmetry
        layers = losses.vae_features if given["style_of"] == "vae" else losses.unet_features
        factor = pipe.vae.config.factor
        return losses.style(layers(pipe), image, given["style_by"], factor=factor)

    def clip(text: str = prompt) -> Loss:
        from techniques.loss_guidance.clip_loss import clip_loss

        if given["clip"] is None:
            raise LossError("the loss asks for CLIP", fix="name a model's folder: `clip=FOLDER`")
        return clip_loss(Path(given["clip"]), text, "cpu" if pipe is None else pipe.device)

    def judge(wanted: str) -> Loss:
        from roads.judge.judge import load_judge
        from roads.judge.judge_loss import judge_loss

        device = "cpu" if pipe is None else str(pipe.device)
        return judge_loss(load_judge(device=device), wanted)

    others = {name: other(name) for name in extensions(LOSSES)}
    return {**others, **USUAL, "style": style, "clip": clip, "judge": judge}


def other(name: str) -> Callable[..., Loss]:
    """A loss of another package, which is loaded where a line names it."""
    return lambda *given: load_extension(LOSSES, name)(*given)


def check_loss(prompt: str, given: Mapping[str, Any]) -> None:
    """Check the loss before a model is loaded for it.

    Raises:
        LossError: the loss cannot be read, or does not use a file that is given.
    """
    from techniques.loss_guidance.loss_language import read_loss

    used = set()

    def watched(name: str, maker: Callable[..., Loss]) -> Callable[..., Loss]:
        def make(*told: Any, **named: Any) -> Loss:
            used.add(name)
            return maker(*told, **named)

        return make

    makers = vocabulary(prompt, given)
    read_loss(given["loss"], {name: watched(name, maker) for name, maker in makers.items()})
    for name in ("style", "clip"):
        if given[name] is not None and name not in used:
            raise LossError(
                f"`{name}` is given, and the loss {given['loss']!r} does not use it",
                fix=f"write {name} into `loss`",
            )
