"""How well words' attention maps match the objects, measured on the renderer's masks.

    python -m roads.benchmark.attention_accuracy         # the built-in model, as Markdown
    python -m roads.benchmark.attention_accuracy --into docs/attention.md --sheet truth.png

Held-out scenes with their true captions are noised to several levels, and the model maps_found at
them once each, without guidance.  Of every thing that a caption names, and of the car's
colour, the map of its word is held against the cells of the latents' grid that the thing
covers:

- AUC: how likely a cell of the thing is hotter than one beside it; 0.5 is chance.
- elsewhere: the same map against the same thing of *another* scene.  Clouds are always high
  up, and a map may reflect that alone: AUC above this is specific to the image.
- pointing: how often the hottest cell is one of the thing's.
- IoU: of the hottest cells, as many as the thing has, with the thing's.

Maps are read among words and among all 77 tokens (`pare.study.record.attention_maps.Among`).
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.stats import rankdata
from torch import Tensor

from pare.errors import OutputError, SettingError
from pare.io.images import to_tensor
from pare.io.whole_files import check_output, write_whole
from pare.pipeline import Pipeline
from pare.schedulers import add_noise
from pare.study.record.attention_maps import Among, WordMap, WordRecorder, layer_name
from pare.study.record.heatmap import overlay
from pare.study.record.image_grid import gallery
from pare.text.words import read
from roads.command_line import exit_code_of, progress
from roads.train.scene_data import VISIBLE
from roads.world.canvas import Rendering
from roads.world.captions import full_caption
from roads.world.render import render
from roads.world.scene import HELD_OUT_SEEDS, OBJECTS, Scene, draw_scene

FIRST_SCENE = HELD_OUT_SEEDS + 700_000
LEVELS = (100, 300, 500, 700, 900)
AMONG: tuple[Among, ...] = get_args(Among)
COVERED = 1 / 4  # of a cell, from which on it is the thing's
THINGS = (*OBJECTS, "colour")  # of the car
BATCH = 16
SHOWN = 8  # things on the sheet

Values = npt.NDArray[np.floating[Any]]
Cells = npt.NDArray[np.bool_]


# --- looking ------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ThingMap:
    """What the model's attention says about one thing of one scene."""

    scene: int
    thing: str
    """One of THINGS."""
    truth: Cells
    """(h, w): the cells of the latents' grid that it covers."""
    heat: Values
    """(readings, layers, levels, h, w): the map of its word, by AMONG, layer and noise level."""


def named(scene: Scene, unseen: Sequence[str]) -> dict[str, tuple[str, str]]:
    """What the full caption names: thing -> (its word, the object whose mask it has)."""
    words = {name: (name, name) for name in OBJECTS if scene.has(name) and name not in unseen}
    if "orb" in words:
        words["orb"] = ("moon" if scene.weather == "night" else "sun", "orb")
    if "car" in words:
        words["colour"] = (scene.car, "car")
    return words


def hidden(image: Rendering) -> list[str]:
    """Objects of which too little is seen to be made out."""
    return [name for name in OBJECTS if image.masks[name].sum() < VISIBLE]


def cells(mask: Cells, grid: tuple[int, int]) -> Cells:
    """The cells of a grid that a mask (H, W) covers by a quarter; if none, the best one."""
    share = F.adaptive_avg_pool2d(torch.from_numpy(mask).float()[None], grid)[0]
    covered: Cells = (share >= min(COVERED, float(share.max()))).numpy()
    return covered


@torch.no_grad()
def thing_maps(pipe: Pipeline, numbers: Sequence[int], levels: Sequence[int]) -> Iterator[ThingMap]:
    """One forward pass per noise level on some of the held-out scenes."""
    scenes = [draw_scene(FIRST_SCENE + number) for number in numbers]
    images = [render(scene) for scene in scenes]
    unseen = [hidden(image) for image in images]
    captions = [full_caption(scene, out) for scene, out in zip(scenes, unseen, strict=True)]
    x0 = pipe.encode(torch.cat([to_tensor(Image.fromarray(p.pixels)) for p in images]))
    prompts = pipe.encode_prompts(captions)
    recorder = WordRecorder({"cond": [read(pipe.tokenizer, caption) for caption in captions]})
    noise = pipe.noise([FIRST_SCENE + n for n in numbers]).draw(tuple(x0.shape[1:]))
    for i, t in enumerate(levels):
        level = pipe.scheduler.schedule.level(t)
        x_t = add_noise(x0, noise, level.alpha_bar)
        pipe.predict(x_t, level, prompts, guidance=1, control=recorder, step=i)

    by_scene: dict[int, list[WordMap]] = {}
    for one in recorder.maps():
        by_scene.setdefault(one.prompt, []).append(one)
    grid = int(x0.shape[2]), int(x0.shape[3])
    for k, maps in by_scene.items():
        for thing, (word, owner) in named(scenes[k], unseen[k]).items():
            truth = cells(images[k].masks[owner], grid)
            yield ThingMap(numbers[k], thing, truth, heats(maps, word, grid, len(levels)))


def heats(maps: Sequence[WordMap], word: str, grid: tuple[int, int], levels: int) -> Values:
    """A word's maps of one scene as (readings, layers, levels, h, w)."""
    layers = list(dict.fromkeys(one.site for one in maps))
    heat = np.empty((len(AMONG), len(layers), levels, *grid), np.float32)
    for one in maps:
        for reading, among in enumerate(AMONG):
            same = F.interpolate(one.of(word, among).mean(0)[None, None], grid, mode="bicubic")
            heat[reading, layers.index(one.site), one.step] = same[0, 0].numpy()
    return heat


def layers_of(pipe: Pipeline) -> list[str]:
    """The cross-attention layers in the order of execution, as in `ThingMap.heat`."""
    return [layer_name(site) for site in pipe.unet.sites() if site.kind == "cross"]


# --- scoring ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Score:
    """Means over many maps_found; see the module's beginning."""

    count: int
    auc: float
    elsewhere: float
    pointing: float
    pointing_chance: float
    iou: float
    iou_chance: float


def score(heat: Values, truth: Cells, other: Cells) -> Score:
    """Maps (N, h, w) against the things' cells (N, h, w), and against those of others."""
    flat = heat.reshape(len(heat), -1)
    cells, others = truth.reshape(len(truth), -1), other.reshape(len(other), -1)
    ranks = rankdata(flat, axis=1)
    size, total = cells.sum(1), cells.shape[1]
    hottest = ranks > total - size[:, None]
    both = (hottest & cells).sum(1)
    # The places with the highest rank share the point, where a flat map has several.
    best = ranks == ranks.max(1, keepdims=True)
    share = size / total
    return Score(
        count=len(flat),
        auc=float(auc(ranks, cells).mean()),
        elsewhere=float(auc(ranks, others).mean()),
        pointing=float(((best & cells).sum(1) / best.sum(1)).mean()),
        pointing_chance=float(share.mean()),
        iou=float((both / (size + hottest.sum(1) - both)).mean()),
        iou_chance=float((share / (2 - share)).mean()),
    )


def auc(ranks: Values, cells: Cells) -> Values:
    """The area under the ROC curve of each row, from the ranks of its values (Mann-Whitney)."""
    inside = cells.sum(1)
    outside = cells.shape[1] - inside
    above = (ranks * cells).sum(1) - inside * (inside + 1) / 2
    found: Values = above / (inside * outside)
    return found


def scores(
    maps_found: Sequence[ThingMap], layers: Sequence[str], levels: Sequence[int]
) -> dict[str, Any]:
    """All tables: reading -> "together", "things", "layers", "levels", "layers of things"."""
    by_thing = {thing: [one for one in maps_found if one.thing == thing] for thing in THINGS}
    by_thing = {thing: some for thing, some in by_thing.items() if len(some) > 1}
    if not by_thing:
        raise SettingError("no thing is in two of the scenes", fix="take more --scenes")
    ordered = [one for some in by_thing.values() for one in some]
    truth = np.stack([one.truth for one in ordered])
    # The same thing in the next scene that has it.
    other = np.concatenate(
        [np.roll([one.truth for one in some], 1, axis=0) for some in by_thing.values()]
    )
    thing = np.array([one.thing for one in ordered])
    tables: dict[str, Any] = {}
    for reading, among in enumerate(AMONG):
        heat = np.stack([one.heat[reading] for one in ordered])  # (N, layers, levels, h, w)
        whole, by_layer = heat.mean((1, 2)), heat.mean(2)
        tables[among] = {
            "together": score(whole, truth, other),
            "things": {
                name: score(whole[thing == name], truth[thing == name], other[thing == name])
                for name in by_thing
            },
            "layers": {
                name: score(by_layer[:, k], truth, other) for k, name in enumerate(layers)
            },
            "layers of things": {
                name: {
                    layer: score(
                        by_layer[thing == name, k], truth[thing == name], other[thing == name]
                    )
                    for k, layer in enumerate(layers)
                }
                for name in by_thing
            },
            "levels": {
                f"t = {t}": score(heat[:, :, k].mean(1), truth, other)
                for k, t in enumerate(levels)
            },
        }  # fmt: skip
    return tables


# --- telling ------------------------------------------------------------------------------


def markdown(tables: Mapping[str, Any], count: int, levels: Sequence[int]) -> str:
    """The tables as a page has them: shares among words first, then among all tokens."""
    words, every = tables["words"], tables["all"]
    head = [f"{column}, {among}" for among in ("words", "all") for column in COLUMNS]
    best = best_layer(words["layers"])

    def rows(kind: str) -> list[list[str]]:
        return [[name, *row(words[kind][name]), *row(every[kind][name])] for name in words[kind]]

    together = [
        ["all layers", *row(words["together"]), *row(every["together"])],
        [best, *row(words["layers"][best]), *row(every["layers"][best])],
    ]
    alone = {name: best_layer(of) for name, of in words["layers of things"].items()}
    steps = ", ".join(map(str, levels))
    about = (
        f"{count} held-out scenes, each noised to t = {steps}. In brackets: what chance would\n"
        "give; for AUC, the same map against the same thing of another scene."
    )
    return "\n\n".join(
        [
            about,
            grid_of(["maps of", *head], together),
            grid_of(["the word for", *head], rows("things")),
            "The layer that knows best where each is (AUC above that of another scene):",
            grid_of(
                ["the word for", "layer", *head[: len(COLUMNS)]],
                [[n, of, *row(words["layers of things"][n][of])] for n, of in alone.items()],
            ),
            grid_of(["layer", *head], rows("layers")),
            grid_of(["noise", *head], rows("levels")),
        ]
    )


COLUMNS = ("AUC", "pointing", "IoU")


def best_layer(layers: Mapping[str, Score]) -> str:
    """The one that knows most of this image, beyond where such things are wont to be."""
    return max(layers, key=lambda name: layers[name].auc - layers[name].elsewhere)


def row(one: Score) -> list[str]:
    """In the order of COLUMNS."""
    return [
        f"{one.auc:.2f} ({one.elsewhere:.2f})",
        f"{one.pointing:.0%} ({one.pointing_chance:.0%})",
        f"{one.iou:.2f} ({one.iou_chance:.2f})",
    ]


def grid_of(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def as_json(tables: Any) -> Any:
    if isinstance(tables, Score):
        return {name: round(value, 4) for name, value in vars(tables).items()}
    return {name: as_json(inner) for name, inner in tables.items()}


BEGIN, END = "<!-- python -m roads.benchmark.attention_accuracy -->", "<!-- end -->"


def put_into(page: Path, text: str) -> str:
    """The page with `text` between its two marks.

    Raises:
        OutputError: the page lacks them.
    """
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise OutputError(f"{page} has no {BEGIN} with {END} behind it")
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def sheet(maps_found: Sequence[ThingMap], layer: int, name: str) -> Image.Image:
    """Things with their cells, and the maps of their words over all layers and of one."""
    shown: dict[str, Image.Image] = {}
    for one in [one for one in maps_found if one.thing != "colour"][:SHOWN]:
        pixels = render(draw_scene(FIRST_SCENE + one.scene)).pixels
        image = Image.fromarray(pixels)
        of_words = torch.from_numpy(one.heat[AMONG.index("words")])
        maps: dict[str, Tensor] = {
            "its cells": torch.from_numpy(one.truth).float(),
            "all layers": of_words.mean((0, 1)),
            name: of_words[layer].mean(0),
        }
        title = f"scene {one.scene}: {one.thing}\n"
        shown[title] = image
        shown |= {title + k: overlay(image, heat) for k, heat in maps.items()}
    return gallery(shown, columns=8)


# --- running ------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m roads.benchmark.attention_accuracy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", default="roads")
    add("--scenes", type=int, default=200, help="how many, from 2 to 10000")
    add("--levels", type=int, nargs="+", default=LEVELS, metavar="T",
        help="timesteps of the noise, from 0 to 999")  # fmt: skip
    add("--json", type=Path, help="write all scores to this file, too")
    add("--into", type=Path, metavar="PAGE.md", help="put the tables between the page's marks")
    add("--sheet", type=Path, metavar="FILE.png", help="write some things with their maps")
    return parser


def run(options: argparse.Namespace) -> int:
    if not 2 <= options.scenes <= 10_000:
        raise SettingError(f"scenes is {options.scenes}", expected="2 to 10000")
    for path in (options.json, options.into, options.sheet):
        if path is not None:
            check_output(path, force=True)
    if options.into is not None:
        put_into(options.into, "")
    pipe = Pipeline.from_pretrained(options.model)
    levels = list(dict.fromkeys(options.levels))
    for t in levels:
        pipe.scheduler.schedule.level(t)
    batches = range(0, options.scenes, BATCH)
    maps_found = [
        one
        for start in progress("scenes")(batches)
        for one in thing_maps(pipe, range(start, min(start + BATCH, options.scenes)), levels)
    ]
    layers = layers_of(pipe)
    tables = scores(maps_found, layers, levels)
    page = markdown(tables, options.scenes, levels)
    if options.into is not None:
        write_text(options.into, put_into(options.into, page))
    if options.json is not None:
        write_text(options.json, json.dumps(as_json(tables), indent=2) + "\n")
    if options.sheet is not None:
        best = best_layer(tables["words"]["layers"])
        image = sheet(maps_found, layers.index(best), best)
        save = functools.partial(image.save, format="PNG")
        write_whole(options.sheet, save, force=True)
    print(page)
    return 0


def write_text(path: Path, text: str) -> None:
    write_whole(path, lambda file: void(file.write(text.encode())), force=True)


def void(_: object) -> None:
    """`write_whole` wants a function that returns nothing."""


def main(arguments: list[str] | None = None) -> int:
    return exit_code_of(functools.partial(run, parser().parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
