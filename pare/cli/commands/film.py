"""`pare film`: sampling as a film."""

from __future__ import annotations

import functools
import json
import time
from pathlib import Path
from typing import Any

import click

from pare.cli import terminal
from pare.cli.grouped_help import command, option, options, together
from pare.cli.image_run import ImageRun
from pare.cli.option_types import SeedRange, flat_seeds, number
from pare.cli.options import (
    force_option,
    json_option,
    model_options,
    prompt_argument,
    sampling_options,
    scheduler_options,
    size_option,
)
from pare.cli.terminal import progress
from pare.io.whole_files import write_whole

film_options = options(
    "Film",
    option("--fps", type=float, default=8.0, show_default=True, usual=True,
           callback=number("fps", 0.1, 60.0), help="Steps per second, 0.1 to 60."),
    option("--show", multiple=True, type=click.Choice(["x_t", "x0", "next"]),
           default=("x_t", "x0"),
           help="What stands side by side: x_t before the step, the predicted x0, x_t after the "
                "step (next). Default: x_t and x0."),
    option("--latents", is_flag=True,
           help="Show the four channels of the latents in grey, instead of decoding them."),
    option("--seed", "-s", type=SeedRange(), multiple=True, callback=flat_seeds, usual=True,
           metavar="SEED", help="Seed of the initial noise; 1-4 makes four films. Default: 0."),
    option("--out", "-o", type=click.Path(path_type=Path), usual=True,
           help="NAME.mp4 or NAME.gif, or a folder. Default: a new film-SEED.mp4 in the folder "
                "`outputs`, if there is one, or here."),
)  # fmt: skip

EXAMPLES = (
    'pare film "a snowy road in the mountains" --seed 7',
    'pare film "a road at night" --scheduler euler-ancestral --fps 4 --out night.gif',
)


@command(section="make", examples=EXAMPLES)
@prompt_argument
@film_options
@size_option
@together(sampling_options, scheduler_options, model_options, force_option, json_option)
def film(prompt: str, **given: Any) -> None:
    """Film the sampling: generate PROMPT, and show x_t and the predicted x0 at every step.

    Left is x_t before each step, right the predicted x0; the last frame is the image. The film
    carries the recipe as a comment.
    """
    from pare.study.record.film_file import check_film, write_film
    from pare.study.record.recording import Recording
    from pare.study.record.run_frames import film_frames

    run = ImageRun.start(endings=[".mp4", ".gif"])
    for path in run.paths:
        check_film(path)
    pipe = run.load_pipeline()
    width, height = run.size(pipe)
    written = []
    for index, (seed, path) in enumerate(zip(run.seeds, run.paths, strict=True)):
        recording = Recording(pipe)
        with recording as recorded:
            recorded.generate(
                prompt, seed, height=height, width=width, progress=progress(), **run.sampling
            )
        frames = list(film_frames(pipe, recording, given["show"], raw=given["latents"]))
        comment = run.recipe(pipe, index).to_json()
        write = functools.partial(
            write_film, frames, kind=path.suffix.lower(), fps=given["fps"], comment=comment
        )
        write_whole(path, write, force=run.force)
        page = {"path": str(path), "seed": seed, "frames": len(frames), "fps": given["fps"]}
        written.append(page | {"width": frames[0].width, "height": frames[0].height})
        if not run.as_json:
            terminal.result(path)
    seconds = time.perf_counter() - run.started
    if run.as_json:
        films = written[0] if len(written) == 1 else {"films": written}
        result = {"command": "film", **films, "seconds": round(seconds, 3)}
        terminal.result(json.dumps(result, indent=2))
    terminal.summary(run.summary(seconds))
