"""Commands and options of `pare` as click classes: grouped help, aliases, options in errors.

`--help` lists the options that are usual, `--help-all` all of them by what they are about.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from pare.cli.parameter_names import with_options
from pare.cli.presets import find_preset, read_presets, settings_for
from pare.errors import PareError
from pare.runtime.extensions import COMMANDS, extensions, load_extension

SECTIONS = {
    "make": "Make images",
    "edit": "Edit images",
    "study": "Study the model at work",
    "check": "Check, convert, repeat",
}
EXAMPLES = "Examples:"
ALL = "pare.help_all"  # where a context's `meta` keeps that all options are to be listed
QUOTES = "; put a prompt of several words in quotes"

Function = TypeVar("Function", bound=Callable[..., Any])


class Option(click.Option):
    """An option with a place in the help, and names that it takes without listing them."""

    def __init__(
        self, *names: Any, usual: bool = False, aliases: Sequence[str] = (), **settings: Any
    ) -> None:
        """
        Args:
            usual: listed by --help; other options by --help-all alone.
            aliases: what other programs call it.
        """
        super().__init__(*names, **settings)
        self.listed_names = list(self.opts)
        self.opts.extend(aliases)
        self.usual = usual
        self.title = "Options"

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        with self.without_aliases():
            return super().get_help_record(ctx)

    def get_error_hint(self, ctx: click.Context | None) -> str:
        return f"'{self.listed_names[0]}'"

    @contextlib.contextmanager
    def without_aliases(self) -> Iterator[None]:
        taken, self.opts = self.opts, self.listed_names
        try:
            yield
        finally:
            self.opts = taken


def option(*names: str, **settings: Any) -> Callable[[Function], Function]:
    """As `click.option`, for `Option`."""
    return click.option(*names, cls=Option, **settings)


def options(
    title: str, *decorators: Callable[[Function], Function]
) -> Callable[[Function], Function]:
    """Several options as one decorator, under a common title in --help-all."""

    def titled(add: Callable[[Function], Function]) -> Callable[[Function], Function]:
        def decorate(function: Function) -> Function:
            function = add(function)
            function.__click_params__[-1].title = title  # type: ignore[attr-defined]
            return function

        return decorate

    return together(*map(titled, decorators))


def together(*decorators: Callable[[Function], Function]) -> Callable[[Function], Function]:
    """Several decorators as one, in the order in which --help lists their options."""

    def decorate(function: Function) -> Function:
        return functools.reduce(lambda inner, add: add(inner), reversed(decorators), function)

    return decorate


def show_all(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        context.meta[ALL] = True
        click.echo(context.get_help(), color=context.color)
        context.exit()


HELP_ALL = Option(
    ["--help-all"], is_flag=True, is_eager=True, expose_value=False, callback=show_all,
    help="Show all options.",
)  # fmt: skip


def use_presets(context: click.Context, parameter: click.Parameter, value: Sequence[str]) -> None:
    """Put the options of presets in the place of defaults; later ones have precedence."""
    gates = next((one for one in context.command.params if one.name == "preset"), None)
    settings: dict[str, Any] = {}
    for name in value:
        # Before there were presets in files, `--preset` was what is called `--gates` now.
        if gates and isinstance(gates.type, click.Choice) and name in gates.type.choices:
            settings["preset"] = name
        else:
            settings |= settings_for(find_preset(name), context.command)
    context.default_map = settings


def offer_presets(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    return [CompletionItem(name) for name in read_presets() if name.startswith(incomplete)]


PRESET = Option(
    ["--preset", "presets"], multiple=True, is_eager=True, expose_value=False, callback=use_presets,
    metavar="NAME", usual=True, shell_complete=offer_presets,
    help="Options from a file; see `pare presets`.",
)  # fmt: skip


class PareCommand(click.Command):
    """A command with a place in `pare --help`, whose errors name its own options."""

    def __init__(
        self, *given: Any, section: str = "check", examples: Sequence[str] = (), **named: Any
    ) -> None:
        super().__init__(*given, **named)
        self.section = section
        self.examples = tuple(examples)
        """Each can be pasted into a terminal: a test runs them all, in a folder with a photo.jpg
        and a mask.png, a road.png that `pare` made, a model as a folder (model), as
        model.safetensors and as model.ckpt, and an inpainting.safetensors."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        more = [PRESET] if any(one.name == "model" for one in self.params) else []
        more += [HELP_ALL] if self.unusual() else []
        own = super().get_params(ctx)
        return [*own[:-1], *more, *own[-1:]] if more else own  # --help is the last

    def unusual(self) -> list[Option]:
        """The options that --help leaves out: none where there are few."""
        listed = [one for one in self.params if isinstance(one, Option)]
        return [one for one in listed if not one.usual] if len(listed) > 12 else []

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rest = [] if ctx.meta.get(ALL) else self.unusual()
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record and not isinstance(parameter, click.Argument) and parameter not in rest:
                title = "Options"
                if ctx.meta.get(ALL) and isinstance(parameter, Option):
                    title = parameter.title
                sections.setdefault(title, []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)
        if rest:
            titles = dict.fromkeys(one.title for one in rest if one.title != "Options")
            formatter.write_paragraph()
            formatter.write_text(f"--help-all lists {len(rest)} more: {', '.join(titles)}.")

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.examples:
            with formatter.section(EXAMPLES.rstrip(":")):
                for line in self.examples:
                    formatter.write(f"{'':{formatter.current_indent}}{line}\n")

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:  # fmt: skip
        typed = list(args)  # click empties `args`
        with errors_name_options(self, parent):
            try:
                return super().make_context(info_name, args, parent, **extra)
            except click.UsageError as error:
                if not error.message.startswith("Got unexpected extra argument"):
                    raise
                flag = self.flag_before(typed, error.message)
                hint = f"; {flag} takes no value" if flag else QUOTES
                raise click.UsageError(error.message.rstrip(".") + hint, error.ctx) from error

    def flag_before(self, typed: Sequence[str], message: str) -> str | None:
        """The flag (--grid) that was given one of the unexpected arguments as its value."""
        extra = message.partition("(")[2].rstrip(".)").split()
        flags = {name for one in self.params if getattr(one, "is_flag", False) for name in one.opts}
        pairs = itertools.pairwise(typed)
        return next((flag for flag, word in pairs if flag in flags and word in extra), None)

    def invoke(self, ctx: click.Context) -> Any:
        with errors_name_options(self, ctx.parent):
            return super().invoke(ctx)


@contextlib.contextmanager
def errors_name_options(command: click.Command, parent: click.Context | None) -> Iterator[None]:
    """Let an error name the options of the command that was typed.

    A command that `pare rerun` runs has no parent: nobody typed its options.
    """
    try:
        yield
    except PareError as error:
        if parent is not None:
            error.args = (with_options(error.args[0], command),)
        raise


class PareGroup(click.Group, PareCommand):
    """Commands by what they are for."""

    command_class = PareCommand

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section, title in SECTIONS.items():
            rows = list(self.sentences(section))
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def sentences(self, section: str) -> Iterator[tuple[str, str]]:
        for name, command in self.all_commands().items():
            if getattr(command, "section", "check") == section:
                yield name, command.get_short_help_str(limit=200)

    def all_commands(self) -> dict[str, click.Command]:
        """Those of pare, and those of other packages that can be loaded."""
        found = dict(self.commands)
        for name in extensions(COMMANDS) if self.name == "cli" else ():
            try:
                found.setdefault(name, load_extension(COMMANDS, name))
            except PareError as error:
                click.echo(f"pare: warning: {error.args[0]}", err=True)
        return found

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        own = super().get_command(ctx, cmd_name)
        return own or (load_extension(COMMANDS, cmd_name) if self.name == "cli" else None)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), *(extensions(COMMANDS) if self.name == "cli" else ())]


command = functools.partial(click.command, cls=PareCommand)
