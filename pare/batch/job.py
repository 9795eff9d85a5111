"""A job, its result, and the worker that does it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

Status = Literal["done", "kept", "failed"]


@dataclass(frozen=True)
class Job:
    """A pure function of `content`, whose results are files of known names."""

    name: str
    """Of no other job: by convention the SHA-256 of all that decides the result."""
    content: Mapping[str, Any]
    """What the worker is given."""
    files: tuple[str, ...] = ()
    """The names of its files: the job is done if the output has all of them."""
    group: str = ""
    """Consecutive jobs of one group may be given to a worker together."""
    number: int = 0
    """Its place in the list of jobs: a line, a row."""
    error: str = ""
    """Why it cannot be run at all: it fails without a worker."""


@dataclass(frozen=True)
class JobResult:
    """What became of a job."""

    job: Job
    status: Status
    """"kept": its files were there."""
    seconds: float = 0.0
    """Of the last attempt.  Jobs that are done together share their time."""
    worker: str = ""
    """Host and process that made the last attempt."""
    attempts: int = 0
    error: str = ""
    permanent: bool = False
    """Whether it would fail again: the job itself is wrong."""
    report: Mapping[str, Any] = field(default_factory=dict)
    """What the worker tells about the result, fit for JSON."""


class Worker(Protocol):
    """What does jobs; it loads what all of them need."""

    def run(self, jobs: Sequence[Job], folder: Path) -> Sequence[Mapping[str, Any] | BaseException]:
        """Write the files of every job into `folder`, which is empty.

        Files beside those that a job names begin with the job's name.

        Returns:
            for each job its report, or why it failed.
        """
