"""The command `pare`: all of its commands, and the process around them.

Every command reads in the same order: check everything that a user can get wrong, the
output's name included; load the model; run; write.  torch is imported only when a
command runs, so that `pare --help` answers at once.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence

import click

from pare.cli.commands.attention_view import attention
from pare.cli.commands.batch import batch
from pare.cli.commands.bench import bench
from pare.cli.commands.blend import blend
from pare.cli.commands.completion import VARIABLE, answer, completion
from pare.cli.commands.convert import convert
from pare.cli.commands.edit import edit
from pare.cli.commands.erase import erase
from pare.cli.commands.film import film
from pare.cli.commands.generate import generate
from pare.cli.commands.guide import guide
from pare.cli.commands.img2img import img2img
from pare.cli.commands.inspect import inspect
from pare.cli.commands.invert import invert
from pare.cli.commands.list_models import models
from pare.cli.commands.list_presets import presets
from pare.cli.commands.p2p import p2p
from pare.cli.commands.report import report
from pare.cli.commands.rerun import rerun
from pare.cli.commands.sweep import sweep
from pare.cli.commands.tokens import tokens
from pare.cli.commands.trace import trace
from pare.cli.commands.verify import verify
from pare.cli.grouped_help import PareGroup
from pare.cli.option_types import FIND_NAN
from pare.cli.terminal import STARTED, run_in_words
from pare.errors import NonFiniteError
from pare.version import __version__

COMMANDS = (
    generate, img2img, batch, blend, erase, invert, p2p, edit, guide, tokens, film, sweep, inspect,
    attention, trace, report, rerun, convert, verify, bench, presets, models, completion,
)  # fmt: skip


def all_commands() -> dict[str, click.Command]:
    """Every command by its name: `generate`, …, `bench`, `bench load`, `bench edits`."""
    found = {}
    for name, command in cli.commands.items():
        found[name] = command
        if isinstance(command, click.Group):
            found |= {f"{name} {inner}": one for inner, one in command.commands.items()}
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `pare` with the given arguments (default: the process's); the exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    started = time.perf_counter()

    def body() -> int:
        if arguments is None and VARIABLE in os.environ:
            return answer(cli, os.environ[VARIABLE])
        with cli.make_context("pare", given) as context:
            context.meta[STARTED] = started
            try:
                cli.invoke(context)
            except NonFiniteError as error:
                if context.meta.get(FIND_NAN):
                    print_bad_layer(error)
                raise
        return 0

    return run_in_words(body)


def print_bad_layer(error: NonFiniteError) -> None:
    """Run the part that failed once more, and name the layer in which the NaN begins."""
    layer = error.find_layer() if error.find_layer else None
    found = "every layer's output is finite now; an edit of attention is not repeated"
    click.echo(layer.table() if layer else f"pare: {found}", err=True)


@click.group(
    cls=PareGroup,
    commands=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="pare", message="%(prog)s %(version)s")
def cli() -> None:
    """Stable Diffusion 1.x / 2.x with nothing hidden: generate and edit images, study the model.

    `pare COMMAND --help` shows the usual options of a command and examples.
    """
