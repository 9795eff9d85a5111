"""docs/reference.md is what the code says, whatever the terminal."""

from __future__ import annotations

import re

import click
import pytest

from pare.cli.main import all_commands
from pare.cli.reference_page import ENVIRONMENT, reference
from pare.cli.terminal import EXIT_CODES
from tests.conftest import ROOT


def test_the_page_is_up_to_date() -> None:
    page = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    again = "make it again: python -m pare.cli.reference_page > docs/reference.md"
    assert page == reference(), again


def test_it_is_complete() -> None:
    page = reference()
    for name, command in all_commands().items():
        section = page.partition(f"\n## pare {name}\n")[2].partition("\n## ")[0]
        assert section, name
        for parameter in command.params:
            for option in (*parameter.opts, *parameter.secondary_opts):
                shown = f"`{option}" if isinstance(parameter, click.Option) else "pare " + name
                assert shown in section, (name, option)
        assert all(example in section for example in vars(command)["examples"])
    for word in (*EXIT_CODES, *ENVIRONMENT):
        assert f"- `{word}`: " in page


@pytest.mark.parametrize("columns", ["20", "300"])
def test_it_does_not_depend_on_the_terminal(monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    before = reference()
    monkeypatch.setenv("COLUMNS", columns)
    assert reference() == before
    long = [line for line in before.splitlines() if len(line) > 100]
    # What cannot be broken: the values of an option, a synopsis.
    assert all(re.match(r"- `|pare ", line) for line in long), long
