"""Edits of images whose true result is known: every technique, every mode."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Sequence
from typing import Any

import torch

from pare.pipeline import Pipeline
from roads.benchmark import edit_benchmark
from roads.benchmark.compared_methods import FRAME, TECHNIQUES, Technique, blended, on_the_way_back
from roads.benchmark.edit_benchmark import Pixels
from roads.benchmark.edit_tasks import Split, tasks
from roads.benchmark.tables.erasure_table import ON_IMAGES
from roads.benchmark.tables.jobs import Job, Record
from roads.judge.judge import Judge

# What defaults were chosen from, on the development tasks.
COMPARED: dict[str, Technique] = {
    "blend keep": functools.partial(blended, history="keep"),
    "blend drop": functools.partial(blended, history="drop"),
    **{
        f"p2p direct, guidance {guidance:g}": functools.partial(
            on_the_way_back, kind="p2p", method="direct", guidance=guidance
        )
        for guidance in (5.0, 7.5, 10.0)
    },
    **{
        f"resample edit-friendly, strength {strength:g}": functools.partial(
            on_the_way_back, kind="resample", method="edit-friendly", strength=strength
        )
        for strength in (0.5, 0.64, 0.8)
    },
}


def cases(split: Split, per_kind: int, kinds: Collection[str] | None = None) -> list[int]:
    """The numbers of tasks, so many of each kind (or of these kinds), spread over its list."""
    by_kind: dict[str, list[int]] = {}
    for number, task in enumerate(tasks(split)):
        if kinds is None or task.kind in kinds:
            by_kind.setdefault(task.kind, []).append(number)
    return [n for numbers in by_kind.values() for n in spread(numbers, per_kind)]


def spread(numbers: Sequence[int], count: int) -> list[int]:
    """`count` of them, evenly: the changes of a kind are listed in order."""
    count = min(count, len(numbers))
    return [numbers[k * len(numbers) // count] for k in range(count)]


def measure(job: Job, pipe: Pipeline, judge: Judge) -> tuple[Record, Pixels]:
    technique = {**FRAME, **TECHNIQUES, **COMPARED, **ON_IMAGES}[job.variant]
    task = tasks(job.split)[job.case]
    with torch.no_grad():
        found, pixels = edit_benchmark.measure(job.variant, technique, task, pipe, judge, job.case)
    return dataclasses.asdict(found), pixels


def row(name: str, records: list[Record]) -> edit_benchmark.TechniqueRow:
    def measured(record: Record) -> edit_benchmark.Measured:
        fields: dict[str, Any] = dict(record)
        return edit_benchmark.Measured(**fields)

    return edit_benchmark.TechniqueRow.of(name, [measured(record) for record in records])
