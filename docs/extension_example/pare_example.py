"""A technique and a loss of another package: `pare mirror PROMPT`, `pare guide … --loss red`."""

from typing import Any

from pare.cli.image_run import ImageRun, image_command
from pare.cli.options import prompt_argument, run_options


@image_command(section="make", examples=['pare mirror "a snowy road"'])
@prompt_argument
@run_options
def mirror(prompt: str, **given: Any) -> None:
    """Generate PROMPT, and mirror it."""
    from PIL import ImageOps

    run = ImageRun.start()
    pipe = run.load_pipeline()
    images = pipe.generate(prompt, run.seeds, **run.sampling)
    run.write(pipe, [ImageOps.mirror(image) for image in images])


def red() -> Any:
    """The loss: how far the red channel is from 0.9; `image` is (1, 3, H, W) from 0 to 1."""
    return lambda image: (image[:, 0] - 0.9).abs().mean()
