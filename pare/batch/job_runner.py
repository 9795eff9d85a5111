"""Runs jobs: those whose files are missing, each at most three times, and notes what came of it.

Nothing is lost and nothing done twice, whoever is killed: a job is done if its files are there,
and they appear whole (`pare.batch.output_folder`).  The jobs come from an iterator and go to the
workers a few at a time, so that a list of a million takes no memory.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pare.batch.job import Job, JobResult, Worker
from pare.batch.manifest import Manifest
from pare.batch.output_folder import Output, open_output
from pare.errors import PareError

TRIES = 3


@dataclass
class Attempt:
    """Jobs that go to a worker together."""

    jobs: list[Job]
    kept: frozenset[str] = frozenset()
    """The names of those that are done already: they only make up the batch."""
    number: int = 0
    """How often it has been made."""


class Workers(Protocol):
    """Where attempts are made."""

    def full(self) -> bool:
        """Whether the next attempt would have to wait."""

    def idle(self) -> bool:
        """Whether no attempt is under way."""

    def submit(self, attempt: Attempt) -> None: ...

    def next(self) -> tuple[Attempt, list[JobResult]]:
        """Waits until an attempt has ended; the results of its jobs.

        An attempt whose worker was lost has none.
        """

    def close(self) -> None: ...


def run(
    jobs: Iterable[Job],
    load: Callable[[], Worker],
    out: str | Path | Output,
    *,
    together: int = 1,
    tries: int = TRIES,
    workers: Callable[[Callable[[], Worker], Output], Workers] | None = None,
) -> Generator[JobResult, None, None]:
    """Do the jobs whose files are not in the output; yields a result for each as it comes.

    Args:
        jobs: read as they are needed.
        load: makes a worker; called once in every process that does jobs.
        out: a folder, or an address of fsspec.
        together: consecutive jobs of one group that a worker is given at once.  Which ones are
            together depends on the list alone, not on what is done already.
        tries: attempts after which a job has failed; those after the first are made alone.  What
            a PareError says is wrong with the job itself is not tried again.
        workers: None is this process; see `pare.batch.ray_workers`.

    Raises:
        OutputError, MissingExtraError: see `open_output`.
    """
    output = open_output(out) if isinstance(out, str | Path) else out
    manifest = Manifest(output)
    team = (workers or ThisProcess)(load, output)
    with contextlib.closing(team), contextlib.ExitStack() as last:
        last.callback(manifest.flush)
        for result in results_of(jobs, output, team, together, tries):
            manifest.add(result)
            yield result


def results_of(
    jobs: Iterable[Job], output: Output, team: Workers, together: int, tries: int
) -> Iterator[JobResult]:
    again: deque[Attempt] = deque()
    under_way: set[str] = set()

    def settle() -> Iterator[JobResult]:
        for result in settled(*team.next(), tries, again):
            under_way.discard(result.job.name)
            yield result

    for some in in_groups(jobs, together):
        attempt = Attempt([])
        for job in some:
            if job.error:
                yield JobResult(job, "failed", error=job.error)
            elif job.name in under_way:  # an equal job's files
                yield JobResult(job, "kept")
            else:
                under_way.add(job.name)
                attempt.jobs.append(job)
                if job.files and all(map(output.has, job.files)):
                    attempt.kept |= {job.name}
                    yield JobResult(job, "kept")
        under_way -= attempt.kept
        if len(attempt.kept) == len(attempt.jobs):
            continue
        while again or team.full():
            if team.full():
                yield from settle()
            else:
                team.submit(again.popleft())
        team.submit(attempt)
    while again or not team.idle():
        if again and not team.full():
            team.submit(again.popleft())
        else:
            yield from settle()


def in_groups(jobs: Iterable[Job], together: int) -> Iterator[list[Job]]:
    """Consecutive jobs of one group, so many at once."""
    for _, group in itertools.groupby(jobs, key=lambda job: job.group):
        while some := list(itertools.islice(group, together)):
            yield some


def settled(
    attempt: Attempt, results: Sequence[JobResult], tries: int, again: deque[Attempt]
) -> Iterator[JobResult]:
    """The results that are final; the other jobs go into `again`, each by itself."""
    by_name = {result.job.name: result for result in results}
    for job in attempt.jobs:
        if job.name in attempt.kept:
            continue
        lost = JobResult(job, "failed", attempts=attempt.number, error="its worker died")
        result = by_name.get(job.name, lost)
        if result.status == "failed" and not result.permanent and attempt.number < tries:
            again.append(Attempt([job], number=attempt.number))
        else:
            yield result


# --- in one process ---------------------------------------------------------------------------


def perform(worker: Worker, attempt: Attempt, output: Output) -> list[JobResult]:
    """Let the worker do the jobs, and put their files into their places."""
    started = time.perf_counter()
    with output.scratch() as folder:
        reports = worker.run(attempt.jobs, folder)
        for job, report in zip(attempt.jobs, reports, strict=True):
            if job.name not in attempt.kept and not isinstance(report, BaseException):
                place(job, folder, output)
    seconds = time.perf_counter() - started
    return [
        as_result(job, report, seconds, attempt.number)
        for job, report in zip(attempt.jobs, reports, strict=True)
        if job.name not in attempt.kept
    ]


def place(job: Job, folder: Path, output: Output) -> None:
    """Move a job's files to the output: last those that say that it is done."""
    beside = [path.name for path in folder.glob(f"{job.name}*") if path.name not in job.files]
    for name in (*sorted(beside), *job.files):
        output.place(folder / name, name)


def as_result(
    job: Job, report: Mapping[str, Any] | BaseException, seconds: float, attempts: int
) -> JobResult:
    told: dict[str, Any] = {"seconds": seconds, "worker": worker_name(), "attempts": attempts}
    if not isinstance(report, BaseException):
        return JobResult(job, "done", report=report, **told)
    permanent = isinstance(report, PareError)
    error = str(report) if permanent else "".join(traceback.format_exception_only(report)).strip()
    return JobResult(job, "failed", error=error, permanent=permanent, **told)


def worker_name() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


class ThisProcess:
    """The jobs one after another, here; the worker is loaded for the first of them."""

    def __init__(self, load: Callable[[], Worker], output: Output) -> None:
        self.load, self.output = load, output
        self.worker: Worker | None = None
        self.waiting: Attempt | None = None

    def full(self) -> bool:
        return self.waiting is not None

    def idle(self) -> bool:
        return self.waiting is None

    def submit(self, attempt: Attempt) -> None:
        self.waiting = attempt

    def next(self) -> tuple[Attempt, list[JobResult]]:
        attempt, self.waiting = self.waiting, None
        assert attempt is not None
        self.worker = self.worker or self.load()
        attempt.number += 1
        return attempt, perform(self.worker, attempt, self.output)

    def close(self) -> None:
        self.worker = None
