"""`pare bench`: speed and memory against diffusers; how well techniques edit."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from pare.cli import terminal
from pare.cli.grouped_help import PareGroup, option, options
from pare.cli.image_run import use_threads
from pare.cli.json_output import print_report
from pare.cli.option_types import checked
from pare.cli.options import json_option, model_options_without_tokenizer
from pare.cli.terminal import note_on_terminal
from pare.io.whole_files import check_output, write_whole
from pare.runtime import validation

pairs_option = option(
    "--pairs", type=click.IntRange(1, 100), default=5, show_default=True, usual=True,
    help="How often both sides run, alternately.",
)  # fmt: skip

edits_options = options(
    "Benchmark",
    option("--split", type=click.Choice(["development", "held-out"]), default="held-out",
           show_default=True, usual=True,
           help="The tasks on which defaults are chosen, or those of the published tables."),
    option("--only", multiple=True, metavar="TECHNIQUE", usual=True,
           help="This technique (\"p2p direct\"), or a group of them (p2p). May be repeated."),
    option("--per-kind", type=click.IntRange(1, 100), metavar="TASKS", usual=True,
           help="Number of tasks of each kind. Default: all."),
    option("--seed", "-s", type=int, default=0, show_default=True,
           callback=checked(validation.check_seed), help="Seed of the first task's noise."),
    option("--out", "-o", type=click.Path(path_type=Path), metavar="FILE.png", usual=True,
           help="Also write a contact sheet: the tasks, and each technique's results."),
    option("--force", is_flag=True, help="Overwrite FILE.png."),
)  # fmt: skip


@click.group(
    cls=PareGroup,
    section="check",
    invoke_without_command=True,
    subcommand_metavar="[load|edits]",
    examples=["pare bench --device cpu --pairs 2"],
)
@model_options_without_tokenizer
@pairs_option
@json_option
@click.pass_context
def bench(context: click.Context, /, pairs: int, as_json: bool, **given: Any) -> None:
    """Measure speed and memory against diffusers; exit code 1 if a bound is broken.

    --model may also be sd1 or sd21: random weights of that architecture. The bounds hold on an
    idle machine. Needs the extra: pip install "pare[verify]".

    `pare bench load` measures loading, `pare bench edits` how well techniques edit.
    """
    if context.invoked_subcommand is not None:
        refuse_options(context)
        return
    from pare.verify.speed import run_bench

    use_threads(given)
    report = run_bench(
        given["model"],
        device=given["device"],
        dtype=given["dtype"],
        revision=given["revision"],
        pairs=pairs,
        progress=note_on_terminal(),
    )
    print_report(report, as_json)


def refuse_options(context: click.Context) -> None:
    """Raise a UsageError for options before a subcommand, which would be ignored."""
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        if source is ParameterSource.COMMANDLINE:
            raise click.UsageError(
                f"{parameter.opts[0]} stands before {context.invoked_subcommand}; "
                f"expected `pare bench {context.invoked_subcommand} {parameter.opts[0]} …`"
            )


@bench.command(examples=["pare bench load --model model.safetensors --pairs 1"])
@model_options_without_tokenizer
@pairs_option
@json_option
def load(pairs: int, as_json: bool, **given: Any) -> None:
    """Measure the loading of weights against diffusers, on the CPU: time and peak memory.

    --model may also be sd1 or sd21, which are written to the current folder for it (8.5 and
    10.3 GB in float32) and deleted. Needs the extra: pip install "pare[verify]".
    """
    from pare.verify.loading_speed import run_load_bench

    use_threads(given)
    report = run_load_bench(
        given["model"],
        dtype=given["dtype"],
        revision=given["revision"],
        pairs=pairs,
        progress=note_on_terminal(),
    )
    print_report(report, as_json)


@bench.command(examples=['pare bench edits --per-kind 1 --only "blend paste" --out edits.png'])
@edits_options
@model_options_without_tokenizer
@json_option
def edits(
    split: Any, only: tuple[str, ...], per_kind: int | None, seed: int, out: Path | None,
    force: bool, as_json: bool, **given: Any,
) -> None:  # fmt: skip
    """Measure editing techniques on tasks of the built-in world, whose true results are known.

    56 tasks a split, scored by the built-in judge: did the edit succeed, and did everything else
    stay? Three rows are the limits: no edit, the true result, and the true result through the VAE.
    """
    if out is not None:
        check_output(out, force=force)

    from pare.pipeline import Pipeline
    from roads.benchmark.compared_methods import chosen_techniques
    from roads.benchmark.edit_benchmark import run_edits
    from roads.judge.judge import load_judge

    techniques = chosen_techniques(only)
    use_threads(given)
    pipe = Pipeline.from_pretrained(
        given["model"], device=given["device"], dtype=given["dtype"], revision=given["revision"]
    )
    report = run_edits(
        pipe, load_judge(), split, techniques,
        per_kind=per_kind, seed=seed, progress=note_on_terminal(),
    )  # fmt: skip
    terminal.result(json.dumps(report.to_json(), indent=2) if as_json else report.table())
    if out is not None:
        write_whole(out, functools.partial(report.sheet().save, format="PNG"), force=force)
