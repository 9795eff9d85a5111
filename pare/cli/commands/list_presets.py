"""`pare presets`: the presets that --preset takes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from pare.cli import terminal
from pare.cli.grouped_help import command
from pare.cli.options import json_option
from pare.cli.presets import PROJECT_FILE, USER_FILE, read_presets

EXAMPLES = ("pare presets",)


@command(section="check", examples=EXAMPLES)
@json_option
def presets(as_json: bool) -> None:
    """List the presets that `--preset NAME` takes: options under a name, in a TOML file.

    They stand in pare.toml, in this folder or one above, and in presets.toml in pare's folder of
    settings (~/.config/pare on Linux). A preset is a table, and its keys are options without their
    dashes:

    \b
    [draft]               every command's
    steps = 12
    scheduler = "ddim"
    [draft.img2img]       besides, img2img's alone
    strength = 0.5

    Options that are typed have precedence; the image's recipe holds what the preset stood for.
    """
    found = read_presets()
    if as_json:
        rows = {name: {"file": str(one.file), **one.settings} for name, one in found.items()}
        terminal.result(json.dumps(rows, indent=2, default=str))
        return
    if not found:
        user = Path(click.get_app_dir("pare")) / USER_FILE
        terminal.note(f"no presets: neither {PROJECT_FILE} (here or above) nor {user} has any")
    for name, preset in found.items():
        terminal.result(terminal.one_line(f"{name}: {in_words(preset.settings)} ({preset.file})"))


def in_words(settings: Mapping[str, Any]) -> str:
    """`steps 12, scheduler ddim, img2img: strength 0.5`."""
    return ", ".join(
        f"{key}: {in_words(value)}" if isinstance(value, Mapping) else f"{key} {value}"
        for key, value in settings.items()
    )
