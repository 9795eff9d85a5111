"""`pare verify`: parity with diffusers on the same weights."""

from __future__ import annotations

from typing import Any

from pare.cli.grouped_help import command, option
from pare.cli.image_run import use_threads
from pare.cli.json_output import print_report
from pare.cli.option_types import offer
from pare.cli.options import json_option, model_options_without_tokenizer
from pare.cli.terminal import note_on_terminal

# pare.verify imports torch, so its groups stand here too; a test compares them.
GROUPS = (
    "text", "unet", "vae", "schedulers", "generate", "img2img", "blend", "erase", "invert", "p2p",
)  # fmt: skip

EXAMPLES = ("pare verify --only unet --only vae",)


@command(section="check", examples=EXAMPLES)
@option("--only", multiple=True, metavar="GROUP", shell_complete=offer(*GROUPS), usual=True,
        help=f"{', '.join(GROUPS[:-1])} or {GROUPS[-1]}. May be repeated.")  # fmt: skip
@model_options_without_tokenizer
@json_option
def verify(only: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Compare pare with diffusers on the same weights; exit code 1 if a bound is broken.

    Needs the extra: pip install "pare[verify]".
    """
    from pare.verify import run_verify

    use_threads(given)
    where = {name: given[name] for name in ("device", "dtype", "revision")}
    report = run_verify(given["model"], **where, only=only or None, progress=note_on_terminal())
    print_report(report, as_json)
