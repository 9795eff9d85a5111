"""Statistics of a file of weights, tensor by tensor: range, mean, standard deviation, NaN, Inf.

The file is read once from front to back, a few megabytes at a time, so memory does not grow with
the model.  Tensors that a damaged file holds only in part are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pare.loading.checkpoint import STORED_DTYPES, open_checkpoint
from pare.study.inspect.weight_files import ITEM_SIZES, Shape, StoredTensor, WeightFile

AT_ONCE = 2**21
"""Values that are read together: 16 MiB in float64."""


@dataclass(frozen=True)
class Values:
    """A tensor's statistics, over its finite values; NaN if there are none."""

    name: str
    dtype: str
    shape: Shape
    minimum: float
    maximum: float
    mean: float
    std: float
    """Of the population: sqrt(mean((x - mean)^2))."""
    nan: int
    """How many are not a number …"""
    inf: int
    """… and how many infinite."""

    @property
    def finite(self) -> bool:
        return not self.nan and not self.inf


def read_values(file: WeightFile, wanted: Callable[[str], bool] = bool) -> Iterator[Values]:
    """The statistics of a file's tensors, in the order in which they lie in it.

    Args:
        wanted: which, by name.
    """
    chosen = [t for t in file.tensors if not t.problem and wanted(t.name)]
    if file.kind == "ckpt":
        tensors = open_checkpoint(file.path).tensors
        for entry in chosen:
            numbers = tensors[entry.name].reshape(-1)  # mapped, unless it is no contiguous one
            starts = range(0, entry.numbers, AT_ONCE)
            yield summarise(entry, (numbers[start : start + AT_ONCE] for start in starts))
        return
    for entry in sorted(chosen, key=lambda t: t.begin or 0):
        if entry.dtype in STORED_DTYPES:
            yield summarise(entry, blocks(file.path, entry))


def blocks(path: Path, entry: StoredTensor) -> Iterator[Tensor]:
    """A tensor's numbers, `AT_ONCE` at a time."""
    size, dtype = ITEM_SIZES[entry.dtype], STORED_DTYPES[entry.dtype]
    left = entry.numbers
    with path.open("rb") as file:
        file.seek(entry.begin or 0)
        while left > 0:
            count = min(left, AT_ONCE)
            yield torch.frombuffer(bytearray(file.read(count * size)), dtype=dtype)
            left -= count


def summarise(entry: StoredTensor, parts: Iterable[Tensor]) -> Values:
    """Count, mean and squared deviations of each block, joined to those of the whole.

    Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing
    sample variances" (1979), eq. 2.1: no cancellation, as sum(x^2) - sum(x)^2 has.
    """
    count, mean, squares = 0, 0.0, 0.0
    low, high = math.inf, -math.inf
    nan = inf = 0
    for part in parts:
        numbers = part.double()
        nan += int(numbers.isnan().sum())
        inf += int(numbers.isinf().sum())
        numbers = numbers[numbers.isfinite()]
        if not numbers.numel():
            continue
        n, part_mean = numbers.numel(), float(numbers.mean())
        apart = part_mean - mean
        squares += float((numbers - part_mean).square().sum()) + apart**2 * count * n / (count + n)
        mean += apart * n / (count + n)
        count += n
        low, high = min(low, float(numbers.min())), max(high, float(numbers.max()))
    none = math.nan
    statistics = (low, high, mean, math.sqrt(squares / count)) if count else (none,) * 4
    return Values(entry.name, entry.dtype, entry.shape, *statistics, nan, inf)
