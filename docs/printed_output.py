"""Keeps what pages show of the command's output as the command prints it.

    python -m docs.printed_output        # runs the commands, and writes the pages

A page marks such a block, which is a code block, with the command and, optionally, the
beginning of the one paragraph of its output that is shown (up to the next line that is not
indented and follows a blank line):

    <!-- printed: pare inspect sd1 | the U -->
    <!-- end -->
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from pathlib import Path

import pare.cli.main

DOCS = Path(__file__).parent
BLOCK = re.compile(
    r"<!-- printed: (?P<command>pare [^|]*?)(?: \| (?P<start>[^>]*?))? -->\n.*?<!-- end -->",
    flags=re.DOTALL,
)


def output(command: str) -> str:
    """What a `pare` command prints on stdout."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = pare.cli.main.main(shlex.split(command)[1:])
    if code:
        raise RuntimeError(f"{command} ended with {code}")
    return printed.getvalue()


def section(text: str, start: str | None) -> str:
    """The paragraphs from the one that begins with `start` to the next that is not indented."""
    if start is None:
        return text.rstrip("\n")
    paragraphs = re.split(r"\n\n(?=\S)", text.rstrip("\n"))
    return next(paragraph for paragraph in paragraphs if paragraph.startswith(start))


def refreshed(page: str) -> str:
    """The page's text, with every marked block as the command prints it now."""

    def block(match: re.Match[str]) -> str:
        head = match[0].partition("\n")[0]
        shown = section(output(match["command"]), match["start"])
        return f"{head}\n```\n{shown}\n```\n<!-- end -->"

    return BLOCK.sub(block, page)


def main() -> None:
    for path in sorted(DOCS.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        if BLOCK.search(text):
            path.write_text(refreshed(text), encoding="utf-8")
            print(path.name)


if __name__ == "__main__":
    main()
