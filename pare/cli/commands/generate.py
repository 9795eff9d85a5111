"""`pare generate`: text-to-image."""

from __future__ import annotations

from typing import Any

from pare.cli.embedding_options import embedding_options
from pare.cli.image_run import ImageRun, image_command
from pare.cli.options import memory_options, prompt_argument, run_options, size_option
from pare.cli.terminal import progress

EXAMPLES = (
    'pare generate "a snowy road in the forest" --seed 7',
    'pare generate "a red car by the sea" --count 4 --scheduler ddim --out cars.png --grid',
)


@image_command(section="make", examples=EXAMPLES)
@prompt_argument
@size_option
@run_options
@embedding_options
@memory_options
def generate(prompt: str, **given: Any) -> None:
    """Text-to-image: generate images from PROMPT."""
    run = ImageRun.start()
    pipe = run.load_pipeline(texts=[prompt, given["negative"]])
    width, height = run.size(pipe)
    fitted = run.fit_memory(pipe, width, height)
    images = pipe.generate(
        prompt, run.seeds, width=width, height=height, progress=progress(), **fitted, **run.sampling
    )
    run.write(pipe, images)
