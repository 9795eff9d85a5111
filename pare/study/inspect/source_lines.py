"""The source code of the lines that a layer table names."""

from __future__ import annotations

import ast
import linecache
from importlib.util import find_spec
from pathlib import Path

AROUND = 2
"""Lines before and after one that calls a layer."""
LONGEST = 60
"""Lines of a function that are shown."""


def source_lines(place: str) -> dict[str, object]:
    """The code at `pare/unet/resnet.py:45`.

    Returns:
        {"first": 45, "mark": 45, "lines": […]}: a whole function where the line begins one, else
        the line with its neighbours.  Nothing for a file that is not there.
    """
    name, _, number = place.rpartition(":")
    line = int(number)
    path = find(name)
    lines = linecache.getlines(str(path)) if path is not None else []
    if not 1 <= line <= len(lines):
        return {"first": line, "mark": line, "lines": []}
    first, last = function_at(lines, line) or (max(1, line - AROUND), line + AROUND)
    shown = [text.rstrip("\n") for text in lines[first - 1 : min(last, first + LONGEST - 1)]]
    return {"first": first, "mark": line, "lines": shown}


def find(name: str) -> Path | None:
    """The file of `pare/unet/resnet.py`, wherever the package is installed."""
    spec = find_spec(Path(name).parts[0]) if len(Path(name).parts) > 1 else None
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))).parent / name


def function_at(lines: list[str], line: int) -> tuple[int, int] | None:
    """The first and last line of the function that begins at a line."""
    for node in ast.walk(ast.parse("".join(lines))):
        if isinstance(node, ast.FunctionDef) and line in (
            node.lineno, *(d.lineno for d in node.decorator_list)
        ):  # fmt: skip
            return line, node.end_lineno or line
    return None
