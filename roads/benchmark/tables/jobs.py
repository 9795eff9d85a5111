"""Single measurements: what is to be measured, and what was."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pare.pipeline import Pipeline
from roads.benchmark.edit_benchmark import Pixels
from roads.benchmark.edit_tasks import Split
from roads.judge.judge import Judge

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


@dataclass(frozen=True)
class JobResults:
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
