"""Techniques, solvers and losses of other packages, found by their entry points.

A package names them in its pyproject.toml, and they appear in the command:

    [project.entry-points."pare.commands"]      # a click command: `pare NAME`
    [project.entry-points."pare.schedulers"]    # a subclass of Scheduler: --scheduler NAME
    [project.entry-points."pare.losses"]        # a function that returns a loss: --loss NAME

They run as code that you installed; what pare has itself keeps its name.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from pare.errors import ExtensionError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

COMMANDS, SCHEDULERS, LOSSES = "pare.commands", "pare.schedulers", "pare.losses"


@functools.cache
def extensions(group: str) -> dict[str, EntryPoint]:
    """The entry points of a group by their names; nothing is imported."""
    from importlib.metadata import entry_points

    return {one.name: one for one in entry_points(group=group)}


def load_extension(group: str, name: str) -> Any:
    """What an entry point names, or None if there is none of this name.

    Raises:
        ExtensionError: the package does not have it, or cannot be imported.
    """
    if name not in extensions(group):
        return None
    found = extensions(group)[name]
    try:
        return found.load()
    except (ImportError, AttributeError) as error:
        package = found.dist.name if found.dist else found.module
        raise ExtensionError(
            f"{name!r} of the package {package} cannot be loaded ({error})",
            fix="install its newest version, or uninstall it",
        ) from error
