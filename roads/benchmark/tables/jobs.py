"""Single measurements: what is to be done, and what was found, remembered in a folder.

A measurement is one image and a record of it.  Both lie in the folder under the model's
fingerprint, so that a run that is cut off goes on where it was, and another model begins anew.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image

from pare.io.whole_files import write_whole
from pare.pipeline import Pipeline
from roads.benchmark.edit_benchmark import Pixels
from roads.benchmark.edit_tasks import Split
from roads.judge.judge import Judge, load_judge

Record = Mapping[str, Any]
"""What was measured: names and numbers; nan where there was nothing to measure."""


@dataclass(frozen=True)
class Job:
    """One variant of an experiment on one of its cases."""

    experiment: str  # a key of EXPERIMENTS
    variant: str
    split: Split
    case: int

    @property
    def name(self) -> str:
        """As a file's name."""
        return f"{self.experiment}/{self.variant}/{self.split}-{self.case}".replace(" ", "_")


Measure = Callable[[Job, Pipeline, Judge], tuple[Record, Pixels]]


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
    from roads.benchmark.tables.experiments import EXPERIMENTS

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


@dataclass(frozen=True)
class Found:
    """What was measured, by job."""

    bases: Mapping[Job, Path]

    def record(self, job: Job) -> Record:
        text = self.bases[job].with_suffix(".json").read_text(encoding="utf-8")
        record: Record = json.loads(text)
        return record

    def pixels(self, job: Job) -> Pixels:
        with Image.open(self.bases[job].with_suffix(".png")) as image:
            return np.asarray(image.convert("RGB"))

    def records(self, experiment: str, variant: str, split: Split) -> list[Record]:
        jobs = [
            j
            for j in self.bases
            if (j.experiment, j.variant, j.split) == (experiment, variant, split)
        ]
        return [self.record(job) for job in jobs]

    def mean(self, experiment: str, variant: str, split: Split, field: str) -> float:
        """Over all cases that have such a number; nan if none has."""
        return mean([r[field] for r in self.records(experiment, variant, split)])


def mean(values: Iterable[float]) -> float:
    known = [float(value) for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def run(
    jobs: Sequence[Job],
    path: str,
    folder: Path,
    *,
    processes: int = 1,
    progress: Callable[[str], None] | None = None,
) -> Found:
    """Every job, done now or before.

    Args:
        processes: that work side by side, one thread each; 1 works here, with all threads.
    """

    def keep(bases: Iterable[str]) -> Found:
        done: dict[Job, Path] = {}
        for k, (job, base) in enumerate(zip(jobs, bases, strict=True)):
            done[job] = Path(base)
            if progress:
                progress(f"{k + 1} of {len(jobs)}: {job.name}")
        return Found(done)

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
