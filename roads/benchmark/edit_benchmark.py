"""The edit benchmark: techniques on tasks whose true result is known, judged and measured.

    pare bench edits --split held-out --out edits.png

A technique is a function of a pipeline, a task and a seed that returns an image
(`roads.benchmark.compared_methods`).  Three
rows frame the others: no edit at all, the rendered truth, and the truth after its way
through the VAE, which is the best that any technique working on latents can do.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from pare.io.metrics import mse, psnr, ssim, structure_distance
from pare.pipeline import Pipeline
from roads.benchmark.compared_methods import FRAME, TECHNIQUES, Technique
from roads.benchmark.edit_tasks import Split, Task, tasks
from roads.contact_sheet import contact_sheet
from roads.judge.judge import Judge, Verdict
from roads.world.scene import Scene

Pixels = npt.NDArray[np.uint8]


# --- measuring -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """One technique on one task.  Errors are of channels in [0, 1]; nan: nothing to measure."""

    technique: str
    task: str
    kind: str
    success: bool  # the judge finds the attribute that was asked for
    unchanged: float  # share of all other attributes that the judge finds as they were
    inside_mse: float  # to the truth, where the true edit touches the image
    inside_ssim: float
    outside_mse: float  # to the source, where it touches nothing (`Task.untouched`)
    outside_ssim: float
    beyond_mask_mse: float  # to the source, where the person's mask does not reach
    structure: float  # structure distance to the truth
    moved: float  # structure distance to the source
    seconds: float
    processor_seconds: float  # of all threads: other programs do not lengthen it
    evaluations: int  # of the UNet, one a row of its batch


def measure(
    name: str, technique: Technique, task: Task, pipe: Pipeline, judge: Judge, seed: int
) -> tuple[Measured, Pixels]:
    """Run one technique on one task; the image that it made."""
    with counted_evaluations(pipe) as evaluations:
        started, worked = time.perf_counter(), time.process_time()
        image = technique(pipe, task, seed)
        seconds, processor = time.perf_counter() - started, time.process_time() - worked
    pixels = np.asarray(image.convert("RGB"))
    verdict = judge([image])[0]
    touched = task.touched
    measured = Measured(
        technique=name,
        task=task.name,
        kind=task.kind,
        success=agrees(verdict, task.target, task.attribute),
        unchanged=float(np.mean([agrees(verdict, task.source, kept) for kept in task.kept()])),
        inside_mse=mse(pixels, task.target_pixels, touched),
        inside_ssim=ssim(pixels, task.target_pixels, touched),
        outside_mse=mse(pixels, task.source_pixels, task.untouched),
        outside_ssim=ssim(pixels, task.source_pixels, task.untouched),
        beyond_mask_mse=mse(pixels, task.source_pixels, ~task.brushed),
        structure=structure_distance(pixels, task.target_pixels),
        moved=structure_distance(pixels, task.source_pixels),
        seconds=seconds,
        processor_seconds=processor,
        evaluations=sum(evaluations),
    )
    return measured, pixels


def agrees(verdict: Verdict, scene: Scene, attribute: str) -> bool:
    """Whether the judge sees the scene's value of `attribute`."""
    return verdict.agrees(scene)[attribute]


@contextmanager
def counted_evaluations(pipe: Pipeline) -> Iterator[list[int]]:
    """A list that grows by the number of rows at every call of the UNet."""
    rows: list[int] = []
    handle = pipe.unet.register_forward_pre_hook(lambda _unet, given: rows.append(len(given[0])))
    try:
        yield rows
    finally:
        handle.remove()


# --- the table -----------------------------------------------------------------------------


@dataclass(frozen=True)
class TechniqueRow:
    """One technique over many tasks: means, and PSNR of the mean squared errors."""

    technique: str
    tasks: int
    success: float  # percent
    unchanged: float  # percent
    outside_psnr: float  # dB
    outside_ssim: float
    inside_psnr: float  # dB
    inside_ssim: float
    beyond_mask_psnr: float  # dB
    structure: float
    moved: float
    seconds: float
    processor_seconds: float
    evaluations: float

    @classmethod
    def of(cls, technique: str, measured: Sequence[Measured]) -> TechniqueRow:
        def mean(name: str) -> float:
            values = np.array([getattr(one, name) for one in measured], dtype=float)
            known = values[~np.isnan(values)]
            return float(known.mean()) if len(known) else math.nan

        return cls(
            technique=technique,
            tasks=len(measured),
            success=100 * mean("success"),
            unchanged=100 * mean("unchanged"),
            outside_psnr=psnr(mean("outside_mse")),
            outside_ssim=mean("outside_ssim"),
            inside_psnr=psnr(mean("inside_mse")),
            inside_ssim=mean("inside_ssim"),
            beyond_mask_psnr=psnr(mean("beyond_mask_mse")),
            structure=mean("structure"),
            moved=mean("moved"),
            seconds=mean("seconds"),
            processor_seconds=mean("processor_seconds"),
            evaluations=mean("evaluations"),
        )


@dataclass(frozen=True)
class EditReport:
    """Every measurement of a run of the benchmark, and its images."""

    split: Split
    model: str
    seed: int
    measured: Sequence[Measured]
    images: Mapping[tuple[str, str], Pixels]  # by technique and task

    def rows(self, kind: str | None = None) -> list[TechniqueRow]:
        """One row a technique, over all tasks or those of one kind."""
        names = list(dict.fromkeys(one.technique for one in self.measured))
        chosen = [one for one in self.measured if kind in (None, one.kind)]
        return [TechniqueRow.of(name, [m for m in chosen if m.technique == name]) for name in names]

    def table(self) -> str:
        """The rows as text, and each technique's success by kind of task."""
        return "\n\n".join([text_table(self.rows()), self.success_by_kind()])

    def success_by_kind(self) -> str:
        kinds = list(dict.fromkeys(one.kind for one in self.measured))
        columns = {kind: self.rows(kind) for kind in kinds}
        width = max(len(row.technique) for row in self.rows())
        lines = [f"{'success %':{width}}" + "".join(f"{kind:>10}" for kind in kinds)]
        for k, row in enumerate(self.rows()):
            cells = "".join(f"{columns[kind][k].success:10.0f}" for kind in kinds)
            lines.append(f"{row.technique:{width}}{cells}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Rows and single measurements; what is infinite or not a number becomes null."""
        rows = {"all": self.rows()} | {
            kind: self.rows(kind) for kind in dict.fromkeys(one.kind for one in self.measured)
        }
        return {
            "split": self.split,
            "model": self.model,
            "seed": self.seed,
            "rows": {
                name: [finite(dataclasses.asdict(r)) for r in of] for name, of in rows.items()
            },
            "measured": [finite(dataclasses.asdict(one)) for one in self.measured],
        }

    def sheet(self, per_kind: int = 2) -> Image.Image:
        """Tasks from above to below; source, truth and every technique from left to right."""
        by_name = {task.name: task for task in tasks(self.split)}
        shown = [
            name
            for kind in dict.fromkeys(one.kind for one in self.measured)
            for name in list(dict.fromkeys(m.task for m in self.measured if m.kind == kind))
            [:per_kind]
        ]  # fmt: skip
        techniques = [row.technique for row in self.rows() if row.technique not in FRAME]
        images = []
        for name in shown:
            task = by_name[name]
            images += [task.source_pixels, task.target_pixels]
            images += [self.images[technique, name] for technique in techniques]
        return contact_sheet(images, columns=2 + len(techniques))


def finite(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record fit for JSON, which has no infinity and no nan."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in record.items()
    }


# Title, field of `TechniqueRow`, digits behind the point.
COLUMNS = (
    ("success %", "success", 1),
    ("unchanged %", "unchanged", 1),
    ("PSNR out", "outside_psnr", 1),
    ("SSIM out", "outside_ssim", 3),
    ("PSNR in", "inside_psnr", 1),
    ("SSIM in", "inside_ssim", 3),
    ("structure", "structure", 3),
    ("moved", "moved", 3),
    ("seconds", "seconds", 2),
    ("UNet", "evaluations", 0),
)


def text_table(rows: Sequence[TechniqueRow]) -> str:
    width = max(len("technique"), *(len(row.technique) for row in rows))
    lines = ["  ".join([f"{'technique':{width}}", *(title for title, _, _ in COLUMNS)])]
    for row in rows:
        cells = [
            f"{getattr(row, field):{len(title)}.{digits}f}" for title, field, digits in COLUMNS
        ]
        lines.append("  ".join([f"{row.technique:{width}}", *cells]))
    return "\n".join(lines)


# --- the run -------------------------------------------------------------------------------


def run_edits(
    pipe: Pipeline,
    judge: Judge,
    split: Split = "development",
    techniques: Mapping[str, Technique] = TECHNIQUES,
    *,
    per_kind: int | None = None,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> EditReport:
    """Every technique on every task of a split, with the frame.

    Args:
        per_kind: only so many tasks of each kind.
        seed: of the first task's noise; each task has its own.
        progress: told what begins.

    Raises:
        SettingError: there is no such split.
    """
    chosen = [
        task
        for kind in dict.fromkeys(task.kind for task in tasks(split))
        for task in [task for task in tasks(split) if task.kind == kind][:per_kind]
    ]
    measured, images = [], {}
    for name, technique in {**FRAME, **techniques}.items():
        if progress:
            progress(name)
        for k, task in enumerate(chosen):
            with torch.no_grad():
                one, pixels = measure(name, technique, task, pipe, judge, seed + k)
            measured.append(one)
            images[name, task.name] = pixels
    return EditReport(split, str(pipe.source.path), seed, measured, images)
