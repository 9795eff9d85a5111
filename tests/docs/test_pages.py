"""What the pages say of files, modules, options and output is so."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path

import click
import pytest

import pare.cli.main
from docs import printed_output
from pare.runtime.extensions import COMMANDS, LOSSES  # groups of entry points, no modules
from tests.conftest import ROOT

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
LINE_NUMBERS = re.compile(r"\.py:\d+ *")
# Options of other programs that the pages call, or that are put together from parts.
FOREIGN = {"--seconds", "--again", "--streetlights", "--no-clouds"}


@pytest.fixture(params=PAGES, ids=lambda path: path.stem)
def page(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def options() -> set[str]:
    """Every option of every command, and of the modules of roads that pages call."""
    found = {"--help", "--help-all", "--version", "--preset"}
    for command in pare.cli.main.all_commands().values():
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                found |= {*parameter.opts, *parameter.secondary_opts}
    for path in (ROOT / "roads").rglob("*.py"):
        found |= set(re.findall(r'"(--[a-z][\w-]+)"', path.read_text(encoding="utf-8")))
    return found


def test_the_options_that_a_page_names_exist(page: Path) -> None:
    if page.name == "CHANGELOG.md":
        return  # what was is named there, too
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+[a-z]", page.read_text(encoding="utf-8")))
    assert named <= options() | FOREIGN


def test_the_files_and_modules_that_a_page_names_exist(page: Path) -> None:
    if page.name == "CHANGELOG.md":
        return
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"`((?:pare|techniques|roads|tests|docs)/[\w./-]+)`", text):
        assert (ROOT / path).exists() or "NAME" in path, path
    for name in set(re.findall(r"\b(?:pare|techniques|roads)(?:\.[a-z_]\w*)+", text)):
        module, attributes = name, []
        while "." in module and not is_module(module):
            module, _, attribute = module.rpartition(".")
            attributes.append(attribute)
        if name.endswith((".png", ".json", ".py", ".toml")) or name in (COMMANDS, LOSSES):
            continue
        assert module != name.partition(".")[0] or hasattr(pare, attributes[-1]), name
        if attributes:
            assert attributes[-1] in vars(importlib.import_module(module)), name


def is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.parametrize(
    "path",
    [path for path in PAGES if printed_output.BLOCK.search(path.read_text(encoding="utf-8"))],
    ids=lambda path: path.stem,
)
def test_what_a_page_prints_is_what_the_command_prints(path: Path) -> None:
    """But for the numbers of lines of code, which every commit moves."""
    text = path.read_text(encoding="utf-8")
    shown, now = LINE_NUMBERS.sub("", text), LINE_NUMBERS.sub("", printed_output.refreshed(text))
    assert shown == now, "run `python -m docs.printed_output`"


def test_a_section_of_what_is_printed() -> None:
    text = "one\n  a\n\n  b\n\ntwo\n  c\n"
    assert printed_output.section(text, "one") == "one\n  a\n\n  b"
    assert printed_output.section(text, "two") == "two\n  c"
    assert printed_output.section(text, None) == text.rstrip("\n")
    with pytest.raises(StopIteration):
        printed_output.section(text, "three")
