"""`pare trace`: latents, activations and attention maps of a run, as files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from pare.cli import terminal
from pare.cli.grouped_help import option, options
from pare.cli.image_run import ImageRun, image_command
from pare.cli.json_output import plain
from pare.cli.options import prompt_argument, run_options, size_option
from pare.cli.terminal import progress

if TYPE_CHECKING:
    from PIL import Image

    from pare.pipeline import Pipeline
    from pare.study.record.recording import Planned, Recording

KINDS = ("statistics", "activations", "map", "channels")

trace_options = options(
    "Recording",
    option("--at", multiple=True, metavar="GLOB", usual=True,
           help="Layers to record, as `pare inspect` lists them: unet.mid_block, 'unet.*.attn2', "
                "'vae.decoder.*'. May be repeated."),
    option("--keep", type=click.Choice(KINDS), multiple=True,
           default=("statistics", "activations"), usual=True,
           help="What of a layer's output: mean, std, min and max; all values; the norm at every "
                "pixel; the mean of every channel. Default: the first two."),
    option("--attention", multiple=True, metavar="GLOB", usual=True,
           help="Attention layers, or layers that hold some, whose attention maps to record: "
                "'unet.*.attn2', unet.mid_block."),
    option("--each-head", is_flag=True, help="Keep the attention heads apart."),
    option("--branch", type=click.Choice(("cond", "uncond")), multiple=True,
           help="The conditional or unconditional branch of the guidance. Default: both."),
    option("--every", type=click.IntRange(1), default=1, show_default=True, metavar="N",
           help="Record layers and attention at every N-th step."),
    option("--plan", "plan_only", is_flag=True, usual=True,
           help="Say what would be recorded, and how much memory it takes; run nothing."),
)  # fmt: skip


EXAMPLES = (
    'pare trace "a snowy road" --at unet.mid_block --out snow.png',
    "pare trace \"a snowy road\" --at 'unet.*' --keep statistics --out all.png",
    "pare trace \"a red car\" --attention 'unet.*.attn2' --branch cond --every 5 --out car.png",
    "pare trace \"a red car\" --at 'unet.*' --attention unet --plan",
)


@image_command(section="study", examples=EXAMPLES)
@prompt_argument
@trace_options
@size_option
@run_options
def trace(prompt: str, plan_only: bool, **given: Any) -> None:
    """Record the model at work: generate PROMPT, and write latents, activations, attention maps.

    Beside NAME.png, the same image as `pare generate` makes, it writes NAME.safetensors with the
    tensors (always x_t, x0, eps and both guidance branches at each step) and NAME.json, which
    describes their axes. It says beforehand how much memory they take.
    """
    from pare.study.record.recording import check_memory
    from pare.study.record.trace_file import write_trace

    run = ImageRun.start(beside=() if plan_only else [".safetensors", ".json"])
    files = [path.with_suffix(".safetensors") for path in run.paths]
    pipe = run.load_pipeline()
    width, height = run.size(pipe)
    settings = {**run.sampling, "width": width, "height": height, "batch": 1}
    if run.rerun is not None:  # the image is wanted, not the recording
        run.write(pipe, [pipe.generate(prompt, s, **settings)[0] for s in run.seeds])
        return

    planned = planning(pipe, given).plan(
        given["steps"], (width, height), guidance=given["guidance"],
        texts=len({prompt, given["negative"]}),
    )  # fmt: skip
    if plan_only:
        table = json.dumps(as_table(planned), indent=2) if run.as_json else plan_table(planned)
        terminal.result(table)
        return
    need = check_memory(planned)
    terminal.note(short_plan(planned, need))
    images: list[Image.Image] = []
    for seed, file in zip(run.seeds, files, strict=True):
        recording = planning(pipe, given)
        with recording as watched:
            images += watched.generate(prompt, seed, progress=progress(), **settings)
        write_trace(recording, file, about(run, pipe, seed), force=run.force)
    run.write(pipe, images, traces=[str(file) for file in files], bytes=need)
    for file in files:
        run.say(f"{file}: {len(planned)} tensors; {file.with_suffix('.json')} describes them")


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


def about(run: ImageRun, pipe: Pipeline, seed: int) -> dict[str, Any]:
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


def plan_table(planned: Sequence[Planned]) -> str:
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
