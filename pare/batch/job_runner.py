"""Runs jobs: those whose files are missing, each at most three times, and notes what came of it.

Nothing is lost and nothing done twice, whoever is killed: a job is done if its files are there,
and they appear whole (`pare.batch.output_folder`).  The jobs come from an iterator and go to the
worker a few at a time, so that a list of a million takes no memory.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import socket
import time
import traceback
from collections.abc import Callable, Container, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pare.batch.job import Job, JobResult, Worker
from pare.batch.manifest import Manifest
from pare.batch.output_folder import Output, open_output
from pare.errors import PareError

TRIES = 3


def run(
    jobs: Iterable[Job],
    load: Callable[[], Worker],
    out: str | Path | Output,
    *,
    together: int = 1,
    tries: int = TRIES,
) -> Generator[JobResult, None, None]:
    """Do the jobs whose files are not in the output; yields a result for each as it comes.

    Args:
        jobs: read as they are needed.
        load: makes the worker; called when the first job is to be done.
        out: a folder, or an address of fsspec.
        together: consecutive jobs of one group that the worker is given at once.  Which ones are
            together depends on the list alone, not on what is done already.
        tries: attempts after which a job has failed; those after the first are made alone.  What
            a PareError says is wrong with the job itself is not tried again.

    Raises:
        OutputError, MissingExtraError: see `open_output`.
    """
    output = open_output(out) if isinstance(out, str | Path) else out
    manifest = Manifest(output)
    with contextlib.ExitStack() as last:
        last.callback(manifest.flush)
        for result in results_of(jobs, output, functools.cache(load), together, tries):
            manifest.add(result)
            yield result


def results_of(
    jobs: Iterable[Job], output: Output, load: Callable[[], Worker], together: int, tries: int
) -> Iterator[JobResult]:
    for group in in_groups(jobs, together):
        batch: dict[str, Job] = {}
        kept: set[str] = set()
        for job in group:
            if job.error:
                yield JobResult(job, "failed", error=job.error)
            elif job.name in batch:  # an equal job's files
                yield JobResult(job, "kept")
            else:
                batch[job.name] = job
                if job.files and all(map(output.has, job.files)):
                    kept.add(job.name)
                    yield JobResult(job, "kept")
        if len(kept) == len(batch):
            continue
        for result in perform(load(), list(batch.values()), output, kept):
            while result.status == "failed" and not result.permanent and result.attempts < tries:
                (again,) = perform(load(), [result.job], output, attempts=result.attempts + 1)
                result = again
            yield result


def in_groups(jobs: Iterable[Job], together: int) -> Iterator[list[Job]]:
    """Consecutive jobs of one group, so many at once."""
    for _, group in itertools.groupby(jobs, key=lambda job: job.group):
        while some := list(itertools.islice(group, together)):
            yield some


def perform(
    worker: Worker, jobs: Sequence[Job], output: Output, kept: Container[str] = (),
    attempts: int = 1,
) -> list[JobResult]:  # fmt: skip
    """Let the worker do the jobs, and put their files into their places.

    Args:
        kept: the names of those that are done already: they only make up the batch.
        attempts: how many there are with this one.
    """
    started = time.perf_counter()
    with output.scratch() as folder:
        reports = worker.run(jobs, folder)
        told = [(j, r) for j, r in zip(jobs, reports, strict=True) if j.name not in kept]
        for job, report in told:
            if not isinstance(report, BaseException):
                place(job, folder, output)
    seconds = time.perf_counter() - started
    return [as_result(job, report, seconds, attempts) for job, report in told]


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
