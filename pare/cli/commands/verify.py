"""`pare verify`: the same weights in diffusers, and what differs."""

from __future__ import annotations

from typing import Any

import click

from pare.cli.commands.completion import offer
from pare.cli.examples import examples
from pare.cli.options import json_option, model_options, revision_option
from pare.cli.printing import print_report, say_on_terminal
from pare.cli.run_command import use_threads

# pare.verify imports torch, so its groups stand here too; a test holds them together.
GROUPS = (
    "text", "unet", "vae", "schedulers", "generate", "img2img", "blend", "erase", "invert", "p2p",
)  # fmt: skip

verify_options = click.option(
    "--only", multiple=True, metavar="GROUP", shell_complete=offer(*GROUPS),
    help=f"{', '.join(GROUPS[:-1])} or {GROUPS[-1]}; several if repeated.",
)  # fmt: skip


EXAMPLES = examples(
    "pare verify --only unet --only vae",
)


@click.command(epilog=EXAMPLES)
@model_options
@revision_option
@verify_options
@json_option
def verify(only: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Compare pare with diffusers on the same weights; exit code 1 if a bound is broken.

    Needs the extra: pip install "pare[verify]".
    """
    from pare.verify import run_verify

    use_threads(given)
    report = run_verify(
        given["model"],
        device=given["device"],
        dtype=given["dtype"],
        revision=given["revision"],
        only=only or None,
        progress=say_on_terminal(),
    )
    print_report(report, as_json)
