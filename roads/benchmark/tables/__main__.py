"""Measure everything, and write the page and its images."""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageDraw

import roads.benchmark.tables
from pare.errors import SettingError
from pare.io.whole_files import write_whole
from roads.benchmark.compared_methods import FRAME, STEPS, STEPS_BACK, TECHNIQUES
from roads.benchmark.edit_benchmark import Pixels
from roads.benchmark.edit_tasks import tasks
from roads.benchmark.tables import edit_table, erasure_table, experiments, memory_table
from roads.benchmark.tables import p2p_table as words
from roads.benchmark.tables.jobs import Job, JobResults
from roads.benchmark.tables.tables_page import Pages, fill
from roads.command_line import exit_code_of
from roads.contact_sheet import contact_sheet

PARTS = ("edits", "erasing", "words", "defaults", "memory")
GOAL = 0.7  # the share of unwanted things that is to be gone: the weight is chosen for it

ERASING_IMAGE = (
    "![Images as they were, and with one, three and five things erased: by the formula, and by "
    "gates](images/measured-erasing.png)"
)

# What the page's image shows, beside source and truth.
SHOWN = (
    "img2img 0.7", "blend paste", "blend on ddim", "resample edit-friendly", "p2p ddim",
    "p2p null-text", "p2p direct", "p2p edit-friendly",
)  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    return exit_code_of(functools.partial(measure_all, options))


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m roads.benchmark.tables",
        description=roads.benchmark.tables.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--only", action="append", choices=PARTS, help="this part alone; several if repeated")
    add("--without", action="append", default=[], metavar="TECHNIQUE",
        help="leave this out of the edits; several if repeated")  # fmt: skip
    add("--tasks", type=int, default=3, help="of each kind of edit, 1 to 8")
    add("--model", default="roads")
    add("--processes", type=int, default=2, help="that work side by side, one thread each")
    add("--work", type=Path, default=Path("runs/tables"), help="where measurements are kept")
    add("--page", type=Path, default=Path("docs/measured.md"), help="whose tables are filled")
    add("--images", type=Path, default=Path("docs/images"))
    return parser


def measure_all(options: argparse.Namespace) -> int:
    for name, value, most in (("tasks", options.tasks, 8), ("processes", options.processes, 64)):
        if not 1 <= value <= most:
            raise SettingError(f"{name} is {value}", expected=f"1 to {most}")
    for name in options.without:
        if name not in TECHNIQUES:
            raise SettingError(f"there is no technique {name!r}", expected=", ".join(TECHNIQUES))
    page = options.page.read_text(encoding="utf-8")
    parts = options.only or PARTS
    work = functools.partial(
        experiments.run,
        path=options.model,
        folder=options.work,
        processes=options.processes,
        progress=say,
    )
    found = work(planned(parts, options.tasks, options.without))
    chosen = weights(found) if "erasing" in parts else {}
    # Which weights the held-out images are made with, development has said.
    second = [
        Job("erasing", f"{family} {weight:g}", "held-out", case)
        for family, weight in chosen.items()
        for case in erasure_table.cases(options.tasks)
    ]
    found = JobResults({**found.bases, **work(second).bases})
    taken = memories(options.model, options.work, options.without) if "memory" in parts else {}
    tables = Pages(found, taken, chosen).tables()
    if "edits" in parts:
        tables["setting"] = setting(options.model, options.tasks, options.without)
        save(sheet(found, options.tasks), options.images / "measured-edits.png")
    if "erasing" in parts:
        save(erasing_sheet(found, chosen, options.tasks), options.images / "measured-erasing.png")
        tables["erasing"] += f"\n\n{ERASING_IMAGE}"
    if "words" in parts:
        save(words_sheet(found, options.tasks), options.images / "measured-words.png")
    filled = fill(page, tables)
    write_whole(options.page, lambda file: write_text(file, filled), force=True)
    print(options.page)
    return 0


def say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def write_text(file: BinaryIO, text: str) -> None:
    file.write(text.encode())


def save(image: Image.Image, path: Path) -> None:
    write_whole(path, lambda file: image.save(file, format="PNG", optimize=True), force=True)
    print(path)


# --- what is measured -----------------------------------------------------------------------


def planned(parts: Sequence[str], count: int, without: Sequence[str]) -> list[Job]:
    """All that does not depend on what is found."""
    listed: list[Job] = []
    if "edits" in parts:
        names = [name for name in (*FRAME, *TECHNIQUES) if name not in without]
        cases = edit_table.cases("held-out", count)
        listed += [Job("edits", name, "held-out", case) for case in cases for name in names]
        # There are eight tasks of removing alone, and erasure has no others.
        removals = edit_table.cases("held-out", 2 * count, ("remove",))
        listed += [
            Job("edits", name, "held-out", case)
            for name in erasure_table.ON_IMAGES
            for case in removals
        ]
    if "erasing" in parts:
        listed += [
            Job("erasing", variant, "development", case)
            for case in erasure_table.cases(count)
            for variant in erasure_table.variants()
        ]
    if "words" in parts:
        listed += [
            Job("words", name, "held-out", case)
            for case in edit_table.cases("held-out", count, words.KINDS)
            for name in (*words.VARIANTS, words.TUTORIAL)
        ]
    if "defaults" in parts:
        listed += [
            Job("edits", name, "development", case)
            for case in edit_table.cases("development", count)
            for name in edit_table.COMPARED
        ]
        listed += [
            Job("words", name, "development", case)
            for case in edit_table.cases("development", count, words.KINDS)
            for name in words.VARIANTS
        ]
    return list(dict.fromkeys(listed))


def weights(found: JobResults) -> dict[str, float]:
    """For each family of gates the least weight that erases enough on the development split;
    where none does, the one that erases most."""
    chosen = {}
    for family, tried in erasure_table.WEIGHTS.items():
        gone = {w: found.mean("erasing", f"{family} {w:g}", "development", "gone") for w in tried}
        enough = [weight for weight in tried if gone[weight] >= GOAL]
        chosen[family] = min(enough) if enough else max(tried, key=lambda weight: gone[weight])
    return chosen


def memories(model: str, folder: Path, without: Sequence[str]) -> dict[str, float]:
    """Megabytes of every technique, measured now or before."""
    path = folder / experiments.fingerprint(model) / "memory.json"
    known: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
    for name in memory_table.RUNS:
        if name in known or name in without:
            continue
        say(f"memory: {name}")
        known[name] = memory_table.measured(name, model)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda file: write_text(file, json.dumps(known)), force=True)
    return known


def setting(model: str, count: int, without: Sequence[str]) -> str:
    """What the tables are of."""
    left_out = "".join(f' --without "{name}"' for name in without)
    cases = len(edit_table.cases("held-out", count))
    return (
        f"`python -m roads.benchmark.tables --tasks {count}{left_out}`, model {model} "
        f"({experiments.fingerprint(model)}), {count} held-out tasks of each of the six kinds, "
        f"{STEPS} "
        f"steps ({STEPS_BACK} there and {STEPS_BACK} back with an inversion), processor seconds of "
        f"one thread. {cases} tasks decide no small differences: one more success is "
        f"{100 / cases:.0f} points."
    )


# --- images -------------------------------------------------------------------------------


def labelled(images: Sequence[Pixels], labels: Sequence[str]) -> Image.Image:
    """A contact sheet with a word over each column."""
    sheet = contact_sheet(images, columns=len(labels))
    page = Image.new("RGB", (sheet.width, sheet.height + 16), "white")
    page.paste(sheet, (0, 16))
    write = ImageDraw.Draw(page)
    for k, label in enumerate(labels):
        write.text((6 + k * sheet.width // len(labels), 3), label, fill="black")
    return page


def sheet(found: JobResults, count: int) -> Image.Image:
    """One task of each kind: source, truth, and what techniques made of it."""
    shown = [name for name in SHOWN if found.records("edits", name, "held-out")]
    images = []
    for case in edit_table.cases("held-out", count)[::count]:
        task = tasks("held-out")[case]
        images += [task.source_pixels, task.target_pixels]
        images += [found.pixels(Job("edits", name, "held-out", case)) for name in shown]
    return labelled(images, ["source", "truth", *shown])


def erasing_sheet(found: JobResults, chosen: dict[str, float], count: int) -> Image.Image:
    """Some scenes: as they were, and with 1, 3 and 5 things erased, by formula and by gates."""
    names = [f"{family} {chosen[family]:g}" for family in ("formula", "sega") if family in chosen]
    images = []
    for case in erasure_table.cases(count)[:4]:
        for k, name in enumerate(names):
            strip = found.pixels(Job("erasing", name, "held-out", case))
            parts = np.split(strip, 1 + len(erasure_table.COUNTS), axis=1)
            images += parts[1 if k else 0 :]
    labels = ["as it was"]
    for name in names:
        labels += [f"{name}: {count}" for count in erasure_table.COUNTS]
    return labelled(images, labels)


def words_sheet(found: JobResults, count: int) -> Image.Image:
    """A task of each kind: the source, and its target by each way."""
    names = ("no injection", "cross 0.8, self 0.4", "cross 1, self 1", words.TUTORIAL)
    images = []
    for case in edit_table.cases("held-out", count, words.KINDS)[::count]:
        for k, name in enumerate(names):
            both = np.split(found.pixels(Job("words", name, "held-out", case)), 2, axis=1)
            images += both[1 if k else 0 :]
    return labelled(images, ["source", *names])


if __name__ == "__main__":
    sys.exit(main())
