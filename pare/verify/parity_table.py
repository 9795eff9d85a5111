"""The results of comparisons: as values, as JSON and as a table."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Distance:
    """The largest difference between pare's tensors and diffusers'; NaN, which passes no
    bound, if either has one."""

    absolute: float  # max |difference|
    relative: float  # max |difference| / max |reference|

    @classmethod
    def between(cls, ours: Tensor, theirs: Tensor) -> Distance:
        if ours.shape != theirs.shape:
            return cls(math.inf, math.inf)
        # On the CPU: MPS has no float64.
        ours, theirs = ours.detach().cpu().double(), theirs.detach().cpu().double()
        absolute = float((ours - theirs).abs().max())
        scale = float(theirs.abs().max())
        return cls(absolute, absolute / scale if scale else absolute)

    @classmethod
    def worst(cls, distances: Iterable[Distance]) -> Distance:
        listed = list(distances)
        return cls(
            largest(distance.absolute for distance in listed),
            largest(distance.relative for distance in listed),
        )


def largest(numbers: Iterable[float]) -> float:
    """The largest number, or NaN if there is one (`max` would lose it)."""
    listed = list(numbers)
    return math.nan if any(math.isnan(number) for number in listed) else max(listed)


@dataclass(frozen=True)
class Bound:
    """What a row must satisfy: `measure` at most `limit`."""

    measure: str  # 'absolute' | 'relative' | 'levels' | 'psnr', which must be at least the limit
    limit: float

    def __str__(self) -> str:
        if self.measure == "levels":
            return f"8-bit {self.limit:.0f}"
        if self.measure == "psnr":
            return f"{self.limit:.0f} dB"
        if self.limit == 0:
            return "same bits"
        return f"rel {self.limit:.0e}"


SAME_BITS = Bound("absolute", 0.0)


@dataclass(frozen=True)
class ParityRow:
    """One comparison."""

    group: str
    """One of `pare.verify.GROUPS`."""
    name: str
    distance: Distance
    bound: Bound
    levels: int | None = None
    """Of images: the largest difference of any 8-bit channel of any pixel."""
    time_ratio: float | None = None
    """pare's time / diffusers', measured in turns; None where nothing was timed."""
    note: str = ""
    psnr: float | None = None
    """Of images, in dB, where the technique amplifies rounding; inf if they are equal."""

    @property
    def measured(self) -> float:
        """The value that the bound is for."""
        if self.bound.measure == "psnr":
            return math.nan if self.psnr is None else self.psnr
        if self.bound.measure == "levels":
            return math.nan if self.levels is None else self.levels
        return float(getattr(self.distance, self.bound.measure))

    @property
    def passed(self) -> bool:
        if self.bound.measure == "psnr":
            return self.measured >= self.bound.limit
        return self.measured <= self.bound.limit


@dataclass(frozen=True)
class Skipped:
    """A comparison that was not made."""

    name: str
    reason: str


Compared = ParityRow | Skipped


@dataclass(frozen=True)
class ParityReport:
    """All comparisons of a run, with the model, device and versions that they were made on."""

    model: Mapping[str, Any]
    device: str
    dtype: str
    threads: int
    versions: Mapping[str, str]
    rows: Sequence[ParityRow]
    skipped: Mapping[str, str]
    """What was not compared -> why."""
    seconds: float

    @property
    def passed(self) -> bool:
        return bool(self.rows) and all(row.passed for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """Fit for `json.dumps`: numbers that JSON lacks (nan, inf) are their names."""
        rows = [
            dataclasses.asdict(row)
            | {"bound": dataclasses.asdict(row.bound) | {"text": str(row.bound)}}
            | {"measured": row.measured, "passed": row.passed}
            for row in self.rows
        ]
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        plain: dict[str, Any] = jsonable(values | {"rows": rows, "passed": self.passed})
        return plain

    def table(self) -> str:
        """The rows as aligned text, what was skipped, and a summary line."""
        head = ("", "compared with diffusers", "abs", "rel", "8-bit", "bound", "time", "")
        lines: list[tuple[str, ...]] = [head]
        group = ""
        for row in self.rows:
            lines.append(("" if row.group == group else row.group, *cells(row)))
            group = row.group
        text = aligned(lines)
        for name, reason in self.skipped.items():
            text += f"\nskipped: {name}: {reason}"
        broken = sum(not row.passed for row in self.rows)
        verdict = f"{broken} of {len(self.rows)} bounds broken" if broken else "all bounds hold"
        return (
            f"{text}\n{verdict}: {self.model.get('name')} on {self.device}, {self.dtype}, "
            f"{self.threads} threads, diffusers {self.versions.get('diffusers')}, "
            f"torch {self.versions.get('torch')}, {self.seconds:.0f} s"
        )


def cells(row: ParityRow) -> tuple[str, ...]:
    note = "" if not row.note else f"  {row.note}"
    return (
        row.name,
        number(row.distance.absolute),
        number(row.distance.relative),
        "" if row.levels is None else str(row.levels),
        str(row.bound),
        "" if row.time_ratio is None else f"{row.time_ratio:.2f} x",
        ("ok" if row.passed else "BROKEN") + note,
    )


def number(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}"


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Columns of text, each as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    widths[-1] = 0
    padded = (
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )
    return "\n".join(line.rstrip() for line in padded)


def jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): jsonable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
