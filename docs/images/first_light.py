"""The README's image, made anew by the built-in model.

python docs/images/first_light.py
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import binary_dilation

import pare
from pare.io.whole_files import write_whole
from roads.contact_sheet import contact_sheet
from roads.photo import region
from roads.world.render import render
from roads.world.scene import HELD_OUT_SEEDS, draw_scene
from techniques.blended import blend

PROMPTS = {
    "a sunny road in the desert with clouds and a yellow car": 3,
    "a snowy road in the mountains with a house": 2,
    "a rainy road in the city with a blue car": 1,
    "a desert road at night with a red car and the moon": 3,
}
SCENE = 10
EDITS = {
    "sky": (
        "a sunny road in the mountains with a red car and clouds and a house and the sun",
        0,
        0.95,
        7.5,  # strength and guidance: README's own command
    ),
    "car": (
        "a sunny road in the mountains with a blue car and a house",
        1,
        1.0,
        6.0,
    ),
}


def main() -> None:
    pipe = pare.Pipeline.from_pretrained("roads", device="cpu", scheduler="dpm++2m", karras=True)
    made = pipe.generate(list(PROMPTS), list(PROMPTS.values()), steps=25, guidance=6)
    scene = draw_scene(HELD_OUT_SEEDS + SCENE).replace(weather="sunny", clouds=False, car="red")
    photo = Image.fromarray(render(scene).pixels)
    images = [*made, photo]
    for thing, (prompt, seed, strength, guidance) in EDITS.items():
        marked = region(scene, thing)
        if thing == "car":  # its shadow, too
            marked = binary_dilation(marked, iterations=3)
        mask = Image.fromarray(marked.astype(np.uint8) * 255)
        edited = blend(pipe, photo, mask, prompt, [seed], strength=strength, guidance=guidance)
        images += edited.images
    words = "a snowy road in the mountains with a red car and a house"
    images += pipe.img2img(photo, words, 1, strength=0.5, guidance=6)
    sheet = contact_sheet([np.asarray(image) for image in images], columns=4)
    page = sheet.resize((2 * sheet.width, 2 * sheet.height), Image.Resampling.LANCZOS)
    save = functools.partial(page.save, format="PNG", optimize=True)
    write_whole(Path(__file__).with_name("first-light.png"), save, force=True)


if __name__ == "__main__":
    main()
