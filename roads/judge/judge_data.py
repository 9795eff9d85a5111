"""What the judge learns from: renders, their VAE round trips, degraded copies, and the truth.

A judge that saw renders only would judge pixels: a generated image is a decoded latent,
a little soft, and a user's image has been a JPEG.  So the judge sees all of these.

The truth is what can be *seen*.  An object that is in the scene but hidden behind others
(fewer than `VISIBLE` pixels of its mask) counts as neither there nor absent: its label is
UNKNOWN, which every loss and every accuracy leaves out.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageFilter

from pare.io.whole_files import write_whole
from pare.vae import AutoencoderKL
from roads.judge.judge import COLOURS, GRID
from roads.train.scene_data import VISIBLE, Data, render_into, source_fingerprint
from roads.train.train_vae import pixels_to_tensor, tensor_to_pixels
from roads.train.training_loop import gather, wait_for_workers, worker
from roads.world.render import SIZE
from roads.world.scene import CARS, HELD_OUT, OBJECTS, PLACES, WEATHERS, Scene, draw_scene

Pixels = npt.NDArray[np.uint8]

COVERED = 6  # pixels of a cell (out of 8 x 8) from which on an object covers it
UNKNOWN = -1
ROUND_TRIPS = ("mode", "sample", "jitter")

# Layouts of the counterfactual variants, and those that the probabilities are calibrated on.
# Both are disjoint from the test's (`HELD_OUT_SEEDS` on) and from the UNet's training.
VARIANT_SEEDS = 500_000
CALIBRATION_SEEDS = 700_000


@dataclass(frozen=True)
class Truth:
    """What can be seen in one image, in the order of WEATHERS, PLACES, COLOURS, OBJECTS."""

    weather: int
    place: int
    colour: int  # of the car; UNKNOWN without a visible one
    present: npt.NDArray[np.int64]  # (5,): 1, 0, or UNKNOWN where an object is hidden
    cover: npt.NDArray[np.int64]  # (5, 16, 16): 1, 0, or UNKNOWN where only a corner is covered


def truth(scene: Scene, objects: Pixels) -> Truth:
    """The truth about an image; `objects` (H, W) has bit k set where OBJECTS[k] is seen."""
    planes = np.unpackbits(objects[None], axis=0, bitorder="little", count=len(OBJECTS))
    cell = SIZE // GRID  # 64 pixels: their number fits in 8 bits
    rows = planes.reshape(len(OBJECTS), GRID, cell, SIZE).sum(axis=2, dtype=np.uint8)
    counts = rows.reshape(len(OBJECTS), GRID, GRID, cell).sum(axis=3, dtype=np.uint8)
    seen = counts.sum(axis=(1, 2), dtype=np.int64) >= VISIBLE
    there = np.array([scene.has(name) for name in OBJECTS])
    present = np.where(there, np.where(seen, 1, UNKNOWN), 0)
    cover = np.where(counts >= COVERED, 1, np.where(counts > 0, UNKNOWN, 0))
    cover[(present == UNKNOWN)[:, None, None] & (counts > 0)] = UNKNOWN
    visible_car = present[OBJECTS.index("car")] == 1
    return Truth(
        weather=WEATHERS.index(scene.weather),
        place=PLACES.index(scene.place),
        colour=COLOURS.index(scene.car) if visible_car else UNKNOWN,
        present=present,
        cover=cover,
    )


# --- counterfactual variants --------------------------------------------------------------


def variants(first_seed: int, count: int) -> list[Scene]:
    """`count` scenes, four a layout: one, and three counterfactuals of it.

    In one counterfactual weather, place or the car's colour is another; in one, an object
    has come or gone; one is a combination that the generator never trained on, as the judge
    must know what it is asked to find.
    """
    scenes = (
        scene for seed in range(first_seed, first_seed + -(-count // 4)) for scene in four(seed)
    )
    return [scene for scene, _ in zip(scenes, range(count), strict=False)]


def four(seed: int) -> list[Scene]:
    """A scene and three counterfactuals of it."""
    scene = draw_scene(seed)
    rng = np.random.default_rng([seed, 4])
    name, options = (("weather", WEATHERS), ("place", PLACES), ("car", CARS))[int(rng.integers(3))]
    others = [value for value in options if value != getattr(scene, name)]
    changed = scene.replace(**{name: others[int(rng.integers(len(others)))]})
    thing = OBJECTS[int(rng.integers(len(OBJECTS)))]
    if scene.has(thing):
        toggled = scene.without(thing)
    else:
        toggled = scene.replace(
            **{thing: COLOURS[int(rng.integers(4))] if thing == "car" else True}
        )
    weather, place, car = sorted(HELD_OUT)[seed % len(HELD_OUT)]
    return [scene, changed, toggled, scene.replace(weather=weather, place=place, car=car)]


def load_variants(first_seed: int, count: int, folder: Path) -> Data:
    """`variants`, rendered unless they lie in `folder` already."""
    scenes = variants(first_seed, count)
    home = folder / f"renders-variants-{first_seed}-{count}-{source_fingerprint()}"
    if not home.exists():
        render_into(home, scenes)
    pixels = np.load(home / "pixels.npy", mmap_mode="r")
    return Data(scenes, pixels, np.load(home / "objects.npy", mmap_mode="r"))


def joined(*parts: Data) -> Data:
    """Several sets of images as one, in memory."""
    return Data(
        scenes=[scene for part in parts for scene in part.scenes],
        pixels=np.concatenate([part.pixels for part in parts]),
        objects=np.concatenate([part.objects for part in parts]),
    )


def chosen(data: Data, indices: Sequence[int]) -> Data:
    """Some of the images, in memory."""
    order = np.sort(np.asarray(indices))
    return Data([data.scenes[i] for i in order], data.pixels[order], data.objects[order])


# --- round trips --------------------------------------------------------------------------


@torch.no_grad()
def round_trips(
    vae: AutoencoderKL, pixels: Pixels, kinds: Sequence[str], dtype: str = "float32"
) -> Pixels:
    """Encode and decode every image.  kinds: of ROUND_TRIPS, taken in turn.

    "mode" and "sample" are of the posterior.  "jitter" is the mode with noise of up to a
    fifth of the latents' own spread: a latent that a UNet makes is never quite right.  The
    noise is a function of the image's number; several workers share the images.
    """
    spread = 1 / vae.config.scaling_factor
    rank, count = worker()
    mine = range(rank, len(pixels), count)
    parts = []
    for start in range(0, len(mine), 16):
        numbers = mine[start : start + 16]
        image = pixels_to_tensor(pixels[list(numbers)])
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            posterior = vae.encode(image)
            latents, std = posterior.mode().float(), posterior.std.float()
            for row, number in enumerate(numbers):
                kind = kinds[number % len(kinds)]
                generator = torch.Generator().manual_seed(number)
                noise = torch.randn(std[row].shape, generator=generator)
                strength = 0.2 * spread * float(torch.rand((), generator=generator))
                change = {"mode": 0 * noise, "sample": std[row] * noise, "jitter": strength * noise}
                latents[row] += change[kind]
            parts.append(torch.from_numpy(tensor_to_pixels(vae.decode(latents))))
    out = np.empty_like(pixels)
    for k, part in enumerate(gather(torch.cat(parts))):
        out[k::count] = part.numpy()
    return out


def load_round_trips(
    vae: AutoencoderKL,
    data: Data,
    name: str,
    folder: Path,
    dtype: str,
    kinds: Sequence[str] = ROUND_TRIPS,
) -> Data:
    """`data` after a round trip of every kind in turn, made unless it lies in `folder`."""
    digest = hashlib.sha256()
    for tensor in vae.state_dict().values():
        digest.update(tensor.float().numpy().tobytes())
    marks = f"{len(data.scenes)}-{source_fingerprint()}-{digest.hexdigest()[:8]}"
    home = folder / f"round-trips-{name}-{marks}.npy"
    there = home.exists()
    wait_for_workers()  # before the first of them writes it
    if not there:
        pixels = round_trips(vae, data.pixels, kinds, dtype)
        if worker()[0] == 0:
            write_whole(home, functools.partial(np.save, arr=pixels), force=True)
        wait_for_workers()
    return dataclasses.replace(data, pixels=np.load(home))


# --- degraded copies ----------------------------------------------------------------------


def degrade(pixels: Pixels, rng: np.random.Generator, odds: float = 0.3) -> Pixels:
    """A copy (H, W, 3) that shows the same: each kind of damage comes with odds `odds`."""
    image = Image.fromarray(pixels)
    if rng.random() < odds:  # smaller, and back to its size
        size = int(rng.integers(64, SIZE))
        image = image.resize((size, size), Image.Resampling.BICUBIC)
        image = image.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    if rng.random() < odds:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 1.2))))
    values = np.asarray(image, dtype=np.float32)
    if rng.random() < odds:  # brightness and colour: a gain a channel; contrast
        gain = rng.uniform(0.92, 1.08) * rng.uniform(0.96, 1.04, size=3).astype(np.float32)
        middle = values.mean()
        values = ((values - middle) * rng.uniform(0.9, 1.1) + middle) * gain
    if rng.random() < odds:
        noise = rng.standard_normal(values.shape, dtype=np.float32)
        values = values + noise * rng.uniform(1.0, 12.0)
    out = np.clip(np.round(values), 0, 255).astype(np.uint8)
    if rng.random() < odds:
        file = io.BytesIO()
        Image.fromarray(out).save(file, "JPEG", quality=int(rng.integers(40, 96)))
        out = np.asarray(Image.open(file))
    return out


def shifted(image: Pixels, down: int, across: int) -> Pixels:
    """`image` (H, W) or (H, W, 3) moved by some pixels; its edge fills what is left open.

    Objects' bits are moved in the same way, so a mask at the edge grows with its image.
    """
    rows = np.clip(np.arange(SIZE) - down, 0, SIZE - 1)
    columns = np.clip(np.arange(SIZE) - across, 0, SIZE - 1)
    return image[rows][:, columns]
