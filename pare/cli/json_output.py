"""Results as JSON, and reports as a table or as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pare.cli import terminal

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
    terminal.result(json.dumps(report.to_json(), indent=2) if as_json else report.table())
    if not report.passed:
        click.get_current_context().exit(1)
