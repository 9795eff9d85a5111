"""`pare trace`: what happens inside while an image is made, as files to look into."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from pare.cli.commands.generate import generate_options
from pare.cli.examples import examples
from pare.cli.options import (
    model_options,
    options,
    output_options,
    prompt_argument,
    revision_option,
    sampling_options,
    scheduler_options,
    tokenizer_option,
)
from pare.cli.printing import plain
from pare.cli.run_command import ImageCommand, Run, load_pipeline, sampling, warn_of_size
from pare.cli.terminal import progress
from pare.io.whole_files import check_output

if TYPE_CHECKING:
    from PIL import Image

    from pare.pipeline import Pipeline
    from pare.study.record.recording import Planned, Recording

KINDS = ("statistics", "activations", "map", "channels")

trace_options = options(
    click.option("--at", multiple=True, metavar="GLOB",
                 help="Layers to record, as `pare inspect` lists them: unet.mid_block, "
                      "'unet.*.attn2', 'vae.decoder.*'; give it several times for several."),
    click.option("--keep", type=click.Choice(KINDS), multiple=True,
                 default=("statistics", "activations"),
                 help="What of them: mean, std, min and max; all numbers; the strength of every "
                      "pixel; the mean of every channel. The first two if not given."),
    click.option("--attention", multiple=True, metavar="GLOB",
                 help="Attention layers whose maps to record, or layers that hold some: "
                      "'unet.*.attn2', unet.mid_block."),
    click.option("--each-head", is_flag=True, help="Keep attention's heads apart."),
    click.option("--branch", type=click.Choice(("cond", "uncond")), multiple=True,
                 help="A side of the guidance; both if not given."),
    click.option("--every", type=click.IntRange(1), default=1, show_default=True, metavar="N",
                 help="Look at layers and attention at every N-th step."),
    click.option("--plan", "plan_only", is_flag=True,
                 help="Say what would be recorded, and how much it is; run nothing."),
)  # fmt: skip


EXAMPLES = examples(
    'pare trace "a snowy road" --at unet.mid_block --out snow.png',
    "pare trace \"a snowy road\" --at 'unet.*' --keep statistics --out all.png",
    "pare trace \"a red car\" --attention 'unet.*.attn2' --branch cond --every 5 --out car.png",
    "pare trace \"a red car\" --at 'unet.*' --attention unet --plan",
)


@click.command(cls=ImageCommand, epilog=EXAMPLES)
@prompt_argument
@trace_options
@generate_options
@sampling_options
@scheduler_options
@model_options
@revision_option
@tokenizer_option
@output_options
def trace(prompt: str, size: tuple[int, int] | None, plan_only: bool, **given: Any) -> None:
    """Make an image from PROMPT and record what happens inside.

    Beside NAME.png, the same image as `pare generate` makes, stand NAME.safetensors with
    the tensors (always x_t, x0, eps and both sides of the guidance at each step) and
    NAME.json, which says what their axes are. The memory that they take is said beforehand.
    """
    from pare.study.record.recording import check_memory
    from pare.study.record.trace_file import write_trace

    run = Run.plan()
    files = [path.with_suffix(".safetensors") for path in run.paths]
    if run.again is None and not plan_only:
        for file in (*files, *(file.with_suffix(".json") for file in files)):
            check_output(file, force=run.force)
    pipe = load_pipeline(given)
    width, height = size or pipe.trained_size
    warn_of_size(pipe, (width, height), "take a smaller --size")
    settings = {**sampling(given), "width": width, "height": height, "batch": 1}
    if run.again is not None:  # the image is wanted, not the recording
        run.write(pipe, [pipe.generate(prompt, s, **settings)[0] for s in run.seeds])
        return

    planned = planning(pipe, given).plan(
        given["steps"], (width, height), guidance=given["guidance"],
        texts=len({prompt, given["negative"]}),
    )  # fmt: skip
    if plan_only:
        click.echo(json.dumps(as_table(planned), indent=2) if run.as_json else in_words(planned))
        return
    need = check_memory(planned)
    click.echo(f"pare: {short_plan(planned, need)}", err=True)
    images: list[Image.Image] = []
    for seed, file in zip(run.seeds, files, strict=True):
        recording = planning(pipe, given)
        with recording as watched:
            images += watched.generate(prompt, seed, progress=progress(), **settings)
        write_trace(recording, file, about(run, pipe, seed), force=run.force)
    run.write(pipe, images, traces=[str(file) for file in files], bytes=need)
    for file in files:
        run.say(f"{file}: {len(planned)} tensors; {file.with_suffix('.json')} says what they are")


def planning(pipe: Pipeline, given: dict[str, Any]) -> Recording:
    """The recording that the options ask for."""
    from pare.study.record.recording import Recording

    return Recording(
        pipe,
        given["at"],
        keep=given["keep"],
        attention=given["attention"],
        branches=given["branch"] or None,
        every=given["every"],
        each_head=given["each_head"],
    )


def about(run: Run, pipe: Pipeline, seed: int) -> dict[str, Any]:
    """What the trace's JSON says beside its tensors: the settings, and the prompt's tokens."""
    from pare.text import words

    read = words.read(pipe.tokenizer, run.arguments["prompt"])
    names = ("prompt", "negative", "steps", "guidance", "rescale")
    return {
        **{name: run.arguments[name] for name in names},
        "seed": seed,
        "model": pipe.source.name,
        "scheduler": pipe.scheduler.describe(),
        "prediction_type": pipe.scheduler.prediction_type,
        "scaling_factor": pipe.vae.config.scaling_factor,
        "tokens": read.names[: len(read.ids)],
    }


def as_table(planned: Sequence[Planned]) -> dict[str, Any]:
    tensors = {
        one.name: {"axes": one.axes, "shape": one.shape, "bytes": one.bytes} for one in planned
    }
    return plain({"bytes": sum(one.bytes for one in planned), "tensors": tensors})


def in_words(planned: Sequence[Planned]) -> str:
    """A line for each tensor, and their sum."""
    from pare.study.inspect.text_tables import columns, size

    rows = [("tensor", "axes", "shape", "memory")]
    rows += [
        (one.name, " ".join(one.axes), " ".join(map(str, one.shape)), size(one.bytes))
        for one in planned
    ]
    total = size(sum(one.bytes for one in planned))
    return "\n".join([*columns(rows, "lllr", indent=0), "", f"{len(planned)} tensors, {total}"])


def short_plan(planned: Sequence[Planned], need: int) -> str:
    from pare.study.inspect.text_tables import size

    largest = max(planned, key=lambda one: one.bytes)
    return (
        f"a trace takes {size(need)} of memory and of the disk: {len(planned)} tensors, the "
        f"largest {largest.name}, {size(largest.bytes)}"
    )
