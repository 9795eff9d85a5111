"""The rows of a job file: JSON lines, CSV, parquet, or a grid in YAML or TOML.

A job file is untrusted input: lines, files and grids are bounded, and a file of a million rows is
read as the rows are needed.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from pare.errors import JobFileError, MissingExtraError
from pare.recipes.recipe import too_deep

MAX_LINE = 2**20  # bytes of a line
MAX_GRID = 2**20  # bytes of a grid's file
MAX_JOBS = 10**9  # of a grid
DEEPEST = 8  # lists and objects inside each other
RANGE = re.compile(r"([0-9]{1,20})\.\.([0-9]{1,20})")
COUNTED = ("seed", "steps", "start")  # options of which A..B is a range
FORMULA = re.compile(r"[=@\t\r]|[+-](?![0-9.]+(e[0-9]+)?$)", re.IGNORECASE)

ENDINGS = (".jsonl", ".ndjson", ".csv", ".parquet", ".yaml", ".yml", ".toml")


@dataclass(frozen=True)
class Row:
    """The options of one job as they are written, or what is wrong with the line."""

    place: str  # "line 3", "row 3", "job 3": what an editor or a viewer calls it
    number: int
    values: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    typed: bool = True  # False: every value is text, as in CSV


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a job file; what is wrong with one of them is in the row.

    Raises:
        JobFileError: a file of another kind, or one that cannot be read at all.
        MissingExtraError: a package for that kind is not installed.
        OSError: it cannot be opened.
    """
    if not path.is_file():
        if path.exists():
            raise JobFileError(f"{path} is not a regular file", expected="a job file")
        raise JobFileError(f"there is no file {path}", expected="a job file")
    ending = path.suffix.lower()
    if ending in (".jsonl", ".ndjson"):
        return json_rows(path)
    if ending == ".csv":
        return csv_rows(path)
    if ending == ".parquet":
        return parquet_rows(path)
    if ending in (".yaml", ".yml", ".toml"):
        return grid_rows(read_grid(path), path)
    raise JobFileError(
        f"{path} is no job file", expected=f"a name that ends in {', '.join(ENDINGS)}"
    )


def count_rows(path: Path) -> int | None:
    """How many rows there are, where that can be said without reading them as jobs."""
    ending = path.suffix.lower()
    if ending in (".jsonl", ".ndjson"):
        with open(path, "rb") as file:
            return sum(block.count(b"\n") for block in iter(lambda: file.read(2**20), b""))
    if ending == ".parquet":
        return int(parquet_file(path).metadata.num_rows)
    if ending in (".yaml", ".yml", ".toml"):
        return sum(math.prod(map(len, axes.values())) for axes in grids_of(read_grid(path), path))
    return None


# --- one row a line ---------------------------------------------------------------------------


def bounded_lines(file: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """The lines with their numbers from 1; None for one that is too long."""
    for number in itertools.count(1):
        line = file.readline(MAX_LINE + 1)
        if not line:
            return
        if len(line) > MAX_LINE:
            while line and not line.endswith(b"\n"):
                line = file.readline(MAX_LINE)
            yield number, None
        else:
            yield number, line


TOO_LONG = f"it is longer than {MAX_LINE} bytes"


def json_rows(path: Path) -> Iterator[Row]:
    with open(path, "rb") as file:
        for number, line in bounded_lines(file):
            place = f"line {number}"
            if line is None:
                yield Row(place, number, error=TOO_LONG)
            elif line.strip():
                yield json_row(place, number, line)


def json_row(place: str, number: int, line: bytes) -> Row:
    try:
        values = json.loads(line.decode("utf-8-sig"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        return Row(place, number, error=f"it is not JSON: {error}")
    if not isinstance(values, dict):
        return Row(place, number, error="it is not a JSON object")
    if too_deep(values, DEEPEST):
        return Row(place, number, error="it is nested too deeply")
    return Row(place, number, values)


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs as an object; json itself would keep the last of two equal keys in silence."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key occurs twice")
    return found


def csv_rows(path: Path) -> Iterator[Row]:
    with open(path, "rb") as file:
        lengths: list[int] = []  # numbers of lines that are too long

        def lines() -> Iterator[str]:
            for number, line in bounded_lines(file):
                if line is None:
                    lengths.append(number)
                    yield "\n"
                else:
                    yield line.decode("utf-8-sig" if number == 1 else "utf-8", "surrogateescape")

        reader = csv.reader(lines(), strict=True)
        head: list[str] | None = None
        while True:
            first = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise JobFileError(f"{path}, line {reader.line_num}: {error}") from error
            place = f"line {first}"
            if lengths:
                yield Row(f"line {lengths.pop()}", first, error=TOO_LONG)
            elif not any(cells):
                continue
            elif head is None:
                head = [cell.strip() for cell in cells]
                if len(set(head)) < len(head) or not all(head):
                    raise JobFileError(
                        f"{path}: a column has no name, or that of another one",
                        expected="a first line with the names of options",
                    )
            elif len(cells) != len(head):
                many = f"it has {len(cells)} cells, and the first line {len(head)}"
                yield Row(place, first, error=many)
            else:
                yield csv_row(place, first, dict(zip(head, cells, strict=True)))


def csv_row(place: str, number: int, cells: dict[str, str]) -> Row:
    for name, cell in cells.items():
        if FORMULA.match(cell):
            wrong = f"{name} is {cell[:40]!r}, a formula of a spreadsheet; expected the text itself"
            return Row(place, number, error=wrong)
    return Row(place, number, {name: cell for name, cell in cells.items() if cell}, typed=False)


def parquet_rows(path: Path) -> Iterator[Row]:
    numbers = itertools.count(1)
    for batch in parquet_file(path).iter_batches(batch_size=1000):
        for values in batch.to_pylist():
            number = next(numbers)
            given = {name: value for name, value in values.items() if value is not None}
            yield Row(f"row {number}", number, given)


def parquet_file(path: Path) -> Any:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise needs("pyarrow") from error
    try:
        return parquet.ParquetFile(path)
    except (pyarrow.ArrowException, ValueError) as error:
        raise JobFileError(f"{path} is no parquet file that can be read: {error}") from error


def needs(package: str) -> MissingExtraError:
    return MissingExtraError(
        f"this job file needs {package}", fix='install it: pip install "pare[batch]"'
    )


# --- grids --------------------------------------------------------------------------------------


def read_grid(path: Path) -> Any:
    """The content of a YAML or a TOML file."""
    with open(path, "rb") as file:
        content = file.read(MAX_GRID + 1)
    if len(content) > MAX_GRID:
        raise JobFileError(
            f"{path} is larger than {MAX_GRID} bytes",
            expected="a grid's settings; rows belong into JSON lines",
        )
    if path.suffix.lower() == ".toml":
        with readable(path, (ValueError, RecursionError)):
            return tomllib.loads(content.decode())
    try:
        import yaml
    except ImportError as error:
        raise needs("pyyaml") from error
    with readable(path, (yaml.YAMLError, ValueError, RecursionError)):
        # An alias may stand for more than memory holds, and a grid needs none.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(content)):
            raise JobFileError(f"{path} has aliases (*name)", expected="every value written out")
        return yaml.safe_load(content)


@contextlib.contextmanager
def readable(path: Path, errors: tuple[type[Exception], ...]) -> Iterator[None]:
    try:
        yield
    except JobFileError:
        raise
    except errors as error:
        raise JobFileError(f"{path} cannot be read: {' '.join(str(error).split())}") from error


def grids_of(content: Any, path: Path) -> list[dict[str, list[Any] | range]]:
    """The axes of every grid: a file holds one, or several in a list named `grids`.

    A list of values, or a range A..B of a whole number, is an axis; anything else is the same in
    all jobs.
    """
    if isinstance(content, dict) and set(content) == {"grids"}:
        content = content["grids"]
    listed = content if isinstance(content, list) else [content]
    if not all(isinstance(grid, dict) and grid for grid in listed) or too_deep(listed, DEEPEST):
        raise JobFileError(f"{path} holds no grid", expected="options, each with a value or a list")
    axes = [{str(name): axis(str(name), value) for name, value in grid.items()} for grid in listed]
    count = sum(math.prod(map(len, grid.values())) for grid in axes)
    if not 1 <= count <= MAX_JOBS:
        raise JobFileError(f"{path} expands to {count} jobs", expected=f"1 to {MAX_JOBS}")
    return axes


def axis(name: str, value: Any) -> list[Any] | range:
    if name in COUNTED and isinstance(value, str) and (ends := RANGE.fullmatch(value)):
        return range(int(ends[1]), min(int(ends[2]), int(ends[1]) + MAX_JOBS) + 1)
    return value if isinstance(value, list) else [value]


def grid_rows(content: Any, path: Path) -> Iterator[Row]:
    """One row a combination, the last axis changing fastest."""
    numbers = itertools.count(1)
    for axes in grids_of(content, path):
        for values in combinations(list(axes.items())):
            number = next(numbers)
            yield Row(f"job {number}", number, values)


def combinations(axes: list[tuple[str, list[Any] | range]]) -> Iterator[dict[str, Any]]:
    """As `itertools.product`, which would write out a range of a million."""
    if not axes:
        yield {}
        return
    *before, (name, values) = axes
    for others in combinations(before):
        for value in values:
            yield {**others, name: value}
