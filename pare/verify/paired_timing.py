"""Paired timing: two runs take turns, and the ratio of each pair counts.

Other load on the machine slows both runs of a pair alike, so the median of the pairs' ratios
is stable where separate measurements would drift apart.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

Result = TypeVar("Result")


@dataclass(frozen=True)
class PairedTiming(Generic[Result]):
    """Two runs in turns: their results, and the seconds of each."""

    ours: Result
    theirs: Result
    our_seconds: list[float]
    their_seconds: list[float]

    @property
    def ratio(self) -> float:
        """The median over the pairs of our time / their time."""
        pairs = zip(self.our_seconds, self.their_seconds, strict=True)
        return statistics.median(ours / theirs for ours, theirs in pairs)


def in_turns(
    our_run: Callable[[], Result],
    their_run: Callable[[], Result],
    device: torch.device,
    *,
    pairs: int,
) -> PairedTiming[Result]:
    """Time both runs `pairs` times; who goes first alternates."""
    our_seconds: list[float] = []
    their_seconds: list[float] = []
    for pair in range(pairs):
        if pair % 2:
            theirs = timed(their_run, device, their_seconds)
            ours = timed(our_run, device, our_seconds)
        else:
            ours = timed(our_run, device, our_seconds)
            theirs = timed(their_run, device, their_seconds)
    return PairedTiming(ours, theirs, our_seconds, their_seconds)


def timed(run: Callable[[], Result], device: torch.device, seconds: list[float]) -> Result:
    """Run, and append how long it took."""
    wait_for(device)
    started = time.perf_counter()
    result = run()
    wait_for(device)
    seconds.append(time.perf_counter() - started)
    return result


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has finished: calls return before it has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
