"""`pare completion`: the shells' own completion, from click; and what is offered for a model."""

from __future__ import annotations

from collections.abc import Callable

import click
from click.shell_completion import CompletionItem, get_completion_class, shell_complete

from pare.cli.examples import examples

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_PARE_COMPLETE"  # by which the script asks `pare` what could come next

EXAMPLES = examples("pare completion bash")

# Quoted: CompletionItem takes no type argument in the oldest click that pare supports.
Offer = Callable[[click.Context, click.Parameter, str], "list[CompletionItem[str]]"]


@click.command(epilog=EXAMPLES)
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the script with which SHELL completes the words of `pare`.

    It is run at the shell's start, so that TAB offers commands, options, models, schedulers
    and files:

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


def offer(*words: str) -> Offer:
    """Words to choose from for an option that takes others as well."""

    def complete(
        context: click.Context, parameter: click.Parameter, incomplete: str
    ) -> list[CompletionItem[str]]:
        return [CompletionItem(word) for word in words if word.startswith(incomplete)]

    return complete


def offer_models(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """The built-in model, the repositories in the Hub's cache, and files."""
    from pathlib import Path

    from huggingface_hub.constants import HF_HUB_CACHE

    kept = sorted(Path(HF_HUB_CACHE).glob("models--*--*/snapshots"))
    repositories = [path.parent.name.removeprefix("models--").replace("--", "/") for path in kept]
    found = offer("roads", *repositories)(context, parameter, incomplete)
    return [CompletionItem(incomplete, type="file"), *found]
