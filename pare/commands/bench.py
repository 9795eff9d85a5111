"""`pare bench`: speed and memory beside diffusers."""

from __future__ import annotations

from typing import Any

import click

from pare.commands.examples import examples
from pare.commands.options import json_option, model_options, revision_option
from pare.commands.printing import print_report, say_on_terminal
from pare.commands.run import use_threads

bench_options = click.option(
    "--pairs", type=click.IntRange(1, 100), default=5, show_default=True,
    help="How often both sides run, taking turns.",
)  # fmt: skip


EXAMPLES = examples(
    "pare bench --device cpu --pairs 2",
)


@click.command(epilog=EXAMPLES)
@model_options
@revision_option
@bench_options
@json_option
def bench(pairs: int, as_json: bool, **given: Any) -> None:
    """Measure speed and memory beside diffusers; exit code 1 if a bound is broken.

    --model may also be sd1 or sd21: random weights at true size. The bounds are meant for a
    machine that does nothing else. Needs the extra: pip install "pare[verify]".
    """
    from pare.verify.bench import run_bench

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
