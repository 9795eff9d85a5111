"""docs/reference.md, from the commands themselves.

    python -m pare.cli.reference_page > docs/reference.md

It reads no terminal: the page is the same wherever it is made.
"""

from __future__ import annotations

import inspect
import itertools
import textwrap
from collections.abc import Iterator, Mapping

import click

from pare.cli.grouped_help import Option, PareCommand
from pare.cli.main import all_commands
from pare.cli.terminal import EXIT_CODES

WIDTH = 100

HEAD = """
# Reference

Every command of `pare`, its options and their defaults. The same is in `pare COMMAND --help-all`.
This page is made from the code: `python -m pare.cli.reference_page > docs/reference.md`.

`pare --version` says which version it is. An option stands before or after the arguments, and
`--` ends the options. Every command with `--model` also takes `--preset NAME`: options under a
name, from a file ([presets](presets.md)). Results go to stdout: the names of the files that were
written, a table, or JSON. Progress, notes, warnings and errors go to stderr, each error in one
sentence that says what was wrong, what was expected and what to do.
""".strip()

ENVIRONMENT = {
    "HF_HUB_CACHE": "Where models from the Hub are kept; `hub` in `HF_HOME` if not set.",
    "HF_HOME": "Where huggingface_hub keeps what it has; `~/.cache/huggingface` if not set.",
    "HF_TOKEN": "The token for gated and private repositories; `hf auth login` keeps one, too.",
    "HF_HUB_OFFLINE": "1: ask no network, take models from the cache alone.",
    "HF_ENDPOINT": "Another server than the Hub, a mirror for example.",
    "HF_HUB_DISABLE_PROGRESS_BARS": "0: show the bars of huggingface_hub.",
    "TRANSFORMERS_VERBOSITY": "What transformers says; `error` if not set.",
    "CUDA_VISIBLE_DEVICES": "Which GPUs there are for pare, as for any program with CUDA.",
    "OMP_NUM_THREADS": "The threads of the CPU, where `--threads` is not given.",
    "OMP_WAIT_POLICY": "How these wait for each other; `PASSIVE` (asleep) if neither it nor "
    "`GOMP_SPINCOUNT` or `KMP_BLOCKTIME` is set, so that a busy machine does not stall.",
}


def reference() -> str:
    """The page, in Markdown."""
    commands = all_commands()
    sections = [HEAD, contents(commands), *itertools.starmap(command_section, commands.items())]
    sections += [exit_codes(), environment()]
    return "\n\n".join(sections) + "\n"


def contents(commands: Mapping[str, click.Command]) -> str:
    links = [f"[{name}](#pare-{name.replace(' ', '-')})" for name in commands]
    links += ["[exit codes](#exit-codes)", "[environment](#environment)"]
    return filled(" · ".join(links))


def command_section(name: str, command: click.Command) -> str:
    """Synopsis, what it does, its options, examples."""
    context = click.Context(command, info_name=f"pare {name}")
    synopsis = " ".join([f"pare {name}", *command.collect_usage_pieces(context)])
    parts = [f"## pare {name}", fenced([synopsis]), *paragraphs(command.help or "")]
    groups: dict[str, list[str]] = {}
    for option in command.params:
        if isinstance(option, Option):
            groups.setdefault(option.title, []).append(option_item(option, context))
    for title, items in groups.items():
        parts += [*([f"{title}:"] if len(groups) > 1 else []), "\n".join(items)]
    examples = command.examples if isinstance(command, PareCommand) else ()
    return "\n\n".join([*parts, "For example:", fenced(list(examples))])


def paragraphs(text: str) -> Iterator[str]:
    """A docstring's paragraphs; those that click is not to wrap (\\b) as they are."""
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        if paragraph.startswith("\b"):
            yield fenced(paragraph.splitlines()[1:], "")
        else:
            yield filled(escaped(" ".join(paragraph.split())))


def option_item(option: Option, context: click.Context) -> str:
    """One option as an item of a list: names and value, what it does, its default."""
    names = " / ".join(f"`{name}{value_of(option, context)}`" for name in option.listed_names)
    names += "".join(f" / `{name}`" for name in option.secondary_opts)
    words = escaped(option.help or "")
    aliases = option.opts[len(option.listed_names) :]
    if aliases:
        words += f" Also {', '.join(f'`{name}`' for name in aliases)}."
    if option.required:
        words += " Required."
    elif option.show_default and option.default is not None:
        words += f" Default: `{option.default}`."
    return filled(f"- {names}: {words}", hanging="  ")


def value_of(option: Option, context: click.Context) -> str:
    """` NAME` of what follows the option; nothing for a flag."""
    if option.is_flag:
        return ""
    kind = option.type
    if isinstance(kind, click.Choice):
        # Many are broken into lines.
        between = " | " if len(kind.choices) > 8 else "|"
        return " " + between.join(map(str, kind.choices))
    if isinstance(kind, click.IntRange):
        upper = "" if kind.max is None else str(kind.max)
        return f" {option.metavar or 'INTEGER'} ({kind.min}..{upper})"
    return " " + option.make_metavar(context)


def exit_codes() -> str:
    items = [filled(f"- `{code}`: {words}", hanging="  ") for code, words in EXIT_CODES.items()]
    return "## Exit codes\n\n" + "\n".join(items)


def environment() -> str:
    items = [filled(f"- `{name}`: {words}", hanging="  ") for name, words in ENVIRONMENT.items()]
    head = "## Environment\n\nVariables that pare or its libraries read.\n\n"
    return head + "\n".join(items)


def fenced(lines: list[str], language: str = "bash") -> str:
    return "\n".join([f"```{language}", *lines, "```"])


def escaped(text: str) -> str:
    """Plain text for Markdown."""
    return text.replace("*", r"\*").replace("<", r"\<")


def filled(text: str, hanging: str = "") -> str:
    """`text` in lines of at most WIDTH, whatever the terminal; words are not broken."""
    return textwrap.fill(
        text, WIDTH, subsequent_indent=hanging, break_long_words=False, break_on_hyphens=False
    )


if __name__ == "__main__":
    click.echo(reference(), nl=False)
