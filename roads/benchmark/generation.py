"""How well a model of this world generates: the figures of its model card.

    python -m roads.benchmark.generation                        # the built-in model
    python -m roads.benchmark.generation --model runs/out --prompts 128 --json figures.json

Every prompt asks for something; the judge says what is in the image.  The prompts are
captions of scenes with held-out layouts; the images, one seed each.  Everything is a
function of the options: the same command gives the same table.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pare.io.whole_files import write_whole
from pare.pipeline import Pipeline
from roads.command_line import exit_code_of
from roads.contact_sheet import contact_sheet
from roads.judge.judge import COLOURS, GRID, Judge, Verdict, load_judge
from roads.train import scene_data
from roads.train.train_vae import encode_all, pixels_to_tensor, tensor_to_pixels
from roads.world.captions import caption, full_caption, read_caption
from roads.world.render import render
from roads.world.scene import HELD_OUT_SEEDS, OBJECTS, PLACES, Scene, draw_scene, held_out_scenes

SCHEDULERS = ("ddim", "dpm++2m", "pndm", "lms", "euler", "euler-ancestral")
FIRST_SCENE = HELD_OUT_SEEDS + 300_000  # the prompts' scenes
GROUPS = {"full": 0.3, "partial": 0.3, "negated": 0.15, "held-out": 0.25}  # shares of the prompts

Values = npt.NDArray[np.float64]


# --- what a prompt asks for ---------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """A prompt, and what it asks for.

    `asked`: attribute -> value; of the car, a colour, "any" or "none".
    """

    prompt: str
    asked: Mapping[str, str | bool]
    group: str  # of GROUPS


def questions(count: int) -> list[Question]:
    """`count` prompts in the shares of GROUPS."""
    numbers = {name: round(share * count) for name, share in GROUPS.items()}
    combinations = held_out_scenes(-(-numbers["held-out"] // 4))
    scenes = (draw_scene(FIRST_SCENE + k) for k in range(10 * count))
    seen = (scene for scene in scenes if not scene.held_out)
    found: list[Question] = []
    for name, number in numbers.items():
        for k in range(number):
            scene = next(combinations) if name == "held-out" else next(seen)
            prompt = worded(scene, name, np.random.default_rng([FIRST_SCENE, len(found), k]))
            found.append(Question(prompt, read_caption(prompt), name))
    return found


def worded(scene: Scene, group: str, rng: np.random.Generator) -> str:
    """A prompt of the group for the scene."""
    if group in ("full", "held-out"):
        return full_caption(scene)
    if group == "partial":
        return caption(scene, rng)
    return caption(scene, rng, present=0.4, absent=0.8)


# --- images and verdicts ----------------------------------------------------------------


@torch.no_grad()
def generate(
    pipe: Pipeline, prompts: Sequence[str], *, steps: int, guidance: float, batch: int, seed: int
) -> Tensor:
    """Images (N, 3, 128, 128) in [-1, 1]; that of prompt k has the seed `seed` + k."""
    parts = []
    for start in range(0, len(prompts), batch):
        some = list(prompts[start : start + batch])
        seeds = range(seed + start, seed + start + len(some))
        made = pipe.generate(some, seeds, steps=steps, guidance=guidance, batch=batch)
        parts.append(made.tensor)
    return torch.cat(parts).clamp(-1, 1)


def asked_and_found(
    questions: Sequence[Question], verdicts: Sequence[Verdict]
) -> dict[str, list[bool]]:
    """What was asked for -> whether the judge finds it, once a time that it was asked for.

    weather; place; every object that shall be there; "colour" of a car of a named colour,
    which counts as not found where there is no car.
    """
    found: dict[str, list[bool]] = {name: [] for name in ("weather", "place", *OBJECTS, "colour")}
    for question, verdict in zip(questions, verdicts, strict=True):
        for name, value in question.asked.items():
            if name in ("weather", "place"):
                found[name].append(getattr(verdict, name) == value)
            elif value not in ("none", False):
                found[name].append(verdict.has(name))
                if value in COLOURS:
                    found["colour"].append(verdict.car == value)
    return {name: marks for name, marks in found.items() if marks}


def appearing(
    questions: Sequence[Question], verdicts: Sequence[Verdict], *, denied: bool
) -> dict[str, list[bool]]:
    """Object -> whether it is there, once a time that a prompt denied it, or left it open."""
    found: dict[str, list[bool]] = {name: [] for name in OBJECTS}
    for question, verdict in zip(questions, verdicts, strict=True):
        for name in OBJECTS:
            if denied and question.asked.get(name) in ("none", False):
                found[name].append(verdict.has(name))
            if not denied and name not in question.asked:
                found[name].append(verdict.has(name))
    return {name: marks for name, marks in found.items() if marks}


def share(marks: Iterable[bool]) -> float:
    return float(np.mean(list(marks)))


def shares(found: Mapping[str, Sequence[bool]]) -> dict[str, Any]:
    """Name -> the share of True, and of how many."""
    return {name: {"share": round(share(m), 4), "of": len(m)} for name, m in found.items()}


# --- diversity ----------------------------------------------------------------------------


DIVERSITY_SCENE = draw_scene(HELD_OUT_SEEDS).replace(
    weather="sunny", car="red", streetlights=True, clouds=True, house=True, orb=True
)


def layout_features(verdict: Verdict) -> Values:
    """Where the judge sees things: x and y of the middle of every object's cover (10,).

    Fractions of the image; nan for what is not there.  The car's foot and the house's
    follow the horizon, so their y says where that is.
    """
    centres = (np.arange(GRID) + 0.5) / GRID
    found = []
    for name in OBJECTS:
        cover = verdict.cover[name]
        weight = cover.sum() if verdict.has(name) else np.nan
        found += [(cover.sum(axis=0) @ centres) / weight, (cover.sum(axis=1) @ centres) / weight]
    return np.array(found)


def layout_spread(verdicts: Sequence[Verdict]) -> Values:
    """Standard deviation of every feature over the images that have it (10,)."""
    columns = np.stack([layout_features(verdict) for verdict in verdicts], axis=1)
    known = [column[~np.isnan(column)] for column in columns]
    return np.array([column.std() if len(column) > 1 else np.nan for column in known])


def diversity(
    pipe: Pipeline, judge: Judge, images: int, options: argparse.Namespace
) -> dict[str, float | None]:
    """Spread of the layout over seeds for one prompt a place, relative to the data's.

    The data's: renders of the very scene on as many held-out layouts, after a VAE round
    trip.  Its spread is measured as the model's is, errors of the judge included.
    """
    ratios = []
    for place in PLACES:
        scene = DIVERSITY_SCENE.replace(place=place)
        prompts = [full_caption(scene)] * images
        made = sampled(pipe, prompts, options)
        layouts = [draw_scene(FIRST_SCENE + k).layout for k in range(images)]
        pixels = np.stack([render(scene.replace(layout=layout)).pixels for layout in layouts])
        real = round_trip(pipe, pixels)
        ratios.append(layout_spread(judge(made)) / layout_spread(judge(real)))
    names = [f"{name} {axis}" for name in OBJECTS for axis in "xy"]
    report: dict[str, float | None] = {"mean": None}
    for name, column in zip(names, np.transpose(ratios), strict=True):
        known = column[np.isfinite(column)]  # a thing that is in no image has no spread
        report[name] = round(float(known.mean()), 3) if len(known) else None
    known_means = [value for value in report.values() if value is not None]
    report["mean"] = round(float(np.mean(known_means)), 3) if known_means else None
    return report


def sampled(pipe: Pipeline, prompts: Sequence[str], options: argparse.Namespace) -> Tensor:
    """Images with the options' own steps, guidance, batch and first seed."""
    return generate(
        pipe, prompts, steps=options.steps, guidance=options.guidance,
        batch=options.batch, seed=options.seed,
    )  # fmt: skip


@torch.no_grad()
def round_trip(pipe: Pipeline, pixels: npt.NDArray[np.uint8], batch: int = 16) -> Tensor:
    parts = [pixels[i : i + batch] for i in range(0, len(pixels), batch)]
    return torch.cat([pipe.decode(pipe.encode(pixels_to_tensor(part))) for part in parts])


# --- distance to the training images ----------------------------------------------------


def nearest(points: Tensor, library: Tensor, chunk: int = 1000) -> Tensor:
    """points (N, D), library (M, D) -> the distance of each to its nearest one, a unit (N,).

    Root mean square over the D numbers.
    """
    best = torch.full((len(points),), float("inf"))
    for part in torch.split(library, chunk):
        best = torch.minimum(best, torch.cdist(points, part.float()).amin(dim=1))
    return best / points.shape[1] ** 0.5


def small(pixels: npt.NDArray[np.uint8]) -> Tensor:
    """Images (N, 128, 128, 3) at a quarter of their side, as rows (N, 3072) in [0, 1]."""
    parts = [
        pixels[i : i + 500].reshape(-1, 32, 4, 32, 4, 3).mean(axis=(2, 4), dtype=np.float32)
        for i in range(0, len(pixels), 500)
    ]
    return torch.from_numpy(np.concatenate(parts)).flatten(1) / 255


def copying(pipe: Pipeline, made: Tensor, options: argparse.Namespace) -> dict[str, Any]:
    """How near generated images come to training images, in pixels and in latents.

    Beside them, what held-out renders have (after a round trip): a model that copied would
    come nearer than they do.
    """
    train = scene_data.load("train", options.train, options.renders)
    real = scene_data.load("test", 512, options.renders).pixels[: len(made)]
    trips = round_trip(pipe, np.asarray(real))
    latents = training_latents(pipe, train, options.latents)
    library = {"pixels": small(train.pixels), "latents": latents.flatten(1)}
    report = {}
    for name, rows in library.items():
        near = {}
        for kind, images in (("generated", made), ("held-out", trips)):
            if name == "pixels":
                points = small(tensor_to_pixels(images))
            else:
                points = torch.cat([pipe.encode(part) for part in torch.split(images, 16)]).flatten(
                    1
                )
            near[kind] = nearest(points, rows)
        ratio = near["generated"].median() / near["held-out"].median()
        report[name] = {
            "generated: median": round(float(near["generated"].median()), 4),
            "generated: smallest": round(float(near["generated"].min()), 4),
            "held-out: median": round(float(near["held-out"].median()), 4),
            "held-out: smallest": round(float(near["held-out"].min()), 4),
            "ratio of medians": round(float(ratio), 3),
        }
    return report


def training_latents(pipe: Pipeline, train: scene_data.Data, path: Path | None) -> Tensor:
    """Scaled latents (N, 4, 16, 16) of the training images; from the UNet's run if given."""
    if path is not None:
        kept = torch.load(path, weights_only=True, map_location="cpu")
        latents: Tensor = kept["train"][: len(train.scenes)] * float(kept["factor"])
        return latents
    return encode_all(pipe.vae, train, pipe.device, "float32") * pipe.vae.config.scaling_factor


# --- the report ---------------------------------------------------------------------------


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All figures, as what becomes the JSON."""
    pipe = Pipeline.from_pretrained(options.model, device=options.device, scheduler="ddim")
    judge = load_judge(options.judge)
    asked = questions(options.prompts)
    prompts = [question.prompt for question in asked]
    started = time.perf_counter()
    made = sampled(pipe, prompts, options)
    seconds = time.perf_counter() - started
    verdicts = judge(made)
    if options.sheet is not None:
        save_sheet(options.sheet, made)

    report: dict[str, Any] = {
        "settings": {
            "model": str(options.model), "prompts": len(prompts), "scheduler": "ddim",
            "steps": options.steps, "guidance": options.guidance, "seed": options.seed,
            "seconds an image": round(seconds / len(prompts), 3),
        },
        "found": found_by_group(asked, verdicts),
        "absent": absences(asked, verdicts, base_rate(judge, options.renders)),
    }  # fmt: skip
    if options.only_prompts:
        return report
    few = options.prompts // 4
    mixed = asked[:: max(1, len(asked) // few)][:few]
    report["schedulers"] = compare_schedulers(pipe, judge, mixed, options)
    report["diversity"] = diversity(pipe, judge, options.prompts // 8, options)
    report["nearest training image"] = copying(pipe, made[: options.prompts // 4], options)
    return report


def found_by_group(
    asked: Sequence[Question], verdicts: Sequence[Verdict]
) -> dict[str, dict[str, Any]]:
    """Group -> attribute -> the share of what was asked for that is there."""
    report = {}
    chosen = {
        "seen combinations": [g for g in GROUPS if g != "held-out"],
        **{name: [name] for name in GROUPS},
    }
    for title, groups in chosen.items():
        rows = [k for k, question in enumerate(asked) if question.group in groups]
        if rows:
            found = asked_and_found([asked[k] for k in rows], [verdicts[k] for k in rows])
            everything = [mark for marks in found.values() for mark in marks]
            report[title] = shares({**found, "all": everything} if found else {})
    return report


def absences(
    asked: Sequence[Question], verdicts: Sequence[Verdict], base: Mapping[str, float]
) -> dict[str, dict[str, Any]]:
    """Object -> how often it is there in the data, where it was left open, and where denied."""
    left = shares(appearing(asked, verdicts, denied=False))
    denied = shares(appearing(asked, verdicts, denied=True))
    none = {"share": None, "of": 0}
    return {
        name: {
            "data": round(base[name], 4),
            "left open": left.get(name, none),
            "denied": denied.get(name, none),
        }
        for name in OBJECTS
    }


def base_rate(judge: Judge, renders: Path) -> dict[str, float]:
    """Object -> the share of held-out renders in which the judge sees it."""
    pixels = scene_data.load("test", 512, renders).pixels
    verdicts = judge(pixels_to_tensor(pixels))
    return {name: share(verdict.has(name) for verdict in verdicts) for name in OBJECTS}


def compare_schedulers(
    pipe: Pipeline, judge: Judge, asked: Sequence[Question], options: argparse.Namespace
) -> dict[str, float]:
    """Scheduler and steps -> the share of everything asked for that is there."""
    report = {}
    for name, steps in [("ddim", 50), *((name, 25) for name in SCHEDULERS)]:
        other = pipe.with_scheduler(name)
        prompts = [question.prompt for question in asked]
        made = generate(
            other, prompts, steps=steps, guidance=options.guidance,
            batch=options.batch, seed=options.seed,
        )  # fmt: skip
        found = asked_and_found(asked, judge(made))
        report[f"{name}, {steps} steps"] = round(
            share(mark for marks in found.values() for mark in marks), 4
        )
    return report


def print_tables(report: Mapping[str, Any]) -> None:
    """The report in Markdown."""
    settings = report["settings"]
    print(", ".join(f"{name} {value}" for name, value in settings.items()))
    columns = ("weather", "place", *OBJECTS, "colour", "all")
    print("\nFound of what was asked for, in %:\n\n| prompts | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for title, row in report["found"].items():
        print(f"| {title} | " + " | ".join(percent(row.get(name)) for name in columns) + " |")
    print("\nThere, in %:\n\n| object | in the data | left open | denied |\n|---|---|---|---|")
    for name, row in report["absent"].items():
        there = f"{100 * row['data']:.1f}"
        print(f"| {name} | {there} | {percent(row['left open'])} | {percent(row['denied'])} |")
    for title in ("schedulers", "diversity", "nearest training image"):
        if title in report:
            print(f"\n{title}:\n")
            for name, value in report[title].items():
                print(f"- {name}: {value}")


def percent(figure: Mapping[str, Any] | None) -> str:
    if figure is None or not figure["of"]:
        return "-"
    return f"{100 * figure['share']:.1f} of {figure['of']}"


def save_sheet(path: Path, made: Tensor) -> None:
    page = contact_sheet(list(tensor_to_pixels(made)), columns=16)
    write_whole(path, functools.partial(page.save, format="PNG"), force=True)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m roads.benchmark.generation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", default="roads", help="as for pare generate: a name or a folder")
    add("--judge", type=Path, help="the judge's folder; by default the built-in one")
    add("--prompts", type=int, default=512)
    add("--steps", type=int, default=30, help="of DDIM")
    add("--guidance", type=float, default=7.5, help="as for pare generate")
    add("--batch", type=int, default=4, help="images at a time")
    add("--seed", type=int, default=0, help="of the first image")
    add("--device", default="auto")
    add("--renders", type=Path, default=Path("runs"), help="the scenes' cache")
    add("--train", type=int, default=40_000, help="training scenes to look for copies of")
    add("--latents", type=Path, help="latents-….pt of the UNet's run; else they are computed")
    add("--only-prompts", action="store_true", help="what was asked for, and nothing else")
    add("--json", type=Path, help="write the figures here, too")
    add("--sheet", type=Path, help="write the images on one page, a .png")
    return parser


def main(arguments: list[str] | None = None) -> int:
    return exit_code_of(functools.partial(run, parser().parse_args(arguments)))


def run(options: argparse.Namespace) -> int:
    report = measure(options)
    print_tables(report)
    if options.json is not None:
        content = (json.dumps(report, indent=2) + "\n").encode()
        write_whole(options.json, functools.partial(write_bytes, content=content), force=True)
    return 0


def write_bytes(file: BinaryIO, content: bytes) -> None:
    file.write(content)


if __name__ == "__main__":
    sys.exit(main())
