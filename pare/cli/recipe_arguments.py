"""From the arguments in a recipe back to what one types, for a shell and for click.

Whatever is run again goes through the command's own parser, so that every check that holds
for a user's words holds for a recipe's.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from pare.cli.image_run import NOT_IN_RECIPE, ImageCommand, input_files
from pare.cli.json_output import plain
from pare.errors import PareError, RecipeError
from pare.runtime import validation

if TYPE_CHECKING:
    from pare.recipes.recipe import Recipe


def words(command: click.Command, arguments: Mapping[str, Any]) -> list[str]:
    """What to type after the command's name.

    Raises:
        RecipeError: an argument that the command does not have, or of a kind that it never has.
    """
    names = {parameter.name for parameter in command.params if parameter.expose_value}
    for name in arguments:
        if name not in names:
            raise RecipeError(f"{command.name} has no setting {name[:40]!r}")
    options: list[str] = []
    positional: list[str] = []
    for parameter in command.params:
        value = arguments.get(str(parameter.name))
        if isinstance(parameter, click.Argument):
            positional += texts(parameter, value)
        elif isinstance(parameter, click.Option) and parameter.is_flag:
            options += flag(parameter, value)
        else:
            for text in texts(parameter, value):
                options += option_words(parameter.opts[0], text)
    return [*options, "--", *positional]


def option_words(name: str, text: str) -> list[str]:
    """Two words, or one where the value could be taken for an option."""
    return [f"{name}={text}"] if text.startswith("-") else [name, text]


def texts(parameter: click.Parameter, value: Any) -> list[str]:
    """The values of a parameter, one text each; a size, [512, 768], is one: 512x768."""
    if value is None:
        return []
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(one, str | int | float) for one in values):
        raise RecipeError(f"the setting {parameter.name!r} is not what pare writes")
    if isinstance(value, list) and not parameter.multiple and parameter.nargs == 1:
        return ["x".join(map(str, values))]
    typed = [str(one) for one in values]
    if any("\0" in text for text in typed):  # no command line can hold it
        raise RecipeError(f"the setting {parameter.name!r} holds a zero byte")
    return typed


def flag(option: click.Option, value: Any) -> list[str]:
    if not isinstance(value, bool | None):
        raise RecipeError(f"the setting {option.name!r} is not what pare writes")
    if value is None:
        return []
    return option.opts[:1] if value else option.secondary_opts[:1]


def parse(
    command: click.Command, arguments: Mapping[str, Any], where: str, obj: object = None
) -> click.Context:
    """The command, ready to be invoked with the arguments of the recipe in the file `where`.

    Raises:
        RecipeError: the command does not take them.
    """
    try:
        return command.make_context(command.name, words(command, arguments), obj=obj)
    except click.UsageError as error:
        reason = error.format_message()
    except PareError as error:
        reason = str(error)
    raise RecipeError(f"the recipe in {where} cannot be run: {reason.rstrip('.')}")


def check_recipe(command: click.Command, recipe: Recipe, where: str) -> dict[str, Any]:
    """The recipe's arguments, if the command reads them as what they are.

    Raises:
        RecipeError: it does not, or they contradict the recipe's seeds or inputs.
    """
    arguments = dict(recipe.arguments)
    for name in NOT_IN_RECIPE & set(arguments):
        raise RecipeError(f"the recipe in {where} says where to write ({name})")
    given = plain(parse(command, arguments, where).params)
    odd = [key for key, value in arguments.items() if exact(value) != exact(given[key])]
    inputs = {name: str(path) for name, path in input_files(command, given).items()}
    if inputs != {name: recorded["name"] for name, recorded in recipe.inputs.items()}:
        odd.append("inputs")
    try:
        seeds = validation.consecutive_seeds(given["seed"], given["count"])
    except PareError as error:
        raise RecipeError(f"the recipe in {where} cannot be run: {error}") from error
    if seeds != list(recipe.seeds):
        odd.append("seeds")
    if isinstance(command, ImageCommand) and command.parts(given) != list(recipe.parts):
        odd.append("parts")
    if odd:
        raise RecipeError(f"the recipe in {where} contradicts itself or pare ({odd[0]})")
    return arguments


def exact(value: Any) -> str:
    """Tells 1 from 1.0 and from true."""
    return json.dumps(value, sort_keys=True)


def for_a_shell(command: click.Command, arguments: Mapping[str, Any]) -> str:
    """The command line to copy: `arguments`, as `check_recipe` has them, but for defaults."""
    context = click.Context(command)
    usual = {p.name: plain(p.get_default(context)) for p in command.params}
    unusual = {key: value for key, value in arguments.items() if value != usual[key]}
    line = words(command, unusual)
    # The first one is its own: a value that begins with dashes is joined to its option.
    split = line.index("--")
    options, positional = line[:split], line[split + 1 :]
    if any(word.startswith("-") for word in positional):
        positional.insert(0, "--")
        ordered = [*options, *positional]
    else:
        ordered = [*positional, *options]
    return " ".join(map(quote, ["pare", *str(command.name).split(), *ordered]))


def quote(word: str) -> str:
    """The word for a shell; $'…' where it holds what would steer the terminal."""
    if all(letter.isprintable() for letter in word):
        return shlex.quote(word)
    escaped = word.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + "".join(c if c.isprintable() else escape(c) for c in escaped) + "'"


def escape(letter: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in letter.encode("utf-8", "surrogateescape"))
