"""What commands print: values as JSON, reports, words for who watches."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pare.verify import ParityReport
    from pare.verify.speed import BenchReport


def plain(value: Any) -> Any:
    """The value as JSON has it: paths as text, tuples as lists, dataclasses as objects."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


def print_report(report: ParityReport | BenchReport, as_json: bool) -> None:
    """The table, or the JSON; leaves with exit code 1 if a bound is broken."""
    click.echo(json.dumps(report.to_json(), indent=2) if as_json else report.table())
    if not report.passed:
        click.get_current_context().exit(1)


def say_on_terminal() -> Callable[[str], None] | None:
    """What a long command tells about its progress, for who watches."""
    if not sys.stderr.isatty():
        return None
    return lambda words: click.echo(f"pare: {words}", err=True)
