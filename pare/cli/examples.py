"""The examples with which every command's help ends.

Each can be pasted into a terminal: a test runs them all, in a folder with a photo.jpg and a
mask.png, a road.png that `pare` made, a model as a folder (model), as model.safetensors and
as model.ckpt, and an inpainting.safetensors.  Examples name no other files but those that
they make.
"""

from __future__ import annotations

import click

TITLE = "Examples:"


def examples(*lines: str) -> str:
    """The lines, each a whole `pare …`, as the `epilog` of a click command."""
    # \b: click is not to wrap them.
    return "\n".join(["\b", TITLE, *(f"  {line}" for line in lines)])


def examples_of(command: click.Command) -> list[str]:
    """What was given to `examples`."""
    lines = (line.strip() for line in (command.epilog or "").splitlines())
    return [line for line in lines if line not in ("", "\b", TITLE)]
