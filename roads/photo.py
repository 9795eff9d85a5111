"""A "photograph" of the little world, and the mask of something in it.

    python -m roads.photo --scene 10 --out photo.png --mask sky --mask-out sky.png

The scenes are held out: the built-in model never saw them.  Their attributes can be set
(`--weather night --car red`) while the layout stays, which gives the true image of an edit.
"""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.ndimage import binary_dilation, label

from pare.errors import SettingError
from pare.io.whole_files import check_output, write_whole
from roads.command_line import exit_code_of
from roads.world.canvas import Canvas
from roads.world.light import LIGHTS
from roads.world.render import render
from roads.world.scene import CARS, HELD_OUT_SEEDS, OBJECTS, PLACES, WEATHERS, Scene, draw_scene
from roads.world.sky import paint_sky

Mask = npt.NDArray[np.bool_]

SPECK = 128  # pixels, two cells of the latents' grid: smaller parts of the sky are left out


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    return exit_code_of(functools.partial(write_photo, options))


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m roads.photo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--scene", type=int, default=0, help="number of the held-out scene, from 0")
    add("--out", type=Path, required=True, help="the image, a .png")
    add("--mask", choices=("sky", *OBJECTS), help="what the mask marks, white")
    add("--mask-out", type=Path, help="the mask, a .png of the image's size")
    add("--grow", type=int, default=0, help="widen the mask by so many pixels")
    add("--weather", choices=WEATHERS)
    add("--place", choices=PLACES)
    add("--car", choices=CARS)
    for name in ("streetlights", "clouds", "house", "orb"):
        add(f"--{name}", action=argparse.BooleanOptionalAction, default=None)
    return parser


def write_photo(options: argparse.Namespace) -> int:
    if not 0 <= options.scene < HELD_OUT_SEEDS:
        raise SettingError(f"scene is {options.scene}", expected="a number from 0 to 999999")
    if (options.mask is None) != (options.mask_out is None):
        raise SettingError("a mask needs both", expected="--mask WHAT and --mask-out FILE.png")
    chosen = {
        name: getattr(options, name)
        for name in ("weather", "place", "car", "streetlights", "clouds", "house", "orb")
        if getattr(options, name) is not None
    }
    scene = draw_scene(HELD_OUT_SEEDS + options.scene).replace(**chosen)
    images = {options.out: Image.fromarray(render(scene).pixels)}
    if options.mask is not None:
        marked = region(scene, options.mask)
        if options.grow > 0:
            marked = binary_dilation(marked, iterations=options.grow)
        images[options.mask_out] = Image.fromarray(marked.astype(np.uint8) * 255)
    for path in images:
        check_output(path, force=True)
    for path, image in images.items():
        write_whole(path, functools.partial(image.save, format="PNG"), force=True)
    return 0


def region(scene: Scene, thing: str) -> Mask:
    """Where `thing` is in the image (H, W): "sky", or one of OBJECTS.

    An object that is not there is marked where it would be.
    """
    if thing == "sky":
        return sky(scene)
    if not scene.has(thing):
        scene = scene.replace(**{thing: "red" if thing == "car" else True})
    return render(scene).masks[thing]


def sky(scene: Scene) -> Mask:
    """The sky with all that hangs in it (H, W): where nothing else was painted over it."""
    # By day and dry: rain and lamplight are painted over the sky as well.
    bare = scene.replace(weather="sunny", orb=False, clouds=False)
    canvas = Canvas(128)
    paint_sky(canvas, bare, LIGHTS[bare.weather].tinted(bare.layout.tint, bare.place))
    painted = render(bare).pixels.astype(int)
    same: Mask = np.all(np.abs(painted - canvas.finish().pixels) <= 1, axis=-1)
    rows = np.arange(len(same)) < bare.layout.horizon * len(same)
    return without_specks(same & rows[:, None])


def without_specks(mask: Mask) -> Mask:
    """The mask without the parts that are too small for the model's grid of 8 x 8 pixels."""
    parts, count = label(mask)
    large = [k for k in range(1, count + 1) if (parts == k).sum() >= SPECK]
    kept: Mask = np.isin(parts, large)
    return kept


if __name__ == "__main__":
    sys.exit(main())
