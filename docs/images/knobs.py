"""What each knob of a technique does to one and the same image, one sheet a technique.

python docs/images/knobs.py            # all
python docs/images/knobs.py erase p2p  # some
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from torch import zeros

import pare
from pare.io.whole_files import write_whole
from roads.photo import region
from roads.world.render import render
from roads.world.scene import HELD_OUT_SEEDS, Scene, draw_scene
from techniques.blended import blend
from techniques.erasure import PRESETS, Concept, erase
from techniques.inversion import invert, sample
from techniques.prompt_to_prompt import Edit, LocalBlend, Sites, prompt_to_prompt

SIDE, GAP, LINE = 128, 4, 15
# One row of a sheet: what each image is, and the image.
Row = list[tuple[str, Image.Image]]


def photo(number: int, **changes: Any) -> tuple[Scene, Image.Image]:
    scene = draw_scene(HELD_OUT_SEEDS + number).replace(**changes)
    return scene, Image.fromarray(render(scene).pixels)


def blending(pipe: pare.Pipeline) -> list[Row]:
    """Clouds into a sky; a lamp's thin mask; the edge of a mask, enlarged."""
    scene, day = photo(10, weather="sunny", place="mountains", clouds=False, car="red")
    sky = as_mask(region(scene, "sky"))
    prompt = "a sunny road in the mountains with clouds and a red car and a house"
    run = functools.partial(one_blend, pipe, day, sky, prompt)
    thin = np.zeros((SIDE, SIDE), bool)
    thin[40:46, 12:116] = True  # less than a latent is high
    stripe = functools.partial(one_blend, pipe, day, as_mask(thin), prompt, cover=True)
    corner = (32, 24, 96, 88)
    rows = [
        [
            ("the image", day),
            *((f"strength {s:g}", run(strength=s)) for s in (0.3, 0.6, 0.8, 1.0)),
        ],
        [("the mask", sky), *((f"guidance {g:g}", run(guidance=g)) for g in (1.5, 4, 7.5, 15))],
        [("enlarged", zoomed(day, corner))]
        + [(f"{b}", zoomed(run(background=b), corner)) for b in ("latent", "decoder", "poisson")]
        + [("paste, feather 0", zoomed(run(feather=0.0), corner))],
        [
            ("a thin mask", as_mask(thin)),
            *((f"shrink {n}", stripe(shrink=n)) for n in (0, 1, 3, 6)),
        ],
    ]
    return rows


def one_blend(
    pipe: pare.Pipeline, image: Image.Image, mask: Image.Image, prompt: str, **knobs: Any
) -> Image.Image:
    return blend(pipe, image, mask, prompt, [3], **knobs).images[0]


def erasing(pipe: pare.Pipeline) -> list[Row]:
    """A car, erased from words that ask for it; a night's lamps, from an image."""
    prompt, seed = "a sunny road in the desert with a red car and clouds", 7

    def run(gates: str, weight: float, **changes: Any) -> Image.Image:
        kept = replace(PRESETS[gates], **changes)
        return erase(pipe, prompt, [Concept("a car", weight)], [seed], gates=kept).images[0]

    as_it_is = erase(pipe, prompt, [Concept("a car", 0)], [seed], gates=PRESETS["ungated"])
    first = ("as it is", as_it_is.images[0])
    return [
        [first, *((f"ungated, {w:g}", run("ungated", w)) for w in (2.5, 5, 10, 20))],
        [first, *((f"sega, {w:g}", run("sega", w)) for w in (5, 10, 20, 40))],
        [first, *((f"sega 20, warm-up {n}", run("sega", 20, warm_up=n)) for n in (0, 3, 6, 15))],
        [first]
        + [(f"sega 20, quantile {q:g}", run("sega", 20, quantile=q)) for q in (0, 0.5, 0.8, 0.97)],
        [first]
        + [(f"ungated 10, cap {c:g}", run("ungated", 10, cap=c)) for c in (0.25, 0.5, 1, 2)],
        [first]
        + [(name, run(name, w)) for name, w in
           (("safe-medium", 7.5), ("safe-strong", 7.5), ("safe-max", 7.5), ("ledits++", 20))],
    ]  # fmt: skip


def inverting(pipe: pare.Pipeline) -> list[Row]:
    """An image from its own noise, and the same in snow."""
    _scene, day = photo(10, weather="sunny", place="mountains", clouds=False, car="red")
    was = "a sunny road in the mountains with a red car and a house"
    will, method = was.replace("sunny", "snowy"), "edit-friendly"

    def run(method: Any, prompt: str, steps: int = 25, **knobs: Any) -> Image.Image:
        return sample(pipe, invert(pipe, day, was, method=method, steps=steps), prompt, **knobs)[0]

    return [
        [("the image", day)]
        + [(f"ddim, {n} steps", run("ddim", was, n)) for n in (5, 10, 25, 50)],
        [("the image", day)]
        + [(f"ddim, guidance {g:g}", run("ddim", was, guidance=g)) for g in (1, 2.5, 5, 7.5)],
        [("in snow:", day)]
        + [(m, run(m, will, 20)) for m in ("ddim", "null-text", "negative", "proximal")],
        [("in snow:", day)]
        + [(f"negative, guidance {g:g}", run("negative", will, guidance=g)) for g in (1, 3, 5, 10)],
        [("in snow:", day)]
        + [(f"edit-friendly, skip {n}", run(method, will, skip=n)) for n in (18, 12, 9, 3)],
    ]  # fmt: skip


def prompting(pipe: pare.Pipeline) -> list[Row]:
    """A forest in the sun, the same in snow; a word's weight; a car of another colour."""
    was, seed = "a sunny road in the forest with a house", 102
    will = was.replace("sunny", "snowy")
    red = "a sunny road in the desert with a red car"
    blue = Edit(red.replace("red", "blue"))

    def run(targets: Sequence[Edit], source: str = was, **knobs: Any) -> list[Image.Image]:
        done = prompt_to_prompt(pipe, source, targets, [seed], **knobs)
        return [done.sources[0], *done.targets[0]]

    def row(name: str, edits: dict[Any, Edit], **knobs: Any) -> Row:
        labels = ["the source", *(f"{name} {value}" for value in edits)]
        return list(zip(labels, run(list(edits.values()), **knobs), strict=True))

    half = zeros(1, 1, 16, 16)
    half[..., 8:] = 1
    snow = Edit(will)
    grids = [(f"self up to {g:g}", Sites(finest=g)) for g in (0.125, 0.25, 0.5, 1.0)]
    strict = Edit(will, self_replace=0.8)
    words = [(f"'car' above {t:g}", LocalBlend(("car",), threshold=t)) for t in (0.15, 0.3, 0.6)]
    return [
        row(
            "cross", {x: Edit(will, cross_replace=x, self_replace=0) for x in (0.0, 0.4, 0.8, 1.0)}
        ),
        row("self", {x: Edit(will, self_replace=x) for x in (0.0, 0.2, 0.4, 0.8)}),
        [("the source", run([strict])[0])]
        + [(name, run([strict], self_sites=sites)[1]) for name, sites in grids],
        row("house x", {w: Edit(was, weights={"house": w}) for w in (-2, 0, 1, 2)}),
        [("the source", run([blue], red)[0]), ("no blend", run([blue], red)[1])]
        + [(name, run([blue], red, blend=blend)[1]) for name, blend in words],
        [
            ("the source", run([snow])[0]),
            ("no blend", run([snow])[1]),
            ("its right half", run([snow], blend=LocalBlend(mask=half))[1]),
            ("from half-way", run([snow], blend=LocalBlend(mask=half, start=0.5))[1]),
            ("where 'house' is", run([snow], blend=LocalBlend(("house",)))[1]),
        ],
    ]


def as_mask(marked: np.ndarray[Any, np.dtype[np.bool_]]) -> Image.Image:
    return Image.fromarray(marked.astype(np.uint8) * 255)


def zoomed(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    return image.crop(box).resize((SIDE, SIDE), Image.Resampling.NEAREST)


def sheet(rows: Sequence[Row]) -> Image.Image:
    """All rows on one page, every image under its own words."""
    width, height = SIDE + GAP, SIDE + LINE + GAP
    page = Image.new("RGB", (width * max(map(len, rows)) + GAP, height * len(rows) + GAP), "white")
    write = ImageDraw.Draw(page)
    for k, row in enumerate(rows):
        for n, (label, image) in enumerate(row):
            left, top = GAP + n * width, GAP + k * height
            write.text((left + 1, top), label, fill="black")
            page.paste(image.convert("RGB").resize((SIDE, SIDE)), (left, top + LINE))
    return page


QUICK = {"scheduler": "dpm++2m", "karras": True}
SHEETS: dict[str, tuple[dict[str, Any], Callable[[pare.Pipeline], list[Row]]]] = {
    "blend": (QUICK, blending),
    "erase": (QUICK, erasing),
    "invert": ({"scheduler": "ddim"}, inverting),
    "p2p": (QUICK, prompting),
}


def main() -> None:
    for name in sys.argv[1:] or SHEETS:
        options, rows = SHEETS[name]
        pipe = pare.Pipeline.from_pretrained("roads", device="cpu", **options)
        page = sheet(rows(pipe))
        save = functools.partial(page.save, format="PNG", optimize=True)
        write_whole(Path(__file__).with_name(f"knobs-{name}.png"), save, force=True)
        print(f"knobs-{name}.png")


if __name__ == "__main__":
    main()
