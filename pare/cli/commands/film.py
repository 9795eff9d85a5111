"""`pare film`: how an image comes out of the noise."""

from __future__ import annotations

import functools
import json
import time
from pathlib import Path
from typing import Any

import click

from pare.cli.commands.generate import generate_options
from pare.cli.examples import examples
from pare.cli.options import (
    checked,
    json_option,
    model_options,
    options,
    prompt_argument,
    revision_option,
    sampling_options,
    scheduler_options,
    tokenizer_option,
)
from pare.cli.printing import plain
from pare.cli.run_command import Run, load_pipeline, sampling, warn_of_size
from pare.cli.terminal import progress
from pare.io.whole_files import check_output, write_whole
from pare.runtime import validation


def check_fps(fps: float) -> float:
    return validation.check_number("fps", fps, 0.1, 60.0)


film_options = options(
    click.option("--fps", type=float, default=8.0, show_default=True, callback=checked(check_fps),
                 help="Steps that are shown in a second, 0.1 to 60."),
    click.option("--seed", type=int, default=0, show_default=True,
                 callback=checked(validation.check_seed), help="The noise to start from."),
    click.option("--out", type=click.Path(path_type=Path), default=Path("film.mp4"),
                 show_default=True, help="NAME.mp4 or NAME.gif."),
    click.option("--force", is_flag=True, help="Overwrite an existing file."),
    json_option,
)  # fmt: skip

EXAMPLES = examples(
    'pare film "a snowy road in the mountains" --seed 7',
    'pare film "a road at night" --scheduler euler-ancestral --fps 4 --out night.gif',
)


@click.command(epilog=EXAMPLES)
@prompt_argument
@generate_options
@sampling_options
@scheduler_options
@model_options
@revision_option
@tokenizer_option
@film_options
def film(prompt: str, size: tuple[int, int] | None, **given: Any) -> None:
    """Make an image from PROMPT, and a film of how it comes out of the noise.

    Left is x_t, as it is before each step; right is x0, what the model takes it for. The last
    frame is the image. The recipe stands in the film as a comment.
    """
    from pare.study.record.film_file import check_film, write_film
    from pare.study.record.recording import Recording
    from pare.study.record.run_frames import film_frames

    started = time.perf_counter()
    out: Path = check_film(given["out"])
    check_output(out, force=given["force"])
    pipe = load_pipeline(given)
    width, height = size or pipe.trained_size
    warn_of_size(pipe, (width, height), "take a smaller --size")
    recording = Recording(pipe)
    with recording as recorded:
        recorded.generate(
            prompt, given["seed"], height=height, width=width, progress=progress(),
            **sampling(given),
        )  # fmt: skip
    frames = list(film_frames(pipe, recording))
    arguments = plain(click.get_current_context().params)
    run = Run("film", arguments, {}, [given["seed"]], [], [out], given["force"], False, started)
    comment = run.recipe(pipe, 0).to_json()
    write = functools.partial(
        write_film, frames, kind=out.suffix.lower(), fps=given["fps"], comment=comment
    )
    write_whole(out, write, force=given["force"])
    if given["as_json"]:
        page = frames[0]
        result = {
            "command": "film", "path": str(out), "frames": len(frames), "fps": given["fps"],
            "width": page.width, "height": page.height,
            "seconds": round(time.perf_counter() - started, 3),
        }  # fmt: skip
        click.echo(json.dumps(result, indent=2))
    else:
        click.echo(out)
