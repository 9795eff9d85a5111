"""How often the judge is right, and whether it knows when it is not.

    python -m roads.judge.train_judge --report

Layouts held out of every training, with the combinations that the generator never saw among
them.  What cannot be seen (`judge_data.py`) is not counted.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import binary_dilation

from pare.io.whole_files import write_whole
from pare.vae import AutoencoderKL
from roads.contact_sheet import contact_sheet
from roads.judge.judge import ATTRIBUTES, GRID, Judge, Verdict, load_judge, presence
from roads.judge.judge_data import COVERED, degrade, joined, load_round_trips
from roads.train import scene_data
from roads.train.scene_data import VISIBLE, Data, render_chunk
from roads.train.train_vae import pixels_to_tensor
from roads.world.render import SIZE, render
from roads.world.scene import OBJECTS, Scene, held_out_scenes

SCENES = 512
PER_COMBINATION = 32
REGION_SCENES = 256


@dataclass(frozen=True)
class Judgement:
    """One question about one image."""

    attribute: str
    image: int
    truth: str
    said: str
    sure: float  # the probability that the judge gave its judgement

    @property
    def right(self) -> bool:
        return self.said == self.truth


def report_data(vae: AutoencoderKL, renders: Path, folder: Path) -> dict[str, Data]:
    """The four columns of the report: the same scenes, seen in four ways."""
    scenes = list(held_out_scenes(PER_COMBINATION))
    whole = joined(scene_data.load("test", SCENES, renders), Data(scenes, *render_chunk(scenes)))
    trips = load_round_trips(vae, whole, "report", folder, "float32", ("mode", "sample"))
    return {
        "renders": whole,
        "round trips": trips,
        "degraded renders": degraded(whole, seed=1),
        "degraded round trips": degraded(trips, seed=2),
    }


def degraded(images: Data, seed: int) -> Data:
    copies = [degrade(p, np.random.default_rng([seed, k])) for k, p in enumerate(images.pixels)]
    return dataclasses.replace(images, pixels=np.stack(copies))


def verdicts_of(judge: Judge, images: Data) -> list[Verdict]:
    """The verdicts on all images."""
    verdicts = []
    for start in range(0, len(images.scenes), 64):
        verdicts += judge(pixels_to_tensor(images.pixels[start : start + 64]))
    return verdicts


def judgements(verdicts: Sequence[Verdict], images: Data) -> list[Judgement]:
    """What the judge said of everything that can be seen, or could be if it were there."""
    found = []
    for k, (verdict, scene, unseen) in enumerate(
        zip(verdicts, images.scenes, images.unseen(), strict=True)
    ):
        for name in ATTRIBUTES:
            if name not in unseen:
                truth, said = str(getattr(scene, name)), str(getattr(verdict, name))
                found.append(Judgement(name, k, truth, said, verdict.probability[name]))
    return found


def region_judgements(
    verdicts: Sequence[Verdict], questions: Sequence[RegionQuestion]
) -> list[Judgement]:
    """The same of regions: is the object here?"""
    found = []
    for question in questions:
        odds = presence(verdicts[question.image], question.thing, question.region)
        sure, said = max(odds, 1 - odds), str(odds > 0.5)
        found.append(Judgement(question.thing, question.image, str(question.there), said, sure))
    return found


@dataclass(frozen=True)
class RegionQuestion:
    """Is `thing` in this region of this image?"""

    image: int
    thing: str
    region: npt.NDArray[np.bool_]
    there: bool


def region_questions(scenes: Sequence[Scene]) -> list[RegionQuestion]:
    """Asked where the object is; of absent objects, where they would be; and of those that
    are there, in the mirror image of their place, as far as they do not reach it.
    """
    return [
        RegionQuestion(k, name, region, there)
        for k, scene in enumerate(scenes)
        for name in OBJECTS
        for region, there in regions(scene, name)
    ]


def regions(scene: Scene, thing: str) -> Iterable[tuple[npt.NDArray[np.bool_], bool]]:
    """Regions of one image, and whether `thing` is in them."""
    there = scene.has(thing)
    shown = scene if there else scene.replace(**{thing: "red" if thing == "car" else True})
    mask = render(shown).masks[thing]
    if mask.sum() < VISIBLE:
        return
    if not there:
        yield mask, False
        return
    cell = SIZE // GRID
    counts = mask.reshape(GRID, cell, GRID, cell).sum(axis=(1, 3))
    here = mask & enlarged(counts >= COVERED)
    elsewhere = mask[:, ::-1] & ~enlarged(binary_dilation(counts > 0, np.ones((3, 3))))
    if here.any():
        yield here, True
    if elsewhere.sum() >= VISIBLE:
        yield elsewhere, False


def enlarged(cells: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Cells (16, 16) as a region (128, 128)."""
    return np.kron(cells, np.ones((SIZE // GRID, SIZE // GRID), bool))


def accuracy(found: Iterable[Judgement], attribute: str) -> float:
    """The share of right answers; nan without any question."""
    marks = [judgement.right for judgement in found if judgement.attribute == attribute]
    return float(np.mean(marks)) if marks else float("nan")


def calibration_error(found: Sequence[Judgement], bins: int = 10) -> float:
    """Expected calibration error (arXiv:1706.04599, eq. 3), bins of equal width."""
    sure = np.array([judgement.sure for judgement in found])
    right = np.array([judgement.right for judgement in found], dtype=float)
    which = np.minimum((sure * bins).astype(int), bins - 1)
    gaps = [abs(sure[which == b].sum() - right[which == b].sum()) for b in range(bins)]
    return float(sum(gaps) / len(found))


def confusions(found: Iterable[Judgement], most: int = 4) -> dict[str, str]:
    """Attribute -> its commonest mistakes, "truth -> said: how often"."""
    wrong = Counter((a.attribute, a.truth, a.said) for a in found if not a.right)
    words: dict[str, list[str]] = {name: [] for name in ATTRIBUTES}
    for (name, truth, said), count in wrong.most_common():
        if name in OBJECTS[1:]:
            words[name].append(f"{'missed' if truth == 'True' else 'imagined'} {count}")
        else:
            words[name].append(f"{truth} -> {said} {count}")
    return {name: ", ".join(lines[:most]) or "none" for name, lines in words.items()}


def print_report(
    folder: Path,
    vae: AutoencoderKL,
    renders: Path,
    cache: Path,
    device: torch.device,
    sheet: Path | None,
) -> None:
    """Print the judge's report card as tables."""
    judge = load_judge(folder, str(device))
    columns = report_data(vae, renders, cache)
    verdicts = {name: verdicts_of(judge, images) for name, images in columns.items()}
    found = {name: judgements(verdicts[name], columns[name]) for name in columns}
    print(f"Right, in %, on {len(columns['renders'].scenes)} held-out images each:\n")
    print_table(found, ATTRIBUTES)
    asked = region_questions(columns["renders"].scenes[:REGION_SCENES])
    there = {name: region_judgements(verdicts[name], asked) for name in columns}
    print("\nThe same in regions: where it is, where it would be, and opposite:\n")
    print_table(there, OBJECTS)
    everything = [judgement for column in found.values() for judgement in column]
    print("\nMistakes, all columns:\n")
    for name, words in confusions(everything).items():
        print(f"- {name}: {words}")
    if sheet is not None:
        write_sheet(sheet, columns, found)


def print_table(found: Mapping[str, Sequence[Judgement]], attributes: Sequence[str]) -> None:
    """Per attribute the share of right answers in every column, and the calibration error."""
    everything = [judgement for column in found.values() for judgement in column]
    print("| | " + " | ".join(found) + " | calibration error |")
    print("|---" * (len(found) + 2) + "|")
    for name in attributes:
        figures = [f"{100 * accuracy(column, name):.1f}" for column in found.values()]
        error = calibration_error([a for a in everything if a.attribute == name])
        print(f"| {name} | " + " | ".join(figures) + f" | {100 * error:.1f} |")


def write_sheet(
    path: Path, columns: Mapping[str, Data], found: Mapping[str, Sequence[Judgement]]
) -> None:
    """The misjudged images on one page, in the order that is printed."""
    images: list[npt.NDArray[np.uint8]] = []
    for name, column in found.items():
        for judgement in column:
            if not judgement.right:
                place = f"{len(images) // 12 + 1}.{len(images) % 12 + 1}"
                print(f"{place} {name} {judgement}")
                images.append(np.asarray(columns[name].pixels[judgement.image]))
    if images:
        page = contact_sheet(images, columns=12)
        write_whole(path, functools.partial(page.save, format="PNG"), force=True)
