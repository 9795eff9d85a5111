"""The benchmark's tasks: edits whose true result is known.

A task is one scene before and after one change: other weather, another place, an object
added, removed or painted another colour, clouds into the sky.  Both are rendered from the
same layout, so the task also knows which pixels the change touches and which it must not.

The layouts are held out: no training saw them.  Two lists, alike in kind and of different
layouts: `development` to choose defaults on, `held-out` for the tables.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.ndimage import binary_dilation

from pare.errors import SettingError
from roads.photo import region
from roads.train.scene_data import VISIBLE
from roads.world.canvas import Rendering
from roads.world.captions import full_caption
from roads.world.render import SIZE, render
from roads.world.scene import CARS, HELD_OUT_SEEDS, OBJECTS, PLACES, WEATHERS, Scene, draw_scene

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Split = Literal["development", "held-out"]

FIRST_SEED: dict[str, int] = {
    "development": HELD_OUT_SEEDS + 600_000,
    "held-out": HELD_OUT_SEEDS + 700_000,
}
ATTRIBUTES = ("weather", "place", *OBJECTS)
# An object that is to be added or removed must be seen well, not just at all.
CLEARLY = 4 * VISIBLE
BRUSH = 3  # pixels by which a person's mask goes beyond what it is meant to cover

WHOLE_IMAGE = ("weather", "place")  # kinds of task

Change = tuple[str, str, Any, Any]  # kind, attribute, before, after


@dataclass(frozen=True)
class Task:
    """One edit with its ground truth.  Images are (128, 128, 3) uint8, masks (128, 128)."""

    name: str  # "remove-car-3"
    kind: str  # weather, place, add, remove, recolour, clouds
    attribute: str  # the one attribute that changes
    source: Scene
    target: Scene

    @property
    def source_pixels(self) -> Pixels:
        return image(self.source).pixels

    @property
    def target_pixels(self) -> Pixels:
        return image(self.target).pixels

    @functools.cached_property
    def touched(self) -> Mask:
        """Where the true edit changes the image, shadows and lamplight included."""
        return np.any(self.source_pixels != self.target_pixels, axis=-1)

    @property
    def untouched(self) -> Mask:
        """Where the edit must change nothing.  Weather and place are of the whole image, and
        the few pixels that happen to stay equal there are nobody's to keep: none."""
        return ~self.touched & (self.kind not in WHOLE_IMAGE)

    @functools.cached_property
    def brushed(self) -> Mask:
        """What a person would paint over to ask for the edit; all of it for weather and place."""
        if self.kind in WHOLE_IMAGE:
            return np.ones((SIZE, SIZE), bool)
        if self.kind == "clouds":
            covered = region(self.source, "sky")
        else:
            with_it = self.source if self.source.has(self.attribute) else self.target
            covered = image(with_it).reach[self.attribute]
        grown: Mask = binary_dilation(covered, iterations=BRUSH)
        return grown

    @functools.cached_property
    def hidden(self) -> frozenset[str]:
        """Objects that cannot be made out before or after the edit: they are not counted."""
        return unseen(self.source) | unseen(self.target)

    @property
    def image(self) -> Image.Image:
        return Image.fromarray(self.source_pixels)

    @property
    def mask(self) -> Image.Image:
        """`brushed` as an image: white is to be edited."""
        return Image.fromarray(self.brushed.astype(np.uint8) * 255)

    @property
    def source_prompt(self) -> str:
        return full_caption(self.source, self.hidden)

    @property
    def target_prompt(self) -> str:
        return full_caption(self.target, self.hidden)

    def kept(self) -> list[str]:
        """The attributes that the edit must leave alone, as far as an image can show them."""
        return [name for name in ATTRIBUTES if name not in (self.attribute, *self.hidden)]


def changes() -> Iterator[Change]:
    """Every change of a split, 56 in all."""
    for before, after in itertools.permutations(WEATHERS, 2):
        yield "weather", "weather", before, after
    for before, after in itertools.permutations(PLACES, 2):
        yield "place", "place", before, after
    for kind in ("add", "remove"):
        for colour in ("red", "yellow"):
            yield (kind, "car", *(("none", colour) if kind == "add" else (colour, "none")))
        for thing in ("streetlights", "house", "orb"):
            for _ in range(2):
                yield kind, thing, kind == "remove", kind == "add"
    for before, after in itertools.islice(itertools.permutations(CARS[1:], 2), 0, None, 3):
        yield "recolour", "car", before, after
        yield "recolour", "car", after, before
    for _ in range(8):
        yield "clouds", "clouds", False, True


@functools.cache
def tasks(split: Split) -> tuple[Task, ...]:
    """The tasks of a split; the same at every call and on every machine.

    Raises:
        SettingError: there is no such split.
    """
    if split not in get_args(Split):
        raise SettingError(f"the split is {split!r}", expected=" or ".join(get_args(Split)))
    seeds = itertools.count(FIRST_SEED[split])
    return tuple(first_fitting(change, seeds, k) for k, change in enumerate(changes()))


def first_fitting(change: Change, seeds: Iterator[int], number: int) -> Task:
    """The task of the first seed whose scene lets the change be seen."""
    kind, attribute, before, after = change
    for seed in seeds:
        source = draw_scene(seed).replace(**{attribute: before})
        task = Task(
            name=f"{kind}-{attribute if kind in ('add', 'remove') else after}-{number}",
            kind=kind,
            attribute=attribute,
            source=source,
            target=source.replace(**{attribute: after}),
        )
        if fits(task):
            return task
    raise AssertionError("seeds do not end")


def fits(task: Task) -> bool:
    """Whether the task asks for nothing held out, and its object can be seen clearly."""
    if task.source.held_out or task.target.held_out:
        return False
    if task.attribute not in OBJECTS:
        return True
    return all(
        visible_pixels(scene, task.attribute) >= CLEARLY
        for scene in (task.source, task.target)
        if scene.has(task.attribute)
    )


@functools.lru_cache(maxsize=256)
def image(scene: Scene) -> Rendering:
    """The scene's rendering, remembered: a task asks for it again and again."""
    return render(scene)


def visible_pixels(scene: Scene, thing: str) -> int:
    return int(image(scene).masks[thing].sum())


def unseen(scene: Scene) -> frozenset[str]:
    """The objects that are in the scene but cannot be made out in its image."""
    masks = image(scene).masks
    return frozenset(name for name in OBJECTS if scene.has(name) and masks[name].sum() < VISIBLE)
