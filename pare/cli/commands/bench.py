"""`pare bench`: speed and memory beside diffusers; how well techniques edit."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from pare.cli.examples import examples
from pare.cli.options import checked, json_option, model_options, options, revision_option
from pare.cli.printing import print_report, say_on_terminal
from pare.cli.run_command import use_threads
from pare.io.whole_files import check_output, write_whole
from pare.runtime import validation

pairs_option = click.option(
    "--pairs", type=click.IntRange(1, 100), default=5, show_default=True,
    help="How often both sides run, taking turns.",
)  # fmt: skip

edits_options = options(
    click.option("--split", type=click.Choice(["development", "held-out"]), default="held-out",
                 show_default=True,
                 help="The tasks that defaults are chosen on, or those of the published tables."),
    click.option("--only", multiple=True, metavar="TECHNIQUE",
                 help="This technique alone (\"p2p direct\"), or a group of them (p2p); several if "
                      "repeated."),
    click.option("--per-kind", type=click.IntRange(1, 100), metavar="TASKS",
                 help="Only so many tasks of each kind; all if not given."),
    click.option("--seed", type=int, default=0, show_default=True,
                 callback=checked(validation.check_seed), help="Of the first task's noise."),
    click.option("--out", type=click.Path(path_type=Path), metavar="FILE.png",
                 help="Also write a contact sheet: tasks, and what each technique made of them."),
    click.option("--force", is_flag=True, help="Overwrite FILE.png."),
)  # fmt: skip


@click.group(
    invoke_without_command=True,
    subcommand_metavar="[load|edits]",
    epilog=examples("pare bench --device cpu --pairs 2"),
)
@model_options
@revision_option
@pairs_option
@json_option
@click.pass_context
def bench(context: click.Context, /, pairs: int, as_json: bool, **given: Any) -> None:
    """Measure speed and memory beside diffusers; exit code 1 if a bound is broken.

    --model may also be sd1 or sd21: random weights at true size. The bounds are meant for a
    machine that does nothing else. Needs the extra: pip install "pare[verify]".

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
        progress=say_on_terminal(),
    )
    print_report(report, as_json)


def refuse_options(context: click.Context) -> None:
    """Options before the subcommand would be passed over: they belong behind it."""
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        if source is ParameterSource.COMMANDLINE:
            raise click.UsageError(
                f"{parameter.opts[0]} stands before {context.invoked_subcommand}; "
                f"expected `pare bench {context.invoked_subcommand} {parameter.opts[0]} …`"
            )


@bench.command(epilog=examples("pare bench load --model model.safetensors --pairs 1"))
@model_options
@revision_option
@pairs_option
@json_option
def load(pairs: int, as_json: bool, **given: Any) -> None:
    """Measure loading beside diffusers' loader, on the CPU: time and peak memory.

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
        progress=say_on_terminal(),
    )
    print_report(report, as_json)


@bench.command(
    epilog=examples('pare bench edits --per-kind 1 --only "blend paste" --out edits.png')
)
@edits_options
@model_options
@revision_option
@json_option
def edits(
    split: Any, only: tuple[str, ...], per_kind: int | None, seed: int, out: Path | None,
    force: bool, as_json: bool, **given: Any,
) -> None:  # fmt: skip
    """Measure techniques on edits of the little world whose true answer is known.

    56 tasks a split, judged by the built-in judge: did the edit succeed, did everything else
    stay? Three rows frame the others: no edit, the truth, the truth through the VAE.
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
        per_kind=per_kind, seed=seed, progress=say_on_terminal(),
    )  # fmt: skip
    click.echo(json.dumps(report.to_json(), indent=2) if as_json else report.table())
    if out is not None:
        write_whole(out, functools.partial(report.sheet().save, format="PNG"), force=force)
