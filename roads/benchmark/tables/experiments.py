"""Every experiment by its name, and how its jobs are run and remembered in a folder.

A job gives one image and a record of it.  Both lie in the folder under the model's fingerprint,
so that an interrupted run continues where it was, and another model starts anew.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import BinaryIO

import torch
from PIL import Image

from pare.io.whole_files import write_whole
from pare.pipeline import Pipeline
from roads.benchmark.tables import edit_table, erasure_table, p2p_table
from roads.benchmark.tables.jobs import Job, JobResults, Measure
from roads.judge.judge import Judge, load_judge

EXPERIMENTS: dict[str, Measure] = {
    "edits": edit_table.measure,
    "erasing": erasure_table.measure,
    "words": p2p_table.measure,
}


@functools.cache
def model(path: str) -> tuple[Pipeline, Judge]:
    """Of this process; every worker loads them once."""
    return Pipeline.from_pretrained(path, device="cpu"), load_judge()


def fingerprint(path: str) -> str:
    """Of the model's weights, 12 letters."""
    files = json.dumps(dict(model(path)[0].source.files), sort_keys=True)
    return hashlib.sha256(files.encode()).hexdigest()[:12]


def measure(job: Job, path: str, folder: Path, threads: int | None = None) -> str:
    """Do the job unless that was done; the name of its files, without an ending."""
    if threads is not None:
        torch.set_num_threads(threads)
    base = folder / fingerprint(path) / job.name
    if base.with_suffix(".json").exists():
        return str(base)
    pipe, judge = model(path)
    record, pixels = EXPERIMENTS[job.experiment](job, pipe, judge)
    base.parent.mkdir(parents=True, exist_ok=True)

    def image(file: BinaryIO) -> None:
        Image.fromarray(pixels).save(file, format="PNG")

    def numbers(file: BinaryIO) -> None:
        file.write(json.dumps(record).encode())

    write_whole(base.with_suffix(".png"), image, force=True)
    write_whole(base.with_suffix(".json"), numbers, force=True)  # last: it says that all is there
    return str(base)


def run(
    jobs: Sequence[Job],
    path: str,
    folder: Path,
    *,
    processes: int = 1,
    progress: Callable[[str], None] | None = None,
) -> JobResults:
    """Every job, done now or before.

    Args:
        processes: that work side by side, one thread each; 1 works here, with all threads.
    """

    def keep(bases: Iterable[str]) -> JobResults:
        done: dict[Job, Path] = {}
        for k, (job, base) in enumerate(zip(jobs, bases, strict=True)):
            done[job] = Path(base)
            if progress:
                progress(f"{k + 1} of {len(jobs)}: {job.name}")
        return JobResults(done)

    if processes == 1:
        return keep(measure(job, path, folder) for job in jobs)
    # Spawned, as a forked process would share the threads of this one's torch.
    workers = ProcessPoolExecutor(processes, mp_context=get_context("spawn"))
    try:
        return keep(
            workers.map(measure, jobs, [path] * len(jobs), [folder] * len(jobs), [1] * len(jobs))
        )
    finally:
        workers.shutdown(cancel_futures=True)  # Ctrl-C ends what waits, too
