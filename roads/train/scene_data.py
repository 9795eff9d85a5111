"""Rendered scenes on disk: drawn once by all processors, read by every training.

The data are a function of the world's source code and of the scenes' numbers.  The cache
carries a fingerprint of that source, so that an edited renderer never meets old images.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from roads.world.render import SIZE, render
from roads.world.scene import OBJECTS, Scene, training_scenes, unseen_scenes

WORLD = ("scene", "canvas", "light", "road", "sky", "places", "objects", "render")
CHUNK = 250  # scenes that one process renders at a time
CELL = 8  # pixels that the side of a latent cell spans
VISIBLE = 24  # pixels of an object from which on it can be made out, out of 128 x 128


@dataclass(frozen=True)
class Data:
    """Scenes and their images.

    pixels (N, 128, 128, 3) uint8.
    objects (N, 128, 128) uint8: bit k is set where OBJECTS[k] is seen.
    """

    scenes: Sequence[Scene]
    pixels: npt.NDArray[np.uint8]
    objects: npt.NDArray[np.uint8]

    def unseen(self) -> list[frozenset[str]]:
        """For every scene, the objects that are in it but hidden, in the main, by others."""
        seen = [
            np.stack([((bits >> k) & 1).sum() >= VISIBLE for k in range(len(OBJECTS))])
            for bits in self.objects
        ]
        return [
            frozenset(
                name for name, out in zip(OBJECTS, row, strict=True) if scene.has(name) and not out
            )
            for scene, row in zip(self.scenes, seen, strict=True)
        ]


def source_fingerprint() -> str:
    """Changes whenever the code that draws the world changes."""
    digest = hashlib.sha256()
    for name in WORLD:
        digest.update((Path(__file__).parents[1] / "world" / f"{name}.py").read_bytes())
    return digest.hexdigest()[:8]


def load(split: str, count: int, folder: Path) -> Data:
    """The first `count` scenes of `split` ('train' or 'test'), rendered unless cached."""
    scenes = training_scenes(count) if split == "train" else unseen_scenes(count)
    home = cached(folder, split, count)
    if home is None:
        home = folder / f"renders-{split}-{count}-{source_fingerprint()}"
        render_into(home, scenes)
    return Data(
        scenes=scenes,
        pixels=np.load(home / "pixels.npy", mmap_mode="r")[:count],
        objects=np.load(home / "objects.npy", mmap_mode="r")[:count],
    )


def standing(data: Data, folder: Path) -> npt.NDArray[np.uint8]:
    """How much of each latent cell the objects cover, or would cover (N, 16, 16), 0 to 255.

    Of every scene's layout with all objects in it, whichever the scene itself has: where
    things stand says nothing about whether they do.  Cached as the renders are.
    """
    path = folder / f"standing-{len(data.scenes)}-{source_fingerprint()}.npy"
    if not path.exists():
        parts = [data.scenes[i : i + CHUNK] for i in range(0, len(data.scenes), CHUNK)]
        if len(parts) == 1:
            covers = standing_chunk(parts[0])
        else:
            with multiprocessing.get_context("spawn").Pool() as pool:
                covers = np.concatenate(list(pool.imap(standing_chunk, parts)))
        partial = path.with_suffix(f".partial-{os.getpid()}.npy")
        np.save(partial, covers)
        partial.rename(path)
    covers = np.load(path)
    return covers


def standing_chunk(scenes: Sequence[Scene]) -> npt.NDArray[np.uint8]:
    """Cover (N, 16, 16) of every cell of 8 x 8 pixels by any object, with all in the scene."""
    covers = []
    for scene in scenes:
        car = "red" if scene.car == "none" else scene.car
        full = scene.replace(car=car, streetlights=True, clouds=True, house=True, orb=True)
        seen = np.logical_or.reduce(list(render(full).masks.values()))
        cells = seen.reshape(SIZE // CELL, CELL, SIZE // CELL, CELL)
        covers.append((255 * cells.mean(axis=(1, 3))).astype(np.uint8))
    return np.stack(covers)


def cached(folder: Path, split: str, count: int) -> Path | None:
    """The smallest cache that holds at least `count` scenes of `split`, if there is one."""
    found = folder.glob(f"renders-{split}-*-{source_fingerprint()}")
    sizes = {int(home.name.split("-")[2]): home for home in found}
    return sizes[min(enough)] if (enough := [n for n in sizes if n >= count]) else None


def render_into(home: Path, scenes: Sequence[Scene]) -> None:
    """Render `scenes` into the folder `home`, which appears only when it is complete."""
    partial = home.with_name(home.name + f".partial-{os.getpid()}")
    partial.mkdir(parents=True)
    pixels = np.lib.format.open_memmap(
        partial / "pixels.npy", "w+", np.uint8, (len(scenes), SIZE, SIZE, 3)
    )
    objects = np.lib.format.open_memmap(
        partial / "objects.npy", "w+", np.uint8, (len(scenes), SIZE, SIZE)
    )
    chunks = [scenes[i : i + CHUNK] for i in range(0, len(scenes), CHUNK)]
    # Spawned, not forked: a forked child of a process that runs torch can hang.
    with multiprocessing.get_context("spawn").Pool() as pool:
        for k, (images, bits) in enumerate(pool.imap(render_chunk, chunks)):
            pixels[k * CHUNK : k * CHUNK + len(images)] = images
            objects[k * CHUNK : k * CHUNK + len(bits)] = bits
    pixels.flush()
    objects.flush()
    partial.rename(home)


def render_chunk(
    scenes: Sequence[Scene],
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Images (N, H, W, 3) and object bits (N, H, W) of `scenes`."""
    images = [render(scene) for scene in scenes]
    bits = [
        sum((p.masks[name].astype(np.uint8) << k for k, name in enumerate(OBJECTS)), start=zero)
        for p in images
        for zero in [np.zeros((SIZE, SIZE), np.uint8)]
    ]
    return np.stack([p.pixels for p in images]), np.stack(bits)
