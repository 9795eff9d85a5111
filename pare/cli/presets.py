"""Presets: options under a name, in TOML files of the user and of the project.

    [draft]                # pare generate "…" --preset draft
    steps = 12
    guidance = 5

    [draft.img2img]        # besides, for img2img alone
    strength = 0.5

A key is an option's name without its dashes.  A value goes through the command's own parser, as
if it had been typed, and an option that is typed has precedence.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from pare.errors import SettingError

PROJECT_FILE = "pare.toml"
USER_FILE = "presets.toml"


@dataclass(frozen=True)
class Preset:
    """One table of a presets file."""

    name: str
    file: Path
    settings: Mapping[str, Any]


def preset_files() -> list[Path]:
    """Those that exist, the later ones with precedence: the user's, then the project's, which is
    the nearest pare.toml in the current folder or above."""
    user = Path(click.get_app_dir("pare")) / USER_FILE
    here = Path(os.path.abspath(os.curdir))
    project = (folder / PROJECT_FILE for folder in (here, *here.parents))
    found = [user, next((file for file in project if file.is_file()), here / PROJECT_FILE)]
    return [file for file in found if file.is_file()]


def read_presets() -> dict[str, Preset]:
    """Every preset by its name.

    Raises:
        SettingError: a file that is no TOML, or a preset that is no table.
        OSError: a file that cannot be opened.
    """
    presets = {}
    for file in preset_files():
        try:
            content = tomllib.loads(file.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SettingError(f"{file} is not valid TOML: {error}") from error
        for name, settings in content.items():
            if not isinstance(settings, Mapping):
                raise SettingError(
                    f"{name!r} in {file} is no table", expected="presets, each under [NAME]"
                )
            presets[name] = Preset(name, file, settings)
    return presets


def find_preset(name: str) -> Preset:
    """
    Raises:
        SettingError: there is no such preset, or a file cannot be read as TOML.
        OSError: a file cannot be opened.
    """
    presets = read_presets()
    if name in presets:
        return presets[name]
    near = difflib.get_close_matches(name, presets, 1)
    user = Path(click.get_app_dir("pare")) / USER_FILE
    raise SettingError(
        f"there is no preset {name!r}" + (f" (did you mean {near[0]!r}?)" if near else ""),
        expected=", ".join(presets) or f"a table [{name}] in {PROJECT_FILE} here or in {user}",
    )


def settings_for(preset: Preset, command: click.Command) -> dict[str, Any]:
    """The command's parameters that the preset sets, as click's `default_map` has them.

    Raises:
        SettingError: an option that the command does not have, or a value that none could have.
    """
    parameters = dict(settable(command))
    settings = {k: value for k, value in preset.settings.items() if not isinstance(value, Mapping)}
    own = preset.settings.get(str(command.name))
    found = {}
    for key, value in {**settings, **(own if isinstance(own, Mapping) else {})}.items():
        word = key.replace("_", "-")
        if word not in parameters:
            near = difflib.get_close_matches(word, parameters, 1)
            raise SettingError(
                f"{where(preset)} sets {key!r}, which is no option of `pare {command.name}`"
                + (f" (did you mean {near[0]!r}?)" if near else ""),
                fix=f"options of one command stand under [{preset.name}.COMMAND]",
            )
        found[str(parameters[word].name)] = as_typed(parameters[word], key, value, preset)
    return found


def where(preset: Preset) -> str:
    return f"[{preset.name}] in {preset.file}"


def settable(command: click.Command) -> Iterator[tuple[str, click.Option]]:
    """The options by their names without dashes, other programs' names included."""
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.is_eager:
            yield from ((name.lstrip("-"), parameter) for name in parameter.opts)


def as_typed(option: click.Option, key: str, value: Any, preset: Preset) -> Any:
    """A value of the file as text, which the option's own type reads; a flag's as it is."""
    if option.is_flag:
        fits, expected = isinstance(value, bool), "true or false"
    elif option.multiple:
        value = value if isinstance(value, list) else [value]
        fits, expected = all(map(is_scalar, value)), "text, a number, or a list of them"
    else:
        fits, expected = is_scalar(value), "text or a number"
    if not fits:
        raise SettingError(f"{key} of {where(preset)} is {value!r}", expected=expected)
    if option.is_flag:
        return value
    return [str(one) for one in value] if option.multiple else str(value)


def is_scalar(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)
