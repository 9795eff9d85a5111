"""`pare bench`: speed and memory beside diffusers."""

from __future__ import annotations

from typing import Any

import click

from pare.commands.examples import examples
from pare.commands.options import json_option, model_options, options, revision_option
from pare.commands.printing import print_report, say_on_terminal
from pare.commands.run import use_threads

bench_options = options(
    click.option("--pairs", type=click.IntRange(1, 100), default=5, show_default=True,
                 help="How often both sides run, taking turns."),
    click.option("--load", is_flag=True,
                 help="Measure loading instead, on the CPU; sd1 and sd21 are written to the "
                      "current folder for it (8.5 and 10.3 GB in float32) and deleted."),
)  # fmt: skip


EXAMPLES = examples(
    "pare bench --device cpu --pairs 2",
    "pare bench --load --model model.safetensors",
)


@click.command(epilog=EXAMPLES)
@model_options
@revision_option
@bench_options
@json_option
def bench(pairs: int, load: bool, as_json: bool, **given: Any) -> None:
    """Measure speed and memory beside diffusers; exit code 1 if a bound is broken.

    --model may also be sd1 or sd21: random weights at true size. The bounds are meant for a
    machine that does nothing else. Needs the extra: pip install "pare[verify]".
    """
    from pare.verify.bench import run_bench
    from pare.verify.loading import run_load_bench

    use_threads(given)
    if load:
        report = run_load_bench(
            given["model"],
            dtype=given["dtype"],
            revision=given["revision"],
            pairs=pairs,
            progress=say_on_terminal(),
        )
        print_report(report, as_json)
        return
    report = run_bench(
        given["model"],
        device=given["device"],
        dtype=given["dtype"],
        revision=given["revision"],
        pairs=pairs,
        progress=say_on_terminal(),
    )
    print_report(report, as_json)
