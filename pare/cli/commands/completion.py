"""`pare completion`: the script with which a shell completes `pare`'s words, from click."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class, shell_complete

from pare.cli.grouped_help import command

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_PARE_COMPLETE"  # by which the script asks `pare` what could come next

EXAMPLES = ("pare completion bash",)


@command(section="check", examples=EXAMPLES)
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the script with which SHELL completes the words of `pare`.

    Run at the shell's start, it lets TAB offer commands, options, models, schedulers and files:

    \b
    bash   eval "$(pare completion bash)"    in ~/.bashrc; needs bash 4.4
    zsh    eval "$(pare completion zsh)"     in ~/.zshrc, after compinit
    fish   pare completion fish | source     in ~/.config/fish/config.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None  # click has all three
    group = click.get_current_context().find_root().command
    click.echo(kind(group, {}, "pare", VARIABLE).source())


def answer(group: click.Group, question: str) -> int:
    """Tell the shell, whose script put `question` into the environment; the exit code."""
    return shell_complete(group, {}, "pare", VARIABLE, question)
